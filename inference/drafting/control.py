"""DraftControl: how many tokens to draft in the next round, from what rounds have cost and what was accepted (ours)."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Literal

ControlKind = Literal["auto", "fixed"]
"""Whether the number of drafted tokens is chosen in every round, or is what the decoder's settings say."""

_KEPT = 16
"""Last times of a round that are kept for each number of drafted tokens; their median forgets captures and pauses."""
_PLAIN_ROUNDS = 3
"""Measured rounds without a draft with which an unknown model starts: one token each, as in plain decoding."""
_DECAY = 0.97
"""Weight of the earlier rounds in the acceptance of a place, after each round that drafted it."""
_DECAY_OF_PROBES = 0.7
"""The same in a probe: what was seen before the plain rounds is old."""
_PRIOR = 2.0
"""Weight of the first guess of an acceptance, in rounds."""
_FIRST_PROBE, _LAST_PROBE = 8, 256
"""Rounds without a draft before the first probe, and the most between two probes; the interval doubles in between."""
_LONGEST_WAIT_AT_START = 64
"""Most rounds without a draft before the first probe of a call."""
_PLAIN_COSTS_EVERY = 8
"""Plain rounds after which their median is computed again."""
_ADVISED_AFTER, _ADVISED_SHARE = 100, 0.8
"""Rounds after which, and share of rounds without a draft from which on, a user is told that drafts do not pay."""
_MARGIN = 1.03
"""Drafting must promise this factor over plain rounds: below it, its gain is within the error of the estimates."""


class DraftControl:
    """Chooses the number of drafted tokens with the most tokens for the time, zero included.

    A round that drafts ``k`` tokens costs the time ``C(k)`` and gives ``E(k) = 1 + p1 + p1 p2 + ... + p1 ... pk``
    tokens, where ``p`` is the acceptance at each place of a draft, given that the places before were accepted. Both are
    measured while decoding: ``C`` as the median of the last rounds, with a straight line through what was measured for
    the ``k`` in between, and ``p`` as a mean that forgets old rounds. The choice is the ``k`` with the largest
    ``E(k) / C(k)``. When it is zero, drafting is tried again after 8, 16, 32, ... rounds, so that text that becomes
    easy is noticed. The costs stay with the decoder for its next call; what was accepted counts there as a guess.

    Args:
        longest: The most tokens that a draft may have, at least 1.

    Attributes:
        rounds: Rounds that were observed.
        plain_rounds: Rounds among them that the control chose to be without a draft.
    """

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.rounds = self.plain_rounds = 0
        self._seconds: dict[int, deque[float]] = {}
        self._known: dict[int, float] = {}
        self._seen: set[int] = set()
        self._behind, self._advised = True, False
        self._accepted = [0.0] * longest
        self._tried = [0.0] * longest
        self._interval = _FIRST_PROBE
        self._waited = 0
        self._probing = self._plain = False
        self._choice: int | None = None
        self._lengths = choices(longest)

    def begin(self) -> None:
        """Starts a call: the acceptances of earlier texts count as a guess, and a wait is at most as long as a text."""
        for place, tried in enumerate(self._tried):
            if tried > _PRIOR:
                self._tried[place], self._accepted[place] = _PRIOR, self._accepted[place] * _PRIOR / tried
        self._interval, self._waited, self._probing = min(self._interval, _LONGEST_WAIT_AT_START), 0, False
        self._behind = True
        self._choice = None

    def length(self) -> int:
        """The most tokens that the next round should draft."""
        if self._plain and self._waited < self._interval:
            return 0
        if 0 not in self._known or len(self._seconds[0]) < _PLAIN_ROUNDS:
            return 0
        if len(self._known) == 1:
            return self.longest
        if self._choice is None:
            self._choice = self.best()
        self._plain = self._choice == 0
        if self._plain and (self._probing or self._waited >= self._interval):
            self._probing = True
            return max(self._lengths[1:], key=self.speed)
        return self._choice

    def best(self) -> int:
        """The number of drafted tokens with the most tokens for the time; 0 if no draft promises a gain."""
        return max(self._lengths, key=lambda count: self.speed(count) / (_MARGIN if count else 1.0))

    def speed(self, count: int) -> float:
        """Tokens a second of rounds that draft ``count`` tokens, by the present estimates.

        Args:
            count: Drafted tokens, 0 to ``longest``.
        """
        return self.tokens(count) / self.cost(count)

    def tokens(self, count: int) -> float:
        """Expected tokens of a round that drafts ``count`` tokens: the accepted ones and one of the target.

        Args:
            count: Drafted tokens.
        """
        expected = chance = 1.0
        share = 0.5  # the first guess of the first place; that of each later one is what the place before has shown
        for place in range(count):
            share = (self._accepted[place] + _PRIOR * share) / (self._tried[place] + _PRIOR)
            chance *= share
            expected += chance
        return expected

    def cost(self, count: int) -> float:
        """Seconds of a round that drafts ``count`` tokens: measured, or on the line between measured neighbours.

        Args:
            count: Drafted tokens.
        """
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

    def observe(self, drafted: Sequence[int], accepted: Sequence[int], allowed: int, seconds: float) -> None:
        """Notes a round.

        Args:
            drafted: Drafted tokens of every row.
            accepted: Accepted ones among them.
            allowed: What ``length`` had returned, unless the end of the text lowered it.
            seconds: Time of the round.
        """
        self.rounds += 1
        count = min(max(drafted, default=0), self.longest)
        # the first round of a length captures graphs, and the first draft after plain rounds reads what it has missed
        if count in self._seen and not (count and self._behind):
            times = self._seconds.setdefault(count, deque(maxlen=_KEPT))
            times.append(seconds)
            if count or self.rounds % _PLAIN_COSTS_EVERY == 0 or len(times) <= _PLAIN_ROUNDS:
                self._known[count] = median(times)
        self._seen.add(count)
        self._behind = count == 0
        if allowed == 0:
            self.plain_rounds += 1
            self._waited += 1
            return
        decay = _DECAY_OF_PROBES if self._probing else _DECAY
        for row, taken in zip(drafted, accepted, strict=True):
            for place in range(min(row, taken + 1, self.longest)):
                self._tried[place] = self._tried[place] * decay + 1
                self._accepted[place] = self._accepted[place] * decay + (place < taken)
        self._choice = None
        if self._probing and count and list(drafted) != list(accepted):  # a probe that is accepted whole goes on
            self._probing = False
            self._plain = self.best() == 0
            self._interval = min(2 * self._interval, _LAST_PROBE) if self._plain else _FIRST_PROBE
            self._waited = 0

    def advise(self, name: str) -> None:
        """Warns, once, if nearly all rounds were better without a draft.

        Args:
            name: The decoder, for the message.
        """
        if self._advised or self.rounds < _ADVISED_AFTER or self.plain_rounds < _ADVISED_SHARE * self.rounds:
            return
        self._advised = True
        warnings.warn(
            f"saccade: drafts of {name} do not pay on this model and text, so {self.plain_rounds} of {self.rounds}"
            " rounds had none: give a draft model that is nearer or smaller, search sub-layers with `saccade"
            " search-layers`, or use another decoder.",
            stacklevel=2,
        )


def choices(longest: int) -> list[int]:
    """The lengths between which a control chooses: 0, 1, 2, 3, 4, 6, 8, 12, 16, ... and the longest.

    Few lengths keep the number of captured graphs and of measured costs small; neighbours differ by half at most, which
    changes the tokens for the time by a few percent.

    Args:
        longest: The largest of them.
    """
    found, step = {0, longest}, 1
    while step <= longest:
        found |= {step, step * 3 // 2}
        step *= 2
    return sorted(length for length in found if length <= longest)
