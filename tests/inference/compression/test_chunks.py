"""Retrieval of chunks: bounds, representatives, and fetching only what is new."""

from __future__ import annotations

import pytest
import torch

from saccade.inference.compression.chunks import (
    chunk_bounds,
    chunk_scores,
    pinned_chunks,
    replace_slots,
    representatives,
    top_chunks,
)
from tests.inference.compression.compressors import prompt


def test_chunks_do_not_cross_a_border() -> None:
    _, segments = prompt(40, ((6, 20), (20, 31)))
    assert chunk_bounds(segments, 8, (2, 36)).tolist() == [0, 2, 6, 14, 20, 28, 31, 36, 40]
    assert chunk_bounds(segments, 8, (0, 40, 44)).tolist() == [0, 6, 14, 20, 28, 31, 39, 40]
    assert chunk_bounds(torch.full((5,), -1), 8).tolist() == [0, 5]


def test_chunks_of_pins_are_known() -> None:
    bounds = torch.tensor([0, 2, 6, 14, 20])
    assert pinned_chunks(
        [torch.tensor([0, 1, 14, 15, 16, 17, 18, 19]), torch.arange(2, 6)], bounds[:-1], 20
    ).tolist() == [[True, False, False, True], [False, True, False, False]]


def test_the_mean_stands_for_a_chunk() -> None:
    keys = torch.randn(2, 3, 11, 4, generator=torch.Generator().manual_seed(0))
    bounds = torch.tensor([0, 4, 5, 9, 11])
    mean = representatives(keys, bounds, 4)
    for chunk, (start, end) in enumerate([(0, 4), (4, 5), (5, 9), (9, 11)]):
        torch.testing.assert_close(mean[:, :, chunk], keys[:, :, start:end].mean(2))


def test_the_bound_of_minmax_is_never_below_a_product() -> None:
    generator = torch.Generator().manual_seed(0)
    violations = products = 0
    for chunk in (1, 3, 16):
        keys = torch.randn(4, 480, 32, generator=generator, dtype=torch.double)
        query = torch.randn(4, 20, 32, generator=generator, dtype=torch.double)  # 20 query heads of 4 KV heads
        bounds = torch.arange(0, 480 + chunk, chunk)
        low, high = representatives(keys, bounds, chunk, "minmax").unbind(-3)
        exact = query @ keys.transpose(1, 2)
        for head in range(20):
            bound = chunk_scores(query[:, head : head + 1], torch.stack([low, high], -3))
            violations += int((exact[:, head] > bound.repeat_interleave(chunk, -1) + 1e-12).sum())
        products += exact.numel()
    assert products > 100_000
    assert violations == 0


def test_a_chunk_counts_by_the_query_head_that_wants_it_most() -> None:
    generator = torch.Generator().manual_seed(0)
    query, rep = torch.randn(2, 7, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)
    torch.testing.assert_close(chunk_scores(query, rep), torch.einsum("hgd,hmd->hgm", query, rep).amax(1))
    high = rep + torch.rand(2, 5, 8, generator=generator)
    bound = torch.maximum(query[:, :, None] * rep[:, None], query[:, :, None] * high[:, None]).sum(-1).amax(1)
    torch.testing.assert_close(chunk_scores(query, torch.stack([rep, high], -3)), bound)


@pytest.mark.parametrize("kind", ["mean", "minmax"])
def test_chunks_with_the_largest_attention_are_found(kind) -> None:
    """Keys change slowly along the sequence, as those of neighbouring patches do; a chance hit would be 8 in 64."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.zeros(32, 1024, 64)
    for place in range(1024):
        keys[:, place] = 0.8 * keys[:, place - 1] + 0.6 * torch.randn(32, 64, generator=generator)
    centre = torch.randint(0, 1024, (32,), generator=generator)
    query = (2 * keys[torch.arange(32), centre] + torch.randn(32, 64, generator=generator))[:, None]
    oracle = (query @ keys.transpose(1, 2)).softmax(-1)[:, 0].unflatten(-1, (64, 16)).sum(-1)
    bounds = torch.arange(0, 1040, 16)
    found = top_chunks(chunk_scores(query, representatives(keys, bounds, 16, kind)), 8)
    best = oracle.argmax(-1, keepdim=True)
    recall = float((found == best).any(-1).float().mean())
    assert recall > 0.95, recall


def test_pins_are_not_taken() -> None:
    scores, blocked = torch.tensor([[5.0, 4, 3, 2]]), torch.tensor([[True, False, False, True]])
    assert top_chunks(scores, 2, blocked).tolist() == [[1, 2]]


def test_the_same_query_fetches_nothing_again() -> None:
    slots, fetch = replace_slots(torch.full((2, 3), -1), torch.tensor([[7, 1, 4], [0, 2, 5]]))
    assert slots.tolist() == [[7, 1, 4], [0, 2, 5]]
    assert fetch.all()
    again, fetch = replace_slots(slots, torch.tensor([[4, 7, 1], [5, 0, 2]]))
    assert again.equal(slots)
    assert not fetch.any()


def test_only_new_chunks_move_and_kept_ones_stay_in_place() -> None:
    slots = torch.tensor([[7, 1, 4, 9]])
    new, fetch = replace_slots(slots, torch.tensor([[4, 8, 1, 6]]))
    assert new.tolist() == [[8, 1, 4, 6]]
    assert fetch.tolist() == [[True, False, False, True]]


def test_an_empty_slot_is_filled_first() -> None:
    slots = torch.tensor([[7, 1, -1, 9]])
    new, fetch = replace_slots(slots, torch.tensor([[3, 4]]))
    assert new.tolist() == [[4, 1, 3, 9]]
    assert fetch.tolist() == [[True, False, True, False]]
    new, fetch = replace_slots(slots, torch.tensor([[-1, 1]]))
    assert new.equal(slots)
    assert not fetch.any()


def test_delta_fetching_keeps_the_wanted_set_and_moves_no_more_than_fetching_all() -> None:
    generator = torch.Generator().manual_seed(0)
    slots, moved, naive = torch.full((5, 12), -1), 0, 0
    centre = torch.rand(5, 40, generator=generator)
    for _ in range(60):
        centre = centre + 0.1 * torch.rand(5, 40, generator=generator)
        wanted = top_chunks(centre, 8)
        slots, fetch = replace_slots(slots, wanted)
        moved, naive = moved + int(fetch.sum()), naive + wanted.numel()
        for row in range(5):
            assert set(wanted[row].tolist()) <= set(slots[row].tolist())
            assert len(set(slots[row].tolist()) - {-1}) == int((slots[row] >= 0).sum()), "a chunk in two slots"
    assert moved < naive / 2
