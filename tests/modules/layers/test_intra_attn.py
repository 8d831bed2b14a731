"""Intra-Attn: what it is without missing data, how much weight missing keys get, and that gradients reach them."""

import pytest
import torch
from torch import Tensor

from saccade.modules.layers import IADR, IntraAttn, Stem
from saccade.modules.layers.intra_attn import VARIANTS, floor_bias

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


def test_padding_changes_nothing():
    encoder = IADR(16, 4, 2, "A").eval()
    hidden, available, valid = everything(length=12)
    valid[:, 9:] = False
    available = available * valid
    available[:, 3:5] = 0
    found = encoder(hidden, available, valid)
    other = hidden.clone()
    other[:, 9:] = 100.0
    assert torch.allclose(encoder(other, available, valid), found, atol=1e-6)
    assert torch.allclose(encoder(hidden[:, :9], available[:, :9], valid[:, :9]), found, atol=1e-6)
    order = torch.tensor([2, 0, 1])
    assert torch.allclose(encoder(hidden[order], available[order], valid[order]), found[order], atol=1e-6)


def test_floors_are_told_and_learn():
    encoder = IADR(16, 4, 2, "A", floor=0.2)
    assert encoder.floors() == pytest.approx([0.2] * 9)
    hidden, available, valid = everything(length=12)
    available[:, :6] = 0
    encoder(hidden, available, valid).square().sum().backward()
    assert encoder.blocks[0].attention.floor_logit.grad.abs().sum() > 0
    assert encoder.pool_floor_logit.grad.abs().sum() > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_takes_part(variant):
    encoder = IADR(16, 4, 1, variant)
    hidden, available, valid = everything(length=8)
    available[:, :3] = 0
    encoder(hidden, available, valid).square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"heads": 3}, "heads: must divide"),
        ({"variant": "D"}, "variant: must be one of"),
        ({"floor": 0.0}, "floor: must"),
    ],
)
def test_wrong_settings(settings, said):
    with pytest.raises(ValueError, match=said):
        IntraAttn(**{"width": 16, "heads": 4, **settings})


def test_stem_standardises_clips_and_marks():
    stem = Stem(2, 8, torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0]))
    values = torch.tensor([[[3.0, 0.5], [1180.0, 0.0], [7.0, 7.0]]])
    available = torch.tensor([[1.0, 1.0, 0.0]])
    assert torch.allclose(stem.scaled(values, available), torch.tensor([[[1.0, 0.5], [10.0, 0.0], [0.0, 0.0]]]))
    other = values.clone()
    other[:, 2] = -50.0  # nothing is read where nothing is there
    assert torch.equal(stem(values, available), stem(other, available))
    blind = Stem(2, 8, torch.zeros(2), torch.ones(2), marker=False)
    assert blind.marker is None
