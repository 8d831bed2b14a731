"""Indexes of texts find what a search finds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.inference.drafting.retrieval_store.ngram_index import NgramIndex
from saccade.inference.drafting.retrieval_store.retrieval_store import (
    RELEASED_DUMMY,
    IndexKind,
    RetrievalRules,
    RetrievalStore,
)
from saccade.inference.drafting.retrieval_store.suffix_automaton import SuffixAutomaton
from saccade.inference.drafting.retrieval_store.text_index import BREAK, TextIndex

PARTS = st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=1, max_size=8)


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
@given(parts=PARTS, largest=st.integers(1, 4), count=st.integers(1, 6))
def test_ngrams_find_what_a_search_finds(parts: list[list[int]], largest: int, count: int) -> None:
    store, text = RetrievalStore(RetrievalRules("ngram", largest)), []
    for part in parts:
        store.extend(part)
        text += part
        if text:
            assert store.find(count) == searched(text, largest, count)


@settings(max_examples=200, deadline=None)
@given(parts=PARTS, count=st.integers(1, 6))
def test_the_automaton_finds_what_a_search_finds(parts: list[list[int]], count: int) -> None:
    store, text = RetrievalStore(RetrievalRules("automaton")), []
    for part in parts:
        store.extend(part)
        text += part
        if text:
            assert store.find(count) == searched(text, len(text), count)


def longest_end(text: list[int], tail: list[int]) -> int:
    """Size of the longest end of ``text + tail`` that occurs in ``text``, before its own place if there is no tail."""
    whole, known = [*text, *tail], text if tail else text[:-1]
    for size in range(len(whole) - (not tail), 0, -1):
        if any(known[at : at + size] == whole[-size:] for at in range(len(known) - size + 1)):
            return size
    return 0


@settings(max_examples=300, deadline=None)
@given(
    segments=st.lists(st.lists(st.integers(0, 2), max_size=9), max_size=4), tail=st.lists(st.integers(0, 2), max_size=5)
)
def test_no_match_crosses_segments(segments: list[list[int]], tail: list[int]) -> None:
    automaton, ngrams = SuffixAutomaton(), NgramIndex(3)
    for segment in segments:
        for index in (automaton, ngrams):
            index.extend(segment)
            index.end_segment()
    sizes = [longest_in(segment, tail) for segment in segments]
    assert automaton.match(tail)[0] == max(sizes, default=0)
    for index in (automaton, ngrams):
        size, end = index.match(tail)
        if size:
            assert index.tokens[end - size : end] == tail[-size:]
            followers = index.followers(end, 20, tail)
            assert index.tokens[end : end + len(followers) + 1] == [*followers, BREAK]


def longest_in(segment: list[int], tail: list[int]) -> int:
    """Size of the longest end of ``tail`` that stands in a segment."""
    for size in range(len(tail), 0, -1):
        if any(segment[at : at + size] == tail[-size:] for at in range(len(segment) - size + 1)):
            return size
    return 0


@settings(max_examples=300, deadline=None)
@given(text=st.lists(st.integers(0, 2), min_size=1, max_size=30), tail=st.lists(st.integers(0, 3), max_size=5))
def test_a_tail_is_looked_up_and_not_indexed(text: list[int], tail: list[int]) -> None:
    index = SuffixAutomaton()
    index.extend(text)
    assert index.match(tail)[0] == longest_end(text, tail)
    assert index.tokens == text
    assert index.match()[0] == longest_end(text, [])


@pytest.mark.parametrize("kind", ["automaton", "ngram"])
def test_the_most_recent_match_and_what_there_is_behind_it(kind: IndexKind) -> None:
    store = RetrievalStore(RetrievalRules(kind))
    store.extend([1, 2, 5, 1, 2, 6, 1, 2])
    assert store.find(2) == [6, 1]
    store = RetrievalStore(RetrievalRules(kind))
    store.extend([1, 2, 3, 4, 1, 2])
    assert store.find(10, [3]) == [4, 1, 2, 3, 4, 1, 2, 3, 4, 1]  # the text's end is followed by what is drafted
    assert store.find(0) == []


def test_the_least_size_of_a_match() -> None:
    store = RetrievalStore(RetrievalRules("automaton", min_ngram=2))
    store.extend([1, 2, 3, 2])
    assert (store.match(), store.find(3)) == (0, [])
    assert store.find(2, [3]) == [2, 3]


def test_rejected_drafts_are_found_where_the_text_has_no_longer_match() -> None:
    store = RetrievalStore(RetrievalRules("ngram"))
    store.extend([1, 2, 9, 2])
    assert store.find(2) == [9, 2]
    store.reject([1, 2, 7, 8])
    assert store.find(2) == [9, 2]  # of the same size: the text counts first
    assert store.find(9, [7]) == [8]  # the end of a rejected draft is the end
    store.reject([9, 2, 4, 4])
    assert store.find(2) == [4, 4]
    assert store.text.tokens == [1, 2, 9, 2]  # what is rejected never enters the text


def test_the_released_rules() -> None:
    store = RetrievalStore(RetrievalRules("released"))
    store.extend([1, 2, 3, 4, 1, 2, 5, 6, 1, 2])
    assert store.find(4) == [3, 4, 1, 2]  # the oldest match
    assert store.find(9) == [RELEASED_DUMMY]  # fewer than nine tokens follow it
    assert store.find(9, [7]) == [RELEASED_DUMMY]


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"index": "tree"}, "index must be automaton, ngram or released, got 'tree': choose one of these."),
        ({"max_ngram": 0}, "max_ngram must be at least 1, got 0: raise it."),
        ({"min_ngram": 4}, "min_ngram must be at most max_ngram, 3, got 4: lower it."),
    ],
)
def test_wrong_rules(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace(".", r"\.") + "$"):
        RetrievalRules(**settings_)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [SuffixAutomaton, lambda: NgramIndex(3)])
def test_work_for_a_token_does_not_grow_with_the_text(kind: type[TextIndex]) -> None:
    """Counted, not timed: the automaton has at most two states for each token, whatever the text is."""
    index = kind()
    index.extend([token % 7 * (token % 3) for token in range(3000)] + [1] * 3000)
    if isinstance(index, SuffixAutomaton):
        assert len(index._next) <= 2 * 6000
        assert sum(map(len, index._next)) <= 3 * 6000
