"""RoundCosts: seconds of a round for each number of drafted tokens."""

from __future__ import annotations

from collections import deque
from statistics import median

_KEPT = 16
"""Last times of a round that are kept for each number of drafted tokens; their median forgets captures and pauses."""
_TO_KNOW = 3
"""Measured rounds after which the cost of a length is known: of an unknown model first that of a round without a draft,
one token each, as in plain decoding."""
_EVERY = 8
"""Rounds after which the cost of their length is computed again."""


class RoundCosts:
    """The cost of a round for each number of drafted tokens: measured, or on the line between measured neighbours."""

    def __init__(self) -> None:
        self._rounds = 0
        self._seconds: dict[int, deque[float]] = {}
        self._known: dict[int, float] = {}
        self._found: dict[int, float] = {}
        self._seen: set[int] = set()
        self._entries: dict[bool, deque[float]] = {False: deque(maxlen=_KEPT), True: deque(maxlen=_KEPT)}

    @property
    def plain(self) -> float | None:
        """Seconds of a round without a draft; ``None`` until enough of them are measured."""
        return self._known[0] if len(self._seconds.get(0, ())) >= _TO_KNOW else None

    @property
    def of_drafts(self) -> bool:
        """Whether rounds with a draft have been measured."""
        return len(self._known) > 1

    def __call__(self, count: int) -> float:
        """Seconds of a round.

        Args:
            count: Its drafted tokens.
        """
        if count not in self._found:
            self._found[count] = self._estimate(count)
        return self._found[count]

    def entry(self, begun: bool) -> float:
        """Seconds that the first draft takes beyond later ones: a draft model reads the text, or what it has missed.

        Args:
            begun: Whether the text has had a draft before.
        """
        times = self._entries[begun]
        return max(0.0, median(times)) if times else 0.0

    def observe(self, count: int, seconds: float, reads: bool, begun: bool) -> None:
        """Notes the time of a round.

        Args:
            count: Its drafted tokens.
            seconds: Its time.
            reads: Whether the drafter had to read tokens that it had missed.
            begun: Whether the text had a draft before.
        """
        self._rounds += 1
        if reads and count in self._known:
            self._entries[begun].append(seconds - self._known[count])
        # the first round of a length captures graphs, and one that reads what was missed takes longer than others
        if count in self._seen and not reads:
            times = self._seconds.setdefault(count, deque(maxlen=_KEPT))
            times.append(seconds)
            # of two lengths the line through them gives the others, and one slow round must not rule out a length
            known = len(times) >= _TO_KNOW or len(self._known) < 2
            if known and (self._rounds % _EVERY == 0 or len(times) <= _TO_KNOW):
                self._known[count] = median(times)
                self._found.clear()
        self._seen.add(count)

    def _estimate(self, count: int) -> float:
        known = self._known
        if not known:
            return 1.0
        if count in known:
            return known[count]
        below = [drafted for drafted in known if drafted < count]
        above = [drafted for drafted in known if drafted > count]
        if below and above:
            low, high = max(below), min(above)
            return known[low] + (known[high] - known[low]) * (count - low) / (high - low)
        if not below:
            return known[min(above)]
        # beyond what was measured, each token costs what it cost between the two longest drafts
        low, lower = max(below), sorted(below)[-2] if len(below) > 1 else max(below)
        slope = (known[low] - known[lower]) / max(1, low - lower)
        return known[low] + max(0.0, slope) * (count - low)
