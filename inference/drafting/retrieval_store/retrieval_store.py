"""What a text may be continued with: its own earlier parts, rejected drafts and a store, longest match first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from saccade.common.checks import check_choice, check_count
from saccade.inference.drafting.retrieval_store.ngram_index import NgramIndex
from saccade.inference.drafting.retrieval_store.suffix_automaton import SuffixAutomaton
from saccade.inference.drafting.retrieval_store.text_index import TextIndex
from saccade.inference.drafting.retrieval_store.text_store import TextStore

IndexKind = Literal["automaton", "ngram", "released"]
"""How a text is looked up.

``automaton`` finds matches of any length, ``ngram`` those of up to ``max_ngram`` tokens; both take the most recent one
and as many tokens as follow it. ``released`` are the rules of Double's published code (arXiv 2601.05524): the oldest
match that all wanted tokens follow, and one arbitrary token where there is none.
"""

RELEASED_DUMMY = 100
"""The token that the released rules propose where nothing matches: it keeps the number of tokens fixed there."""


@dataclass(frozen=True)
class RetrievalRules:
    """How texts are looked up.

    Args:
        index: The index of the text.
        max_ngram: Size of the longest n-gram that is looked up; the automaton has no such limit in the text itself.
        min_ngram: Size of the shortest match that counts.

    Raises:
        ValueError: A setting outside its range.
    """

    index: IndexKind = "automaton"
    max_ngram: int = 3
    min_ngram: int = 1

    def __post_init__(self) -> None:
        check_choice("index", self.index, get_args(IndexKind))
        check_count("max_ngram", self.max_ngram)
        check_count("min_ngram", self.min_ngram)
        if self.min_ngram > self.max_ngram:
            raise ValueError(f"min_ngram must be at most max_ngram, {self.max_ngram}, got {self.min_ngram}: lower it.")


class RetrievalStore:
    """Looks up one growing text: in itself, in rejected drafts and in a store, the longest match first.

    Of matches of the same length that in the text counts first, then that in rejected drafts.

    Args:
        rules: How texts are looked up.
        store: Texts that do not change; ``None`` for none.
        text: The index of another look-up of the same text, which extends it for both; ``None`` makes one.

    Attributes:
        text: The index of the text.
    """

    def __init__(self, rules: RetrievalRules, store: TextStore | None = None, text: TextIndex | None = None) -> None:
        self.rules, self.store = rules, store
        if text is None and rules.index == "automaton":
            text = SuffixAutomaton()
        self.text: TextIndex = text or NgramIndex(rules.max_ngram, oldest=rules.index == "released")
        self._rejected: NgramIndex | None = None
        self._found: tuple[int, tuple[int, ...], tuple[int, int, int]] | None = None

    @property
    def length(self) -> int:
        """Tokens of the text."""
        return len(self.text.tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Appends tokens to the text.

        Args:
            tokens: Token ids.
        """
        self.text.extend(tokens)

    def reject(self, tokens: Sequence[int]) -> None:
        """Keeps a draft that was not accepted; the next draft may be right with it.

        Args:
            tokens: The draft, with the tokens before it by which it can be found.
        """
        if self._rejected is None:
            self._rejected = NgramIndex(self.rules.max_ngram)
        self._rejected.extend(tokens)
        self._rejected.end_segment()
        self._found = None

    def match(self, tail: Sequence[int] = ()) -> int:
        """Size of the longest match, 0 if there is none that counts.

        Args:
            tail: Tokens behind the text which are looked up with it and are not part of it.
        """
        return self._match(tail)[0]

    def _match(self, tail: Sequence[int]) -> tuple[int, int, int]:
        """Size of the longest match, where it ends and its tier."""
        asked = self.length, tuple(tail)
        if self._found is not None and self._found[:2] == asked:
            return self._found[2]
        largest = self.rules.max_ngram
        size, end = self.text.match(tail)
        best = (size, end, 0)
        if self._rejected is not None or self.store is not None:
            last = [*self.text.tokens[-largest:], *tail][-largest:]
            if self._rejected is not None and size < largest:
                size, end = self._rejected.match(last)
                best = (size, end, 1) if size > best[0] else best
            if self.store is not None and best[0] < largest:
                size, end = self.store.match(last, largest, best[0] + 1)
                best = (size, end, 2) if size > best[0] else best
        best = best if best[0] >= self.rules.min_ngram else (0, 0, 0)
        self._found = (*asked, best)
        return best

    def find(self, count: int, tail: Sequence[int] = ()) -> list[int]:
        """The tokens behind the longest match.

        Args:
            count: Most tokens.
            tail: As in :meth:`match`.

        Returns:
            Up to ``count`` tokens, none without a match. With the released rules ``count`` tokens or one.
        """
        if count < 1:
            return []
        if self.rules.index == "released":
            return self._released(count, tail)
        size, end, tier = self._match(tail)
        if not size:
            return []
        if tier == 2:
            return [] if self.store is None else self.store.followers(end, count)
        if tier == 1:
            return [] if self._rejected is None else self._rejected.followers(end, count)
        return self.text.followers(end, count, tail)

    def _released(self, count: int, tail: Sequence[int]) -> list[int]:
        """All ``count`` tokens behind the oldest match that so many follow, or one arbitrary token."""
        last = self.length + len(tail) - count
        if isinstance(self.text, NgramIndex):
            for size, end in self.text.matches(tail):
                if size >= self.rules.min_ngram and end <= last:
                    return self.text.followers(end, count, tail)
        return [RELEASED_DUMMY]
