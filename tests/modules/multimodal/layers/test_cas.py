"""CAS: weights that sum to 1, expected errors that become the true ones."""

import itertools

import pytest
import torch

from saccade.modules.multimodal.layers import CAS

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


@pytest.mark.parametrize(("outputs", "power"), [(1, 2), (5, 1)])
def test_expected_errors_become_the_mean_errors(outputs, power):
    """The scoring rule is least at the truth; weights are one over the variance, which a cross-entropy is already."""
    torch.manual_seed(0)
    layer, errors = CAS(8, outputs), torch.tensor([0.25, 1.0, 0.5])
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
    precision = errors**-power
    assert torch.allclose(weights.mean(0), precision / precision.sum(), atol=0.08)


def test_uniform_scorer_says_nothing():
    present = torch.ones(4, 3, dtype=torch.bool)
    _, weights, expected = CAS(8, uniform=True)(torch.randn(4, 3, 8), present.float(), present)
    assert torch.allclose(weights, torch.full((4, 3), 1 / 3))
    assert float(CAS(8, uniform=True).loss(expected, torch.rand(4, 3))) == 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: CAS(8, filled_weight=2), "filled_weight must be between 0 and 1"),
        (lambda: CAS(8, filled_weight=-0.1), "filled_weight must be between 0 and 1"),
    ],
)
def test_wrong_settings_are_one_line(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)
