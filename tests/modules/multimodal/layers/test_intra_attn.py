"""Intra-Attn: what it is without missing data, how much weight missing keys get, and that gradients reach them."""

import pytest
import torch
from torch import Tensor

from saccade.modules.multimodal.layers import IntraAttn
from saccade.modules.multimodal.layers.intra_attn import VARIANTS, floor_bias

FLOORED = ("A", "B", "C")


def attention(variant: str, floor: float = 0.1) -> IntraAttn:
    torch.manual_seed(0)
    return IntraAttn(16, 4, variant, floor).eval()


def everything(batch: int = 3, length: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(batch, length, 16), torch.ones(batch, length), torch.ones(batch, length, dtype=torch.bool)


def mass_on_missing(variant: str, floor: float, rate: float) -> float:
    """Weight on missing keys with equal content scores."""
    available = torch.ones(1, 50)
    available[:, : round(50 * rate)] = 0
    bias = floor_bias(available, torch.ones(1, 50, dtype=torch.bool), torch.tensor([floor]), variant)
    return float((bias.softmax(-1)[0, 0] * (1 - available[0])).sum())


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_nothing_missing_it_is_plain_attention(variant):
    hidden, available, valid = everything()
    plain, _ = attention("none")(hidden, available, valid)
    found, after = attention(variant)(hidden, available, valid)
    assert torch.allclose(found, plain, atol=1e-6)
    assert torch.equal(after, available)


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_everything_missing_it_is_finite_and_plain(variant):
    hidden, available, valid = everything()
    plain, _ = attention("none")(hidden, available, valid)
    found, _ = attention(variant)(hidden, available * 0, valid)
    assert bool(torch.isfinite(found).all())
    assert torch.allclose(found, plain, atol=1e-5)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_mass_on_missing_keys_has_its_closed_form(rate):
    for floor in (0.05, 0.1, 0.5):
        wanted = floor * rate / ((1 - rate) + floor * rate)
        assert mass_on_missing("A", floor, rate) == pytest.approx(wanted, abs=1e-4)
        assert mass_on_missing("C", floor, rate) == pytest.approx(wanted, abs=1e-4)
    assert mass_on_missing("B", 0.1, rate) == pytest.approx(0.1 / 1.1, abs=1e-4)
    assert mass_on_missing("none", 0.1, rate) == pytest.approx(rate, abs=1e-4)
    assert mass_on_missing("hard", 0.1, rate) == pytest.approx(0, abs=1e-6)


def test_fractions_lie_between():
    valid = torch.ones(1, 2, dtype=torch.bool)
    bias = floor_bias(torch.tensor([[1.0, 0.25]]), valid, torch.tensor([0.1]), "A")
    assert float(bias.exp()[0, 0, 1]) == pytest.approx(0.25 + 0.75 * 0.1, abs=1e-6)


def test_c_counts_filled_positions_as_half_there():
    hidden, available, valid = everything(length=20)
    available[:, :10] = 0
    layer = attention("C")
    layer.project.weight.data.zero_()  # equal scores: the mass is known
    layer.project.bias.data.zero_()
    _, after = layer(hidden, available, valid)
    mass = 0.1 * 0.5 / (0.5 + 0.1 * 0.5)
    assert torch.allclose(after[:, :10], torch.full((3, 10), 0.5 * (1 - mass)), atol=1e-5)
    assert torch.equal(after[:, 10:], available[:, 10:])


@pytest.mark.parametrize("variant", ["A", "B", "hard"])
def test_gradients_reach_missing_positions(variant):
    hidden, available, valid = everything(batch=1, length=20)
    available[:, :10] = 0
    hidden.requires_grad_()
    found, _ = attention(variant)(hidden, available, valid)
    found[:, 10:].sum().backward()  # of observed queries, so that nothing comes through the query itself
    size = hidden.grad.abs().mean(-1)[0]
    if variant == "hard":
        assert float(size[:10].max()) == 0
    else:
        assert bool((size[:10] > 0).all())
    if variant == "A":
        assert float(size[:10].mean() / size[10:].mean()) < 0.4


def equal_contents(variant: str, floor: float = 0.1) -> IntraAttn:
    """Equal scores everywhere, and what a query gets are the values themselves."""
    layer = IntraAttn(20, 4, variant, floor).eval()
    for part in (layer.project, layer.out):
        part.weight.data.zero_()
        part.bias.data.zero_()
    layer.project.weight.data[40:] = torch.eye(20)
    layer.out.weight.data = torch.eye(20)
    return layer


@pytest.mark.parametrize("lost", [2, 6, 10, 14, 18])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_layer_itself_puts_this_mass_on_missing_keys(variant, lost):
    available, valid = torch.ones(1, 20), torch.ones(1, 20, dtype=torch.bool)
    available[:, :lost] = 0
    found, _ = equal_contents(variant)(torch.eye(20)[None], available, valid)  # one-hot: the weights of every query
    rate = lost / 20
    wanted = {"hard": 0.0, "none": rate, "none+marker": rate, "B": 0.1 / 1.1}.get(
        variant, 0.1 * rate / ((1 - rate) + 0.1 * rate)
    )
    assert torch.allclose(found[0, :, :lost].sum(1), torch.full((20,), wanted), atol=1e-4)
    assert torch.allclose(found.sum(2), torch.ones(1, 20), atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "ratio"), [("A", 0.1), ("C", 0.1), ("B", 0.1 * 14 / 6), ("none", 1.0), ("hard", 0.0)]
)
def test_gradients_to_missing_positions_are_as_small_as_the_floor(variant, ratio):
    hidden, available, valid = torch.randn(2, 20, 20), torch.ones(2, 20), torch.ones(2, 20, dtype=torch.bool)
    available[:, :6] = 0
    hidden.requires_grad_()
    equal_contents(variant)(hidden, available, valid)[0].square().sum().backward()
    size = hidden.grad.abs().mean((0, 2))
    assert float(size[:6].mean() / size[6:].mean()) == pytest.approx(ratio, abs=1e-4)


def test_b_gives_no_missing_key_more_than_an_observed_one():
    """With few missing keys their budget would exceed what they would get if they were observed."""
    available, valid = torch.ones(1, 50), torch.ones(1, 50, dtype=torch.bool)
    available[:, :2] = 0
    bias = floor_bias(available, valid, torch.tensor([0.1]), "B")
    assert float(bias.max()) == 0
    assert float(bias[0, 0, 0]) == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"heads": 3}, "heads must divide width"),
        ({"heads": 0}, "heads must be at least 1"),
        ({"variant": "D"}, "variant must be one of"),
        ({"floor": 0.0}, "floor must be above 0 and below 1"),
        ({"floor": 1.0}, "floor must be above 0 and below 1"),
    ],
)
def test_wrong_settings_are_one_line(settings, said):
    with pytest.raises(ValueError, match=said) as caught:
        IntraAttn(**{"width": 16, "heads": 4, **settings})
    assert "\n" not in str(caught.value)
