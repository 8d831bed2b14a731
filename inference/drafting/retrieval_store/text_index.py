"""The contract of an index of texts: where the end of a text occurred before."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

BREAK = -1
"""Stands behind a segment, a text of its own: no match and no continuation goes across it. No token id is negative."""


class TextIndex(ABC):
    """Finds the most recent earlier occurrence of the longest run of tokens with which a growing text ends.

    A subclass defines :meth:`_add` and :meth:`match`.

    Attributes:
        tokens: What has been indexed; :data:`BREAK` behind every segment that has ended.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def extend(self, tokens: Sequence[int]) -> None:
        """Appends tokens to the present segment.

        Args:
            tokens: Token ids.
        """
        for token in tokens:
            self._add(token)

    @abstractmethod
    def _add(self, token: int) -> None:
        """Appends one token."""

    def end_segment(self) -> None:
        """Ends the present segment; what follows is a text of its own."""
        if self.tokens and self.tokens[-1] != BREAK:
            self.tokens.append(BREAK)

    @abstractmethod
    def match(self, tail: Sequence[int] = ()) -> tuple[int, int]:
        """The longest run of tokens at the end of the text that occurred before.

        Args:
            tail: Tokens behind the indexed ones which are not indexed themselves, such as a draft that nobody has
                verified yet. The text is looked up as if it ended with them.

        Returns:
            The size of the run, and where its earlier occurrence ends in ``tokens``; size 0 if there is none.
        """

    def followers(self, end: int, count: int, tail: Sequence[int] = ()) -> list[int]:
        """The tokens behind an occurrence.

        Where the text itself ends, what lies between the two occurrences is repeated, as in a periodic text.

        Args:
            end: Where the occurrence ends.
            count: Most tokens.
            tail: As in :meth:`match`.

        Returns:
            Up to ``count`` tokens; fewer where a segment ends.
        """
        known, found = len(self.tokens), []
        period = known + len(tail) - end
        for step in range(count if period else 0):
            place = end + step % period
            token = self.tokens[place] if place < known else tail[place - known]
            if token == BREAK:
                break
            found.append(token)
        return found
