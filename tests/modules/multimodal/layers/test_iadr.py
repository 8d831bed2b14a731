"""IADR: padding, order and neighbours do not matter; floors are told and learn."""

import pytest
import torch
from torch import Tensor

from saccade.modules.multimodal.layers import IADR
from saccade.modules.multimodal.layers.intra_attn import VARIANTS


def everything(batch: int = 3, length: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(batch, length, 16), torch.ones(batch, length), torch.ones(batch, length, dtype=torch.bool)


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


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sample_does_not_depend_on_the_others(variant):
    """Neither on what is missing there; variants B and C count for each sample by itself."""
    encoder = IADR(16, 4, 2, variant).eval()
    hidden, available, valid = everything(length=12)
    available[:, 4:7] = 0
    found = encoder(hidden, available, valid)
    available[1] = 0
    available[2, 8:] = 0
    assert torch.allclose(encoder(hidden, available, valid)[0], found[0], atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sequence_without_positions_says_nothing(variant):
    encoder = IADR(16, 4, 1, variant).eval()
    hidden, available, valid = everything(length=6)
    valid[0] = False
    found = encoder(hidden, available * valid, valid)
    assert float(found[0].detach().abs().max()) == 0, "what was read is padding"
    assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize("variant", ["A", "B", "C"])
def test_the_pooling_has_the_floor_too(variant):
    encoder = IADR(16, 4, 1, variant, floor=0.1).eval()
    encoder.pool.weight.data.zero_()  # equal scores
    valid = torch.ones(1, 16, dtype=torch.bool)
    available = torch.ones(1, 16)
    available[:, :8] = 0
    pooled = encoder.pooled(torch.eye(16)[None], available, valid)  # one-hot positions: the weights themselves
    assert float(pooled[0, :8].sum()) == pytest.approx(0.1 / 1.1, abs=1e-5)
