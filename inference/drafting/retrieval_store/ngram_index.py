"""An index of n-grams in a dictionary (prompt lookup, A. Saxena, 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from saccade.inference.drafting.retrieval_store.text_index import TextIndex


class NgramIndex(TextIndex):
    """Where every n-gram up to a size ends. Each token and each look-up takes one access for each size.

    Args:
        largest: Size of the longest n-gram that is indexed.
        oldest: Keep the first occurrence of an n-gram in place of the most recent one.
    """

    def __init__(self, largest: int, *, oldest: bool = False) -> None:
        super().__init__()
        self.largest, self.oldest = largest, oldest
        self._begin = 0  # of the present segment
        self._ends: dict[tuple[int, ...], int] = {}

    def _add(self, token: int) -> None:
        # the n-grams that end with the last token are indexed with the next one, so that a look-up of the text's end
        # finds an earlier occurrence and not itself
        end = len(self.tokens)
        for size in range(1, min(self.largest, end - self._begin) + 1):
            gram = tuple(self.tokens[end - size :])
            if not self.oldest or gram not in self._ends:
                self._ends[gram] = end
        self.tokens.append(token)

    def end_segment(self) -> None:
        """Ends the present segment."""
        super().end_segment()
        self._begin = len(self.tokens)

    def match(self, tail: Sequence[int] = ()) -> tuple[int, int]:
        """The longest n-gram at the end of the text that occurred before, and where."""
        return next(self.matches(tail), (0, 0))

    def matches(self, tail: Sequence[int] = ()) -> Iterator[tuple[int, int]]:
        """All sizes of n-grams at the end of the text that occurred before, the longest first, and where."""
        last = [*self.tokens[max(self._begin, len(self.tokens) - self.largest) :], *tail][-self.largest :]
        for size in range(len(last), 0, -1):
            end = self._ends.get(tuple(last[-size:]))
            if end is not None:
                yield size, end
