"""What is observed of a prompt: which rows, and their exact attention."""

from __future__ import annotations

import pytest
import torch

from saccade.inference.compression import observation
from saccade.inference.compression.observation import Observation, attention_scores, observed_rows
from tests.inference.compression.compressors import prompt
from tests.support.triton_mode import DEVICE, triton_attention_scores


@pytest.mark.parametrize(
    ("images", "window", "rows"),
    [
        (((10, 60),), 8, (92, 100)),  # the last rows of the question
        (((10, 97),), 8, (97, 100)),  # a question of three tokens
        (((10, 40), (50, 95)), 64, (95, 100)),  # never text between images
        (((10, 40), (60, 100)), 8, (52, 60)),  # no text behind the last image: the last text before it
        (((10, 40), (45, 100)), 8, (40, 45)),
        (((0, 100),), 8, (92, 100)),  # no text at all
        ((), 8, (92, 100)),  # plain text
        ((), 400, (0, 100)),
        ((), 0, (100, 100)),
    ],
)
def test_rows_are_the_text_behind_the_images(images, window, rows) -> None:
    assert observed_rows(100, prompt(100, images)[0], window) == rows


@pytest.mark.parametrize("piece", [1 << 23, 300, 1])  # all at once, some heads or rows at a time, one row at a time
def test_scores_are_the_causal_softmax_of_the_rows(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(observation, "_PIECE", piece)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(6, 5, 8, generator=generator) * 3
    keys = torch.randn(2, 20, 8, generator=generator)
    mean, alive, last = attention_scores(query, keys, 12, 0.3, alive_share=0.05, late=2)
    weights = torch.einsum("hgrd,hnd->hgrn", query.view(2, 3, 5, 8).double(), keys.double()) * 0.3
    place, row = torch.arange(20), torch.arange(12, 17)[:, None]
    weights = weights.masked_fill(place > row, -torch.inf).softmax(-1)
    torch.testing.assert_close(mean.double(), weights.mean((1, 2)), atol=1e-6, rtol=1e-5)
    living = (weights >= 0.05 * weights.amax(-1, keepdim=True)).sum(-1) / (row[:, 0] + 1).double()
    torch.testing.assert_close(alive.double(), living.mean((1, 2)), atol=1e-6, rtol=1e-5)
    assert mean[:, 17:].eq(0).all()  # no row sees these
    torch.testing.assert_close(last.double(), weights[:, :, 3:].mean((1, 2)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("late", [0, 2, 9])
@pytest.mark.parametrize(
    ("first", "rows", "dtype"), [(300, 9, torch.float32), (0, 20, torch.float32), (60, 64, torch.bfloat16)]
)
def test_the_kernels_compute_what_the_reference_computes(first: int, rows: int, dtype: torch.dtype, late: int) -> None:
    generator = torch.Generator().manual_seed(1)
    # as a piece of a prompt and a row of a cache lie in memory
    query = (torch.randn(rows + 3, 6, 20, generator=generator) * 3).to(dtype).transpose(0, 1)[:, 3:]
    keys = torch.randn(2, first + rows + 7, 20, generator=generator).to(dtype)[:, : first + rows]
    right = attention_scores(query, keys, first, 0.3, alive_share=0.05, late=late)
    found = triton_attention_scores(query.to(DEVICE), keys.to(DEVICE), first, 0.3, 0.05, late)
    for mine, reference in zip(found, right, strict=True):
        torch.testing.assert_close(mine.cpu(), reference, atol=1e-5, rtol=1e-4)
    if late:  # one pass gives what a second one over the last rows gives
        begin = first + rows - late
        apart = triton_attention_scores(query[:, rows - late :].to(DEVICE), keys.to(DEVICE), begin, 0.3, 0.05)[0]
        torch.testing.assert_close(found[2], apart, atol=1e-5, rtol=1e-4)


def test_bytes_and_scores_do_not_depend_on_the_query_heads() -> None:
    generator = torch.Generator().manual_seed(0)
    query, keys = torch.randn(4, 3, 8, generator=generator), torch.randn(4, 9, 8, generator=generator)
    once = attention_scores(query, keys, 6, 0.3)
    many = attention_scores(query.repeat_interleave(7, 0), keys, 6, 0.3)
    assert many[0].shape == (4, 9)
    torch.testing.assert_close(once, many)


def test_half_precision_is_computed_in_float32() -> None:
    query, keys = torch.full((1, 1, 4), 3.0), torch.linspace(0, 1, 40).view(1, 10, 4)
    low = attention_scores(query.bfloat16(), keys.bfloat16(), 9, 1.0)[0]
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, attention_scores(query, keys.bfloat16().float(), 9, 1.0)[0])


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^query must have rows and a multiple of 2 heads, got shape \(3, 1, 4\): "):
        attention_scores(torch.ones(3, 1, 4), torch.ones(2, 5, 4), 4, 1.0)


def test_an_observation_of_nothing_knows_the_sizes() -> None:
    visual, segments = prompt(30, ((5, 20),))
    seen = Observation.unobserved([2, 1], visual, segments)
    assert (seen.length, seen.heads, seen.units) == (30, [2, 1], 3)
    assert seen.by_layer([1, 2, 3]) == [[1, 2], [3]]
