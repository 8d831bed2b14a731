"""Visual relevance: a mean of the largest cosines, whatever the scale, the order, the chunks and the precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saccade.inference.verification.relaxed import visual_relevance


def states(places: int = 6, tokens: int = 50, dim: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(places, dim, generator=generator), torch.randn(tokens, dim, generator=generator)


def cosines(text: Tensor, visual: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(text[:, None].double(), visual[None].double(), dim=-1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 80), st.integers(1, 80), st.integers(0, 2**32))
def test_it_is_the_mean_of_the_largest_cosines_in_chunks_of_any_size(
    tokens: int, neighbours: int, chunk: int, seed: int
) -> None:
    text, visual = states(tokens=tokens, seed=seed)
    expected = cosines(text, visual).sort(descending=True).values[:, :neighbours].mean(1)
    found = visual_relevance(text, visual, neighbours, chunk)
    assert found.shape == (6,)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=2e-6)


def test_one_neighbour_is_the_largest_and_all_are_the_mean() -> None:
    text, visual = states()
    exact = cosines(text, visual).float()
    torch.testing.assert_close(visual_relevance(text, visual, 1), exact.max(1).values)
    torch.testing.assert_close(visual_relevance(text, visual, 50), exact.mean(1))
    assert torch.equal(visual_relevance(text, visual, 51), visual_relevance(text, visual, 50))


def test_scale_and_order_do_not_matter() -> None:
    text, visual = states()
    base = visual_relevance(text, visual)
    generator = torch.Generator().manual_seed(1)
    lengths = 10 ** (6 * torch.rand(50, 1, generator=generator) - 3)
    torch.testing.assert_close(visual_relevance(1e-3 * text, lengths * visual), base)
    torch.testing.assert_close(visual_relevance(text, visual[torch.randperm(50, generator=generator)]), base)
    # and each place is scored alone
    torch.testing.assert_close(visual_relevance(text[2:3], visual), base[2:3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_states_are_compared_in_full(dtype: torch.dtype) -> None:
    text, visual = states(dim=2048, tokens=300)
    text, visual = (300 * text).to(dtype), (300 * visual).to(dtype)  # squares that float16 cannot hold
    expected = cosines(text, visual).sort(descending=True).values[:, :10].mean(1)
    torch.testing.assert_close(visual_relevance(text, visual, chunk=64), expected.float(), rtol=0, atol=1e-6)


def test_a_text_state_among_the_video_is_relevant_and_zero_is_not() -> None:
    text, visual = states(dim=64)
    text[0], text[1] = visual[7], 0.0
    found = visual_relevance(text, visual, 1)
    assert found[0].item() == pytest.approx(1.0, abs=1e-6)
    assert found[1].item() == 0.0
    assert (found[2:] < 0.9).all()


def test_wrong_shapes_and_settings() -> None:
    text, visual = states()
    for wrong in ((text[0], visual), (text, visual[:, :3]), (text, visual[None])):
        with pytest.raises(ValueError, match="states and visual_states must be"):
            visual_relevance(*wrong)
    with pytest.raises(ValueError, match="at least one video token"):
        visual_relevance(text, visual[:0])
    with pytest.raises(ValueError, match="neighbours must be at least 1"):
        visual_relevance(text, visual, 0)
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        visual_relevance(text, visual, chunk=0)
    assert visual_relevance(text[:0], visual).shape == (0,)
