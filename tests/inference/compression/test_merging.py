"""Deleted keys and values are averaged into the most similar kept ones."""

from __future__ import annotations

import pytest
import torch

from saccade.inference.compression import merging
from saccade.inference.compression.merging import Merging

KEYS = torch.tensor([[1.0, 0], [0, 1], [3, 0.1], [0.2, 2], [-1, 0]])
KEPT = torch.tensor([0, 1])


def test_each_goes_to_the_kept_key_with_the_highest_cosine() -> None:
    assert Merging().targets(KEYS, KEPT).tolist() == [0, 1, 0, 1, 1]
    assert Merging(torch.tensor([0, 1, 1, 0, 2])).targets(KEYS, KEPT).tolist() == [0, 1, 1, 0, -1]
    assert Merging().targets(KEYS, KEPT[:0]).tolist() == [-1] * 5


@pytest.mark.parametrize("piece", [1 << 23, 2])
def test_what_is_merged_weighs_half(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(merging, "_PIECE", piece)
    values = torch.arange(5.0)[:, None]
    keys, merged = Merging().merge(KEYS, values, KEPT)
    torch.testing.assert_close(keys[0], (KEYS[0] + (KEYS[2] + KEYS[0]) / 2) / 2)
    torch.testing.assert_close(keys[1], (KEYS[1] + (KEYS[3] + KEYS[1]) / 2 + (KEYS[4] + KEYS[1]) / 2) / 3)
    torch.testing.assert_close(merged, torch.tensor([[0.5], [(1 + 2 + 2.5) / 3]]))


def test_what_has_no_kept_key_of_its_group_is_dropped() -> None:
    keys, values = Merging(torch.tensor([0, 1, 2, 2, 2])).merge(KEYS, KEYS, KEPT)
    assert keys.equal(KEYS[:2])
    assert values.equal(KEYS[:2])


def test_types_are_kept() -> None:
    keys, values = Merging().merge(KEYS.bfloat16(), KEYS.double(), KEPT)
    assert (keys.dtype, values.dtype) == (torch.bfloat16, torch.float64)
