"""Baselines for relaxed rules: no relaxation, and random relaxation."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import ClassVar

from saccade.common.checks import check_share
from saccade.inference.verification.relaxed.rule import (
    Judged,
    Reason,
    RelaxedRule,
    RowState,
    Ruling,
    guards,
    ruling,
)


@dataclass
class Strict(RelaxedRule):
    """Accepts a drafted token only if it is the target's choice: lossless speculative decoding."""

    lossless: ClassVar[bool] = True

    def judge(self, judged: Judged, state: RowState) -> Ruling:
        """Accepts the tokens before the first mismatch."""
        pairs = zip(judged.drafted, judged.choices, strict=False)
        outcome = ruling(judged, ("match" if token == choice else "reject" for token, choice in pairs))
        state.position += outcome.accepted + 1
        return outcome


@dataclass
class RandomRelaxation(RelaxedRule):
    """Accepts every mismatch with the same probability.

    A control for relaxed decoding: a useful rule gives better text at the same accepted length.

    Args:
        rate: Probability that a mismatch is accepted, in [0, 1].
        seed: Seed of the random numbers, which are separate for each row. They do not depend on the rate.

    Raises:
        ValueError: A rate outside [0, 1].
    """

    rate: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_share("rate", self.rate)

    def begin(self, row: int = 0, guarded: Collection[int] = ()) -> RowState:
        """The state of a row, with random numbers that depend on the seed and the row."""
        return RowState(random.Random(f"{self.seed}/{row}"), frozenset(guarded))

    def judge(self, judged: Judged, state: RowState) -> Ruling:
        """Draws one random number for every drafted token, also for those after a rejection."""
        uniforms = [state.stream.random() for _ in judged.drafted]
        outcome = ruling(judged, self._reasons(judged, state, uniforms))
        state.position += outcome.accepted + 1
        return outcome

    def _reasons(self, judged: Judged, state: RowState, uniforms: list[float]) -> Iterator[Reason]:
        for place, uniform in enumerate(uniforms):
            if judged.drafted[place] == judged.choices[place]:
                yield "match"
            elif guards(judged, place, state.guarded):
                yield "guard"
            else:
                yield "loose" if uniform < self.rate else "reject"
