"""SFP: what it leaves alone, what it reads, and that it learns what is shared."""

import itertools
import math

import pytest
import torch

from saccade.modules.multimodal.layers import SFP
from saccade.modules.multimodal.layers.sfp import FILLINGS, EncodedModality, Guess, filled, filling_loss

SUBSETS = [kept for size in (1, 2, 3) for kept in itertools.combinations(range(3), size)]


def sequences(
    batch: int = 4, width: int = 8, kept: tuple[int, ...] = (0, 1, 2), rate: float = 0.0
) -> list[EncodedModality]:
    draw = torch.Generator().manual_seed(1)
    made = []
    for place, length in enumerate((7, 9, 5)):
        content = torch.ones(batch, length, dtype=torch.bool)
        content[:, -1] = False
        available = content.float() * (torch.rand(batch, length, generator=draw) >= rate)
        made.append(
            EncodedModality(torch.randn(batch, length, width, generator=draw), available * (place in kept), content)
        )
    return made


@pytest.mark.parametrize("filling", FILLINGS)
@pytest.mark.parametrize("kept", [(), *SUBSETS])
def test_filling_is_finite_and_leaves_what_is_there(filling, kept):
    layer = SFP(8, 4, filling=filling)
    given = sequences(kept=kept, rate=0.4)
    for sequence, guess in zip(given, layer(given), strict=True):
        predicted = guess.positions
        found = filled(sequence, predicted)
        assert found.shape == sequence.hidden.shape
        assert bool(torch.isfinite(found).all())
        there = sequence.available == 1
        assert torch.equal(found[there], sequence.hidden[there])
        assert torch.equal(found[~there], predicted[~there])


def test_a_sample_does_not_depend_on_the_others():
    layer = SFP(8, 4).eval()
    given = sequences(rate=0.4)
    mixed = [EncodedModality(item.hidden, item.available.clone(), item.content) for item in given]
    mixed[0].available[1:] = 0
    mixed[2].available[2:] = 0
    for one, other in zip(layer(given), layer(mixed), strict=True):
        assert torch.allclose(one.positions[0], other.positions[0], atol=1e-6)


def test_missing_positions_of_the_others_are_not_read():
    layer = SFP(8, 4).eval()
    given = sequences(rate=0.5)
    changed = [EncodedModality(item.hidden.clone(), item.available, item.content) for item in given]
    changed[1].hidden[changed[1].available == 0] = 99.0
    assert torch.allclose(layer(given)[0].positions, layer(changed)[0].positions, atol=1e-6)
    changed[1].hidden[changed[1].available == 1] = 99.0
    assert not torch.allclose(layer(given)[0].positions, layer(changed)[0].positions, atol=1e-3)


def test_moments_agree_between_modalities_of_other_lengths():
    given = sequences()
    with_cls = given[0].content.clone()
    with_cls[:, 0] = False
    shifted = EncodedModality(given[0].hidden, given[0].available, with_cls)
    assert float(given[0].moments[0, 0]) == float(shifted.moments[0, 1]) == float(given[1].moments[0, 0]) == 0
    assert float(given[0].moments[0, 3]) == pytest.approx(float(given[1].moments[0, 4]))  # the middle of 6 and of 8


def test_filling_loss_counts_what_is_missing_but_known():
    whole, part = sequences(), sequences(kept=(1, 2))
    right = [Guess(item.hidden) for item in whole]
    assert float(filling_loss(right, part, whole)) == 0
    wrong = [Guess(item.hidden + 2) for item in whole]
    assert float(filling_loss(wrong, part, whole)) == pytest.approx(4 / 3)  # one of three modalities
    assert float(filling_loss(wrong, whole, whole)) == 0


def test_filling_learns_what_is_shared():
    """Text is a function of the sound: the filled text must find its own among a hundred, far above chance."""
    torch.manual_seed(0)
    layer, turn = SFP(16, 4), torch.randn(16, 16) / 4

    def draw(count: int) -> tuple[list[EncodedModality], list[EncodedModality]]:
        sound = torch.randn(count, 6, 16)
        content = torch.ones(count, 6, dtype=torch.bool)
        there, gone = torch.ones(count, 6), torch.zeros(count, 6)
        text = torch.tanh(sound @ turn)
        other = EncodedModality(torch.randn(count, 6, 16), gone, content)
        whole = [EncodedModality(text, there, content), EncodedModality(sound, there, content), other]
        return [EncodedModality(text * 0, gone, content), whole[1], other], whole

    optimizer = torch.optim.Adam(layer.parameters(), 3e-3)
    for _ in range(250):
        part, whole = draw(64)
        loss = filling_loss(layer(part), part, whole)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    part, whole = draw(100)
    layer.requires_grad_(False)
    guess, truth = layer(part)[0].positions.mean(1), whole[0].hidden.mean(1)
    scores = torch.nn.functional.normalize(guess, dim=1) @ torch.nn.functional.normalize(truth, dim=1).T
    assert float((scores.argmax(1) == torch.arange(100)).float().mean()) > 0.5
    assert float((guess - truth).square().mean()) < 0.5 * float((truth - truth.mean(0)).square().mean())


def test_only_the_other_modalities_are_read():
    """A position's guess would be worth nothing as training if it could look at the position itself."""
    layer, given = SFP(8, 4).eval(), sequences()
    changed = [EncodedModality(item.hidden.clone(), item.available, item.content) for item in given]
    changed[0].hidden[:, 2] = 99.0
    one, other = layer(given), layer(changed)
    there = torch.arange(7) != 2  # the position's own encoding is part of its question
    assert torch.allclose(one[0].positions[:, there], other[0].positions[:, there], atol=1e-6)
    assert not torch.allclose(one[1].positions, other[1].positions, atol=1e-3)


def test_all_patterns_in_one_batch_are_those_patterns_alone():
    layer = SFP(8, 4).eval()
    apart = [sequences(batch=8, kept=kept, rate=0.3) for kept in [(), *SUBSETS]]
    together = [
        EncodedModality(
            apart[0][place].hidden,
            torch.stack([apart[row][place].available[row] for row in range(8)]),
            apart[0][place].content,
        )
        for place in range(3)
    ]
    for place, mixed in enumerate(layer(together)):
        for row in range(8):
            assert torch.allclose(mixed.positions[row], layer(apart[row])[place].positions[row], atol=1e-6)


def test_a_fraction_is_a_mixture():
    hidden, guess = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    part = EncodedModality(hidden, torch.tensor([[0.25, 1.0, 0.0]] * 2), torch.ones(2, 3, dtype=torch.bool))
    found = filled(part, guess)
    assert torch.allclose(found[:, 0], 0.25 * hidden[:, 0] + 0.75 * guess[:, 0], atol=1e-6)
    assert torch.equal(found[:, 1], hidden[:, 1])


def test_the_mean_is_learned_in_training_only():
    layer, given = SFP(8, 4, filling="mean"), sequences(rate=0.3)
    layer.eval()(given)
    assert float(layer.mean.abs().sum()) == 0
    layer.train()
    for _ in range(600):
        layer(given)
    share = (given[0].available * given[0].content)[..., None]
    assert torch.allclose(layer.mean[0], (given[0].hidden * share).sum((0, 1)) / share.sum((0, 1)), atol=0.02)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SFP(8, filling="x"), "filling must be one of"),
        (lambda: SFP(8, heads=3), "heads must divide width"),
    ],
)
def test_wrong_settings_are_one_line(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_alignment_is_chance_for_noise_and_small_for_what_is_right():
    torch.manual_seed(0)
    layer, whole = SFP(32, 4), sequences(batch=32, width=32)
    exact = [Guess(item.hidden, layer.shared_features(place, item)) for place, item in enumerate(whole)]
    noise = [Guess(item.hidden, torch.randn_like(item.hidden)) for item in whole]
    assert float(layer.alignment(exact, whole)) < 0.5 < math.log(32) - 0.5 < float(layer.alignment(noise, whole))


def test_alignment_leaves_out_clips_that_have_nothing():
    layer, whole = SFP(8, 4), sequences(batch=6)
    for item in whole:
        item.available[4:] = 0
    guesses = layer(whole)
    kept = [EncodedModality(item.hidden[:4], item.available[:4], item.content[:4]) for item in whole]
    fewer = [Guess(guess.positions[:4], guess.shared[:4]) for guess in guesses]
    assert float(layer.alignment(guesses, whole)) == pytest.approx(float(layer.alignment(fewer, kept)), abs=1e-5)
    for item in whole:
        item.available[:] = 0
    assert float(layer.alignment(guesses, whole)) == 0


def test_alignment_reaches_the_complete_samples():
    layer, whole = SFP(8, 4), sequences(batch=6)
    leaves = [EncodedModality(item.hidden.requires_grad_(), item.available, item.content) for item in whole]
    layer.alignment(layer(sequences(batch=6, kept=(0,))), leaves).backward()
    assert all(float(item.hidden.grad.abs().sum()) > 0 for item in leaves)
