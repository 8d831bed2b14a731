"""The noise of sampling: the Triton kernel against its reference in torch."""

import pytest
import torch

from saccade.common.counters import key_of
from saccade.inference.noise import gumbel_noise, reference_gumbel_noise
from tests.support.triton_mode import DEVICE, triton_gumbel_noise


@pytest.mark.parametrize(("rows", "places", "vocabulary"), [(1, 1, 3), (3, 2, 1024), (2, 5, 2100)])
def test_noise(rows, places, vocabulary):
    keys = torch.tensor([key_of(4, row) for row in range(rows)])
    positions = torch.arange(7, 7 + places) + torch.arange(rows)[:, None] * 1000
    right = reference_gumbel_noise(keys, positions, vocabulary)
    found = triton_gumbel_noise(keys.to(DEVICE), positions.to(DEVICE), vocabulary).cpu()
    torch.testing.assert_close(found, right, rtol=1e-13, atol=1e-14)
    assert torch.equal(gumbel_noise(keys, positions, vocabulary), right)


def test_the_tails_are_as_exact_as_the_rest():
    keys, positions = torch.tensor([key_of(0, 0)]), torch.arange(40)[None]
    right = reference_gumbel_noise(keys, positions, 4000)
    found = triton_gumbel_noise(keys.to(DEVICE), positions.to(DEVICE), 4000).cpu()
    for place in (right.argmax(), right.argmin()):
        assert float(found.flatten()[place]) == pytest.approx(float(right.flatten()[place]), rel=1e-14)
    assert right.max() > 11
    assert right.min() < -2.3
