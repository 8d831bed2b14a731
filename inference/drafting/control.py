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
_TO_KNOW = 3
"""Measured rounds after which the cost of a length is known: of an unknown model first that of a round without a draft,
one token each, as in plain decoding."""
_FIRST_DRAFT = 4
"""Length of the drafts with which an unknown model starts: enough to tell what a token costs, and cheap to lose."""
_DECAY = 0.93
"""Weight of the earlier rounds in the acceptance of a place, after each round that drafted it."""
_DECAY_OF_PROBES = 0.7
"""The same in a probe: what was seen before the plain rounds is old."""
_PRIOR, _LEAST_GUESS = 2.0, 1.0
"""Weight of the first guess of an acceptance, in rounds, and what stays of it: some hope, so that a rejected draft is
not the last one."""
_PROBE_SHARE = 0.005
"""Share of the time of plain rounds that probes may lose; it is saved up, from call to call."""
_AT_START = 0.7
"""What the probes of a new text may lose at once, in plain rounds: it need not be like the text before."""
_LEAST_LEFT = 16.0
"""Tokens that a text is taken to have left at least."""
_MOST_PROBES_SAVED = 3.0
"""Probes for which is saved up at most: more in a row say no more about a text."""
_CHEAPEST_PROBE = 0.08
"""Least loss that a probe is expected to have, in plain rounds: estimates are not better than this."""
_COSTS_EVERY = 8
"""Rounds after which the cost of their length is computed again."""
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
    ``E(k) / C(k)``; rounds for which the drafter found nothing count on both sides. When the choice is zero, drafting
    is tried again as soon as half a percent of the time of the plain rounds has made up for what the trial is expected
    to lose, so that text that becomes easy is noticed: after some twenty rounds where a draft costs next to nothing,
    after two hundred where it costs as much as a token. A new text may try as much at once as 0.7 plain rounds make up
    for. What the first draft of a text costs beyond later ones (a draft model reads the prompt) has to pay in a text as
    long as the last ones. The costs stay with the decoder for its next call; what was accepted counts there as a guess.

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
        self._costs: dict[int, float] = {}
        self._seen: set[int] = set()
        self._behind, self._advised = True, False
        self._begun = False
        self._entries: dict[bool, deque[float]] = {False: deque(maxlen=_KEPT), True: deque(maxlen=_KEPT)}
        self._text, self._usual_text = 0.0, 0.0
        self._accepted = [0.0] * longest
        self._tried = [0.0] * longest
        self._guess = [_PRIOR] * longest
        self._saved, self._found = 0.0, 1.0
        self._probing = False
        self._choice: int | None = None
        self._probe, self._price = longest, 0.0
        self._lengths = choices(longest)

    def begin(self) -> None:
        """Starts a call: the acceptances of earlier texts count as a guess."""
        for place, tried in enumerate(self._tried):
            if tried > _PRIOR:
                self._tried[place], self._accepted[place] = _PRIOR, self._accepted[place] * _PRIOR / tried
        self._probing, self._behind = False, True
        self._saved = max(self._saved, _AT_START * self._known.get(0, 0.0))
        self._usual_text = 0.5 * (self._usual_text + self._text) if self._usual_text else self._text
        self._text, self._begun = 0.0, False
        self._choice = None

    def length(self) -> int:
        """The most tokens that the next round should draft."""
        if 0 not in self._known or len(self._seconds[0]) < _TO_KNOW:
            return 0
        if len(self._known) == 1:
            return min(self.longest, _FIRST_DRAFT)
        if self._choice is None:
            self._choice = self.best()
            if self._choice and self._behind and not self._pays_entry(self._choice):
                self._choice = 0
            if not self._choice:
                self._probe = self._fastest()
                self._price = max(self.loss(self._probe), _CHEAPEST_PROBE * self._known[0]) + self.entry()
        if self._choice:
            return self._choice
        if self._probing or self._saved >= self._price:
            self._probing = True
            return self._probe
        return 0

    def best(self) -> int:
        """The number of drafted tokens with the most tokens for the time; 0 if no draft promises a gain."""
        found = self._fastest()
        return found if self.speed(found) > _MARGIN * self.speed(0) else 0

    def _fastest(self) -> int:
        """The number of drafted tokens above zero with the most tokens for the time."""
        expected = self._expected(self.longest)
        return max(self._lengths[1:], key=lambda count: self._pace(expected[count], count))

    def _pace(self, tokens: float, count: int) -> float:
        # a drafter that finds nothing, as prompt lookup often does, leaves a plain round
        empty = 1.0 - self._found
        return (empty + self._found * tokens) / (empty * self._cost(0) + self._found * self._cost(count))

    def speed(self, count: int) -> float:
        """Tokens a second of rounds that may draft ``count`` tokens, by the present estimates.

        Args:
            count: Drafted tokens, 0 to ``longest``.
        """
        return self._pace(self.tokens(count), count)

    def loss(self, count: int) -> float:
        """Seconds that a round which drafts ``count`` tokens takes beyond the plain rounds for its tokens.

        Args:
            count: Drafted tokens, 0 to ``longest``.
        """
        return self._cost(count) - self.tokens(count) * self._cost(0)

    def entry(self) -> float:
        """Seconds that a first draft takes beyond later ones: a draft model reads the text, or what it has missed."""
        times = self._entries[self._begun]
        return max(0.0, median(times)) if times else 0.0

    def _pays_entry(self, count: int) -> bool:
        """Whether the rest of a text as long as the last ones makes up for the first draft."""
        left = max(self._usual_text - self._text, _LEAST_LEFT)
        return left * (1.0 / self.speed(0) - 1.0 / self.speed(count)) > self.entry()

    def tokens(self, count: int) -> float:
        """Expected tokens of a round that drafts ``count`` tokens: the accepted ones and one of the target.

        Args:
            count: Drafted tokens.
        """
        return self._expected(count)[count]

    def _expected(self, longest: int) -> list[float]:
        expected, chance = [1.0], 1.0
        share = 0.5  # the first guess of the first place; that of each later one is what the place before has shown
        for place in range(longest):
            guess = self._guess[place]
            share = (self._accepted[place] + guess * share) / (self._tried[place] + guess)
            chance *= share
            expected.append(expected[-1] + chance)
        return expected

    def _cost(self, count: int) -> float:
        if count not in self._costs:
            self._costs[count] = self.cost(count)
        return self._costs[count]

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
        self._text += 1.0 + sum(accepted) / max(1, len(accepted))
        # the first round of a length captures graphs, and the first draft after plain rounds reads what it has missed
        if count in self._seen and not (count and self._behind):
            times = self._seconds.setdefault(count, deque(maxlen=_KEPT))
            times.append(seconds)
            # of two lengths the line through them gives the others, and one slow round must not rule out a length
            known = len(times) >= _TO_KNOW or len(self._known) < 2
            if known and (self.rounds % _COSTS_EVERY == 0 or len(times) <= _TO_KNOW):
                self._known[count] = median(times)
                self._costs.clear()
        if count and self._behind:
            if count in self._known:
                self._entries[self._begun].append(seconds - self._known[count])
            self._begun = True
        self._seen.add(count)
        self._behind = allowed == 0
        if allowed == 0:
            self.plain_rounds += 1
            self._saved = min(self._saved + _PROBE_SHARE * self._known.get(0, 0.0), _MOST_PROBES_SAVED * self._price)
            return
        self._found = _DECAY * self._found + (1.0 - _DECAY) * (count > 0)
        decay = _DECAY_OF_PROBES if self._probing else _DECAY
        for row, taken in zip(drafted, accepted, strict=True):
            for place in range(min(row, taken + 1, self.longest)):
                self._guess[place] = max(_LEAST_GUESS, self._guess[place] * decay)
                self._tried[place] = self._tried[place] * decay + 1
                self._accepted[place] = self._accepted[place] * decay + (place < taken)
        self._choice = None
        if self._probing and count and list(drafted) != list(accepted):  # a probe that is accepted whole goes on
            self._probing = False
            self._saved -= self._price

    def advise(self, name: str, advice: str) -> None:
        """Warns, once, if nearly all rounds were better without a draft.

        Args:
            name: The decoder, for the message.
            advice: What its user can do.
        """
        if self._advised or self.rounds < _ADVISED_AFTER or self.plain_rounds < _ADVISED_SHARE * self.rounds:
            return
        self._advised = True
        warnings.warn(
            f"saccade: drafts of {name} do not pay on this model and text, so {self.plain_rounds} of {self.rounds}"
            f" rounds had none: {advice}, or use another decoder.",
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
