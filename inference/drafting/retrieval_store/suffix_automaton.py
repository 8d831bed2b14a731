"""A suffix automaton: finds the longest repeated end of a text, of any length.

The automaton is that of A. Blumer et al. (1985); drafts from it are the idea of SAM-Decoding (arXiv 2411.10666).
"""

from __future__ import annotations

from collections.abc import Sequence

from saccade.inference.drafting.retrieval_store.text_index import TextIndex

_MOST_REFRESHED = 12
"""States whose occurrence is set to the newest with each token: a text that repeats itself has as many as it is long.
Beyond them an earlier occurrence of a short run is kept, which a longer run has already made useless."""


class SuffixAutomaton(TextIndex):
    """Finds the longest run at the end of a text that occurred before, however long; constant time for each token.

    States are sets of runs that end at the same places. A token adds at most two; the link of a state leads to the
    longest end of its runs that also occurs elsewhere, so the match of the text's end is one step away.
    """

    def __init__(self) -> None:
        super().__init__()
        self._next: list[dict[int, int]] = [{}]
        self._link, self._length, self._end = [-1], [0], [0]
        self._last = 0
        self._match = 0, 0
        self._state = 0  # of the match

    def _add(self, token: int) -> None:
        self.tokens.append(token)
        steps, link, length, ends = self._next, self._link, self._length, self._end
        known = steps[self._last].get(token)
        if known is not None:  # at the beginning of a segment: all of it occurred in an earlier one
            state = self._target(self._last, token, known)
            self._state, self._match = state, (length[state], ends[state])
        else:
            state = self._new({}, length[self._last] + 1, 0, len(self.tokens))
            place = self._last
            while place != -1 and token not in steps[place]:
                steps[place][token] = state
                place = link[place]
            if place != -1:
                link[state] = self._target(place, token, steps[place][token])
            self._state = link[state]
            self._match = length[self._state], ends[self._state]
        self._last = place = state
        for _ in range(_MOST_REFRESHED):
            if place <= 0:
                break
            ends[place] = len(self.tokens)
            place = link[place]

    def _new(self, steps: dict[int, int], length: int, link: int, end: int) -> int:
        self._next.append(steps)
        self._length.append(length)
        self._link.append(link)
        self._end.append(end)
        return len(self._length) - 1

    def _target(self, place: int, token: int, known: int) -> int:
        """The state of the runs of ``place`` with a token behind them, apart from longer runs that lead there too."""
        length = self._length[place] + 1
        if self._length[known] == length:
            return known
        copy = self._new(dict(self._next[known]), length, self._link[known], self._end[known])
        self._link[known] = copy
        while place != -1 and self._next[place].get(token) == known:
            self._next[place][token] = copy
            place = self._link[place]
        return copy

    def end_segment(self) -> None:
        """Ends the present segment."""
        super().end_segment()
        self._last = self._state = 0
        self._match = 0, 0

    def match(self, tail: Sequence[int] = ()) -> tuple[int, int]:
        """The longest run at the end of the text that occurred before, and where."""
        if not tail:
            return self._match
        state, size = self._state, self._match[0]
        for token in tail:
            while state > 0 and token not in self._next[state]:
                state = self._link[state]
                size = self._length[state]
            known = self._next[state].get(token)
            if known is None:
                state = size = 0
            else:
                state, size = known, size + 1
        return (size, self._end[state]) if size else (0, 0)
