"""CAS: weights that sum to 1, expected errors that become the true ones."""

import itertools

import pytest
import torch

from saccade.modules.layers import CAS, cas

SUBSETS = [kept for size in (1, 2, 3) for kept in itertools.combinations(range(3), size)]


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


def trained(layer, vectors, seen, steps=300, rate=3e-2):
    """The scorer after it has seen errors `seen(results)` of what it says of `vectors`; weights and expected errors."""
    present = torch.ones(vectors.shape[:2], dtype=torch.bool)
    optimizer = torch.optim.Adam(layer.parameters(), rate)
    for _ in range(steps):
        results, weights, expected = layer(vectors, present.float(), present)
        loss = layer.loss(expected, seen(results.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weights.detach(), expected.detach()


@pytest.mark.parametrize(("outputs", "power"), [(1, 2), (5, 1)])
def test_expected_errors_become_the_mean_errors(outputs, power):
    """The scoring rule is least at the truth; weights are one over the variance, which a cross-entropy is already."""
    torch.manual_seed(0)
    errors = torch.tensor([0.25, 1.0, 0.5])
    weights, expected = trained(CAS(8, outputs), torch.zeros(64, 3, 8), lambda results: errors * torch.rand(64, 3) * 2)
    assert torch.allclose(expected.exp().mean(0), errors, rtol=0.15)
    precision = errors**-power
    assert torch.allclose(weights.mean(0), precision / precision.sum(), atol=0.08)


@pytest.mark.parametrize("outputs", [1, 5])
def test_a_result_far_from_the_others_can_be_doubted(outputs, monkeypatch):
    """Errors that only a comparison with the other modalities' results tells, on vectors that were never seen."""
    told = told_of_odd_ones(outputs)
    assert told > 0.7
    monkeypatch.setattr(cas, "_signs", lambda results: results.new_zeros(*results.shape[:2], 3))
    assert told_of_odd_ones(outputs) < told - 0.2


def told_of_odd_ones(outputs):
    """Correlation of expected errors with errors that are a result's distance from the others'."""
    torch.manual_seed(0)
    layer = CAS(8, outputs)
    for own in layer.results:
        own.load_state_dict(layer.results[0].state_dict())
        own.requires_grad_(False)

    def drawn():
        # all modalities have the same vector, but one of them another one
        vectors = torch.randn(256, 1, 8).repeat(1, 3, 1) * 3
        vectors[torch.nn.functional.one_hot(torch.randint(3, (256,)), 3).bool()] = torch.randn(256, 8) * 3
        return vectors

    def away(results):
        spoken = results if outputs == 1 else results.softmax(-1)
        others = (spoken.sum(1, keepdim=True) - spoken) / 2
        return (spoken - others).abs().sum(-1) + 0.05

    trained(layer, drawn(), away, steps=400, rate=1e-2)
    present = torch.ones(256, 3, dtype=torch.bool)
    with torch.no_grad():
        results, _, expected = layer(drawn(), present.float(), present)
    return float(torch.corrcoef(torch.stack([expected.exp().flatten(), away(results).flatten()]))[0, 1])


def test_uniform_scorer_says_nothing():
    present = torch.ones(4, 3, dtype=torch.bool)
    _, weights, expected = CAS(8, uniform=True)(torch.randn(4, 3, 8), present.float(), present)
    assert torch.allclose(weights, torch.full((4, 3), 1 / 3))
    assert float(CAS(8, uniform=True).loss(expected, torch.rand(4, 3))) == 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: CAS(8, filled_weight=2), "filled_weight: must lie"),
        (lambda: CAS(8, filled_weight=-0.1), "filled_weight: must lie"),
    ],
)
def test_wrong_settings_are_one_line(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)
