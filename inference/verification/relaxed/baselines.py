"""The two ends that relaxed rules are measured against: no relaxation, and relaxation by chance."""

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
    """A drafted token stands where it is the target's choice: lossless speculative decoding."""

    lossless: ClassVar[bool] = True

    def judge(self, judged: Judged, state: RowState) -> Ruling:
        """The tokens before the first mismatch stand."""
        pairs = zip(judged.drafted, judged.choices, strict=False)
        verdict = ruling(judged, ("match" if token == choice else "reject" for token, choice in pairs))
        state.position += verdict.accepted + 1
        return verdict


@dataclass
class RandomRelaxation(RelaxedRule):
    """Every mismatch stands with one probability, wherever it is.

    The control of relaxed decoding: a guided rule must beat it at the same accepted length.

    Args:
        rate: Probability that a mismatch stands, in [0, 1].
        seed: Seed of the random streams, one for each row. A place uses the same number whatever the rate is.

    Raises:
        ValueError: A rate outside [0, 1].
    """

    rate: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_share("rate", self.rate)

    def begin(self, row: int = 0, guarded: Collection[int] = ()) -> RowState:
        """The state of a row, with the random numbers of the seed and the row."""
        return RowState(random.Random(f"{self.seed}/{row}"), frozenset(guarded))

    def judge(self, judged: Judged, state: RowState) -> Ruling:
        """Draws a number for every place, judged or not."""
        uniforms = [state.stream.random() for _ in judged.drafted]
        verdict = ruling(judged, self._reasons(judged, state, uniforms))
        state.position += verdict.accepted + 1
        return verdict

    def _reasons(self, judged: Judged, state: RowState, uniforms: list[float]) -> Iterator[Reason]:
        for place, uniform in enumerate(uniforms):
            if judged.drafted[place] == judged.choices[place]:
                yield "match"
            elif guards(judged, place, state.guarded):
                yield "guard"
            else:
                yield "loose" if uniform < self.rate else "reject"
