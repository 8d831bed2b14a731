"""The contract of a control: it chooses how much the next round drafts, and learns what rounds cost and give."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence

_ADVISED_AFTER, _ADVISED_SHARE = 100, 0.8
"""Rounds after which, and share of rounds without a draft from which on, a user is told that drafts do not pay."""


class Control(ABC):
    """Chooses how much the next round drafts, from what rounds have cost and what was accepted.

    Args:
        longest: The largest choice, at least 1.

    Attributes:
        rounds: Rounds that were observed.
        plain_rounds: Rounds among them without a draft, at times when the control chose none.
    """

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.rounds = self.plain_rounds = 0
        self._advised = False

    @abstractmethod
    def begin(self) -> None:
        """Starts a call."""

    @abstractmethod
    def length(self, grade: int | None = None) -> int:
        """What the next round may draft, from 0 for nothing to ``longest``.

        Args:
            grade: How good the drafter takes what it has found to be, 0 for nothing; ``None`` if it does not say.
        """

    @abstractmethod
    def observe(
        self,
        drafted: Sequence[int],
        accepted: Sequence[int],
        allowed: int,
        seconds: float,
        grade: int | None = None,
    ) -> None:
        """Notes a round.

        Args:
            drafted: Drafted tokens of every row.
            accepted: Accepted ones among them.
            allowed: What ``length`` had returned, unless the end of the text lowered it.
            seconds: Time of the round.
            grade: What ``length`` was given.
        """

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
