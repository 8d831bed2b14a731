"""RoundControl: plain rounds, rounds with look-up alone, or parallel rounds, by what each gives for its time (ours)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

from saccade.inference.drafting.control import Control

_STINT = 4
"""Rounds of one kind in a row; the first is not counted: it verifies what a round of another kind has drafted."""
_KEPT = 15
"""Last times of a kind of round; their median forgets captures and pauses."""
_DECAY, _DECAY_OF_TRIALS = 0.96, 0.7
"""Weight of the earlier rounds in the tokens of a kind, after each of its rounds; in a trial these are old."""
_CARRIED = 6.0
"""Rounds as which the earlier texts count when a text begins."""
_SHARE = 0.005
"""Share of the time that the trials of each other kind may lose; it is saved up, from call to call."""
_AT_START = 0.5
"""What a trial in a new text may lose at once, in plain rounds: it need not be like the text before."""
_MOST_SAVED = 2.0
"""Trials for which is saved up at most."""
_LEAST_LOSS = 0.05
"""Least loss that a trial is expected to have, in plain rounds for each of its rounds."""
_MARGIN = 1.03
"""Other rounds must promise this factor over plain ones: below it, their gain is within the error of the estimates."""


class _Kind:
    """What rounds of a kind have cost and given, and what its trials may lose."""

    def __init__(self) -> None:
        self.seconds: deque[float] = deque(maxlen=_KEPT)
        self.tokens = self.weight = self.saved = 0.0

    @property
    def rate(self) -> float:
        """Tokens a second of a row."""
        return self.tokens / self.weight / median(self.seconds)

    def observe(self, tokens: float, seconds: float, decay: float) -> None:
        self.seconds.append(seconds)
        self.tokens = self.tokens * decay + tokens
        self.weight = self.weight * decay + 1.0


class RoundControl(Control):
    """Chooses what the next rounds do, where drafting costs no time of its own or all of its time.

    A choice is 0 for plain rounds, 1 for rounds in which only the target looks up, and ``1 + g`` for parallel rounds
    with ``g`` forwards of the draft model. Every kind is tried for a few rounds; then the kind with the most tokens for
    the time is chosen, plain ones unless another is clearly better. A small share of the time is kept for trials of
    each of the others, so one that loses much is tried seldom. What was measured stays with the decoder for its next
    call.

    Args:
        gamma: Most forwards of the draft model in a round.
        looks_up: Whether the target looks up.
    """

    def __init__(self, gamma: int, looks_up: bool) -> None:
        super().__init__(1 + gamma)
        half = 1 + -(-gamma // 2)
        # first plain decoding, then what may be the fastest
        self._kinds = {choice: _Kind() for choice in (0, self.longest, half, *[1] * looks_up)}
        self._choice, self._left, self._trial = 0, 0, False

    def begin(self) -> None:
        """Starts a call: what earlier texts have shown counts as a guess."""
        self._left = 0
        for kind in self._kinds.values():
            if kind.weight > _CARRIED:
                kind.tokens, kind.weight = kind.tokens * _CARRIED / kind.weight, _CARRIED
            if kind.seconds:
                kind.saved = max(kind.saved, _AT_START * median(self._kinds[0].seconds))

    def length(self, grade: int | None = None) -> int:
        """What the next round does: 0, 1 or ``1 + g``; see the class."""
        if not self._left:
            self._choice, self._left = self._chosen(), _STINT
        return self._choice

    def _chosen(self) -> int:
        self._trial = False
        for choice, kind in self._kinds.items():
            if not kind.seconds:
                return choice
        best = self.best()
        due = [choice for choice, kind in self._kinds.items() if choice != best and kind.saved >= self._loss(choice)]
        if not due:
            return best
        self._trial = True
        return max(due, key=lambda choice: self._kinds[choice].rate)

    def best(self) -> int:
        """The choice with the most tokens for the time, of those that have been tried; 0 before any has."""
        rates = {choice: kind.rate for choice, kind in self._kinds.items() if kind.seconds}
        best = max(rates, key=lambda choice: rates[choice], default=0)
        return best if rates and rates[best] > _MARGIN * rates.get(0, 0.0) else 0

    def _loss(self, choice: int) -> float:
        """Seconds that a trial of a kind is expected to lose."""
        kind, best = self._kinds[choice], self._kinds[self.best()]
        lost = median(kind.seconds) * (1 - kind.rate / best.rate)
        return _STINT * max(lost, _LEAST_LOSS * median(self._kinds[0].seconds))

    def observe(
        self,
        drafted: Sequence[int],
        accepted: Sequence[int],
        allowed: int,
        seconds: float,
        grade: int | None = None,
    ) -> None:
        """Notes a round; see :meth:`Control.observe`."""
        self.rounds += 1
        kind, first = self._kinds[self._choice], self._left == _STINT
        self._left -= 1
        tokens = 1.0 + sum(accepted) / max(1, len(accepted))
        if not first and allowed == self._choice:
            kind.observe(tokens, seconds, _DECAY_OF_TRIALS if self._trial else _DECAY)
        if not all(each.seconds for each in self._kinds.values()):
            return
        if self._trial:
            best = self.best()
            kind.saved -= max(0.0, seconds - tokens / self._kinds[best].rate)
            if not self._left and best == self._choice:  # the text has changed: the others may be better still
                for choice, other in self._kinds.items():
                    other.saved = max(other.saved, self._loss(choice))
            return
        self.plain_rounds += self._choice == 0
        for choice, other in self._kinds.items():
            if choice != self._choice and other.saved < _MOST_SAVED * self._loss(choice):
                other.saved += _SHARE * seconds
