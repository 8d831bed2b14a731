"""What is particular to prompt lookup; what all decoders share is tested in the folder above."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.inference import PromptLookup
from saccade.inference.drafting.ngram import NgramIndex
from tests.support.models import plant_constant, tiny_model


def searched(text: list[int], largest: int, count: int) -> list[int]:
    """What followed the longest n-gram of the text's end at its most recent place, copied token by token."""
    for size in range(min(largest, len(text) - 1), 0, -1):
        for end in range(len(text) - 1, size - 1, -1):
            if text[end - size : end] == text[-size:]:
                copied = list(text)
                for place in range(end, end + count):  # where the text ends, what was copied is copied again
                    copied.append(copied[place])
                return copied[len(text) :]
    return []


@settings(max_examples=200, deadline=None)
@given(
    parts=st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=1, max_size=8),
    largest=st.integers(1, 4),
    count=st.integers(1, 6),
)
def test_the_index_finds_what_a_search_finds(parts: list[list[int]], largest: int, count: int) -> None:
    index, text = NgramIndex(largest), []
    for part in parts:
        index.extend(part)
        text += part
        if text:
            assert index.lookup(count) == searched(text, largest, count)


def test_text_that_repeats_itself_is_accepted_whole() -> None:
    model = tiny_model()
    plant_constant(model, 7)
    out = PromptLookup(draft_length=5).generate(model, torch.tensor([[7] * 12]), max_new_tokens=13)
    assert out.tokens == [[7] * 13]
    assert out.stats.acceptance_histogram == {5: 2}
    assert out.stats.target_forwards == 3


def test_a_row_without_a_match_drafts_nothing() -> None:
    model = tiny_model()
    plant_constant(model, 7)
    out = PromptLookup().generate(model, torch.tensor([[1, 2, 3, 4, 5]]), max_new_tokens=2)
    assert out.stats.drafted == 0
