"""SFP, CAS and Inter-Attn: what comes through unchanged, what is finite, and what the weights are."""

import itertools

import pytest
import torch

from saccade.modules.layers import CAS, SFP, InterAttn
from saccade.modules.layers.sfp import FILLINGS, Sequence, filled, filling_loss

SUBSETS = [kept for size in (1, 2, 3) for kept in itertools.combinations(range(3), size)]


def sequences(batch: int = 4, width: int = 8, kept: tuple[int, ...] = (0, 1, 2), rate: float = 0.0) -> list[Sequence]:
    draw = torch.Generator().manual_seed(1)
    made = []
    for place, length in enumerate((7, 9, 5)):
        content = torch.ones(batch, length, dtype=torch.bool)
        content[:, -1] = False
        available = content.float() * (torch.rand(batch, length, generator=draw) >= rate)
        made.append(Sequence(torch.randn(batch, length, width, generator=draw), available * (place in kept), content))
    return made


@pytest.mark.parametrize("filling", FILLINGS)
@pytest.mark.parametrize("kept", [(), *SUBSETS])
def test_filling_is_finite_and_leaves_what_is_there(filling, kept):
    layer = SFP(8, 4, filling=filling)
    given = sequences(kept=kept, rate=0.4)
    for sequence, predicted in zip(given, layer(given), strict=True):
        found = filled(sequence, predicted)
        assert found.shape == sequence.hidden.shape
        assert bool(torch.isfinite(found).all())
        there = sequence.available == 1
        assert torch.equal(found[there], sequence.hidden[there])
        assert torch.equal(found[~there], predicted[~there])


def test_a_sample_does_not_depend_on_the_others():
    layer = SFP(8, 4).eval()
    given = sequences(rate=0.4)
    mixed = [Sequence(item.hidden, item.available.clone(), item.content) for item in given]
    mixed[0].available[1:] = 0
    mixed[2].available[2:] = 0
    for one, other in zip(layer(given), layer(mixed), strict=True):
        assert torch.allclose(one[0], other[0], atol=1e-6)


def test_missing_positions_of_the_others_are_not_read():
    layer = SFP(8, 4).eval()
    given = sequences(rate=0.5)
    changed = [Sequence(item.hidden.clone(), item.available, item.content) for item in given]
    changed[1].hidden[changed[1].available == 0] = 99.0
    assert torch.allclose(layer(given)[0], layer(changed)[0], atol=1e-6)
    changed[1].hidden[changed[1].available == 1] = 99.0
    assert not torch.allclose(layer(given)[0], layer(changed)[0], atol=1e-3)


def test_moments_agree_between_modalities_of_other_lengths():
    given = sequences()
    with_cls = given[0].content.clone()
    with_cls[:, 0] = False
    shifted = Sequence(given[0].hidden, given[0].available, with_cls)
    assert float(given[0].moments[0, 0]) == float(shifted.moments[0, 1]) == float(given[1].moments[0, 0]) == 0
    assert float(given[0].moments[0, 3]) == pytest.approx(float(given[1].moments[0, 4]))  # the middle of 6 and of 8


def test_filling_loss_counts_what_is_missing_but_known():
    whole, part = sequences(), sequences(kept=(1, 2))
    right = [item.hidden for item in whole]
    assert float(filling_loss(right, part, whole)) == 0
    wrong = [item.hidden + 2 for item in whole]
    assert float(filling_loss(wrong, part, whole)) == pytest.approx(4 / 3)  # one of three modalities
    assert float(filling_loss(wrong, whole, whole)) == 0


def test_filling_learns_what_is_shared():
    """Text is a function of the sound: the filled text must find its own among a hundred, far above chance."""
    torch.manual_seed(0)
    layer, turn = SFP(16, 4), torch.randn(16, 16) / 4

    def draw(count: int) -> tuple[list[Sequence], list[Sequence]]:
        sound = torch.randn(count, 6, 16)
        content = torch.ones(count, 6, dtype=torch.bool)
        there, gone = torch.ones(count, 6), torch.zeros(count, 6)
        text = torch.tanh(sound @ turn)
        other = Sequence(torch.randn(count, 6, 16), gone, content)
        whole = [Sequence(text, there, content), Sequence(sound, there, content), other]
        return [Sequence(text * 0, gone, content), whole[1], other], whole

    optimizer = torch.optim.Adam(layer.parameters(), 3e-3)
    for _ in range(250):
        part, whole = draw(64)
        loss = filling_loss(layer(part), part, whole)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    part, whole = draw(100)
    layer.requires_grad_(False)
    guess, truth = layer(part)[0].mean(1), whole[0].hidden.mean(1)
    scores = torch.nn.functional.normalize(guess, dim=1) @ torch.nn.functional.normalize(truth, dim=1).T
    assert float((scores.argmax(1) == torch.arange(100)).float().mean()) > 0.5
    assert float((guess - truth).square().mean()) < 0.5 * float((truth - truth.mean(0)).square().mean())


@pytest.mark.parametrize("outputs", [1, 5])
@pytest.mark.parametrize("kept", [(), *SUBSETS])
def test_weights_sum_to_one_and_favour_what_is_there(outputs, kept):
    layer = CAS(8, outputs, filled_weight=0.0)
    present = torch.zeros(4, 3, dtype=torch.bool)
    present[:, list(kept)] = True
    results, weights, expected = layer(torch.randn(4, 3, 8), present.float(), present)
    assert results.shape == (4, 3, outputs)
    assert torch.allclose(weights.sum(1), torch.ones(4))
    if kept:
        assert float(weights[~present].detach().abs().sum()) == 0
    half = CAS(8, outputs, filled_weight=0.5)
    half.load_state_dict(layer.state_dict())
    assert bool((half(torch.randn(4, 3, 8), present.float(), present)[1] > 0).all())
    assert bool(torch.isfinite(expected).all())


def test_expected_errors_become_the_mean_errors():
    """The scoring rule is least at the truth, and weights are then those of measurements with these errors."""
    torch.manual_seed(0)
    layer, errors = CAS(8), torch.tensor([0.25, 1.0, 0.5])
    present = torch.ones(64, 3, dtype=torch.bool)
    optimizer = torch.optim.Adam(layer.parameters(), 3e-2)
    for _ in range(300):
        vectors = torch.zeros(64, 3, 8)
        _, weights, expected = layer(vectors, present.float(), present)
        seen = errors * torch.rand(64, 3) * 2
        loss = layer.loss(expected, seen)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.allclose(expected.exp().mean(0), errors, rtol=0.15)
    precision = errors**-2
    assert torch.allclose(weights.mean(0), precision / precision.sum(), atol=0.08)


def test_uniform_scorer_and_wrong_settings():
    present = torch.ones(4, 3, dtype=torch.bool)
    _, weights, expected = CAS(8, uniform=True)(torch.randn(4, 3, 8), present.float(), present)
    assert torch.allclose(weights, torch.full((4, 3), 1 / 3))
    assert float(CAS(8, uniform=True).loss(expected, torch.rand(4, 3))) == 0
    for make, said in (
        (lambda: CAS(8, filled_weight=2), "filled_weight: must lie"),
        (lambda: SFP(8, filling="x"), "filling: must be one of"),
        (lambda: InterAttn(8, 3), "heads: must divide"),
        (lambda: InterAttn(8, fusion="x"), "fusion: must be one of"),
    ):
        with pytest.raises(ValueError, match=said):
            make()


def test_attention_is_the_weights_when_contents_are_equal():
    layer = InterAttn(8, 4)
    layer.project.weight.data.zero_()
    weights = torch.tensor([[0.7, 0.2, 0.1]])
    found = layer.attention(torch.randn(1, 3, 8), weights)
    assert torch.allclose(found, weights[:, None, None].expand(1, 4, 3, 3), atol=1e-5)
    layer.strength_logit.data.fill_(-30.0)  # a strength of 0
    assert torch.allclose(layer.attention(torch.randn(1, 3, 8), weights), torch.full((1, 4, 3, 3), 1 / 3), atol=1e-5)


@pytest.mark.parametrize("fusion", ["attention", "concatenation"])
def test_fusion_is_finite_with_a_weight_of_zero(fusion):
    layer = InterAttn(8, 4, fusion=fusion)
    found = layer(torch.randn(2, 3, 8), torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5]]))
    assert found.shape == (2, 16)
    assert bool(torch.isfinite(found).all())
    found.square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
