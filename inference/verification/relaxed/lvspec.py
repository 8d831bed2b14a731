"""LVSpec's rule: strict where a token is about what is seen, loose elsewhere, lenient where texts are shifted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from saccade.common.checks import check_share
from saccade.common.decimals import as_written
from saccade.inference.verification.relaxed.rule import (
    Judged,
    Reason,
    RelaxedRule,
    RowState,
    Ruling,
    guards,
    required,
    ruling,
)

Selection = Literal["round", "running", "threshold"]
Loose = Literal["always", "top_m", "ratio"]
Pst = Literal["target", "both"]


@dataclass
class VisualRelaxation(RelaxedRule):
    """LVSpec (ACL 2026, arXiv 2604.05650): places of high visual relevance must match, the others need not.

    The authors' code is not public. From the reports: mismatches stand outside a strict set of the most relevant places
    with ``relaxation`` 0.7, and a strict mismatch stands if the target's token occurs nearby (position shift
    tolerance). Ours: how the strict set is cut, the window of the shift, guards, and everything that is off by default.

    Args:
        relaxation: Share of places that are loose (lambda of the paper), in [0, 1]; 0 with ``pst_window=0`` is
            lossless.
        selection: How the strict places are found. ``round``: the ``K - floor(relaxation * K)`` most relevant of the
            round's K, ties to the earlier. ``running``: those among the most relevant share of the row's last
            ``history`` judged scores and this round's. ``threshold``: those whose relevance reaches ``threshold``,
            whatever ``relaxation`` is.
        threshold: Cosine from which a place is strict, for ``selection="threshold"``.
        history: Scores that ``running`` remembers, at least 1.
        loose: What a loose place lets stand. ``always``: everything. ``top_m``: the target's ``top_m`` best tokens.
            ``ratio``: tokens with at least ``ratio`` times the probability of the best. What it does not let stand is
            treated like a strict mismatch.
        top_m: Ranks of ``loose="top_m"``, at least 1.
        ratio: Factor of ``loose="ratio"``, in [0, 1].
        pst_window: How far the tolerance of position shifts (PST) looks, in tokens; 0 turns it off. A strict mismatch
            stands if the target's token is among the next ``pst_window`` tokens of the draft, or among the last of the
            text before it. Every occurrence excuses one mismatch only.
        pst: ``target`` looks for the target's token only; ``both`` also looks for the drafted token among the
            target's choices of this round.
        special_ids: Tokens that must match on either side, besides those that the generation guards itself.
        negation_ids: Likewise: negations and numerals, little seen and much meant.
        option_ids: Likewise: the letters of a multiple choice.
        max_loose_run: Most mismatches that stand next to each other; ``None`` sets no limit. Every round ends with a
            token of the target's own, which ends a run.

    Raises:
        ValueError: A setting outside its range.
    """

    needs_relevance: ClassVar[bool] = True

    relaxation: float = 0.7
    selection: Selection = "round"
    threshold: float = 0.5
    history: int = 256
    loose: Loose = "always"
    top_m: int = 20
    ratio: float = 0.1
    pst_window: int = 5
    pst: Pst = "target"
    special_ids: list[int] = field(default_factory=list)
    negation_ids: list[int] = field(default_factory=list)
    option_ids: list[int] = field(default_factory=list)
    max_loose_run: int | None = None

    @property
    def needs_standing(self) -> bool:
        """Whether loose places look at ranks or probabilities."""
        return self.loose != "always"

    def __post_init__(self) -> None:
        check_share("relaxation", self.relaxation)
        check_share("ratio", self.ratio)
        for name, choices in (("selection", Selection), ("loose", Loose), ("pst", Pst)):
            if getattr(self, name) not in get_args(choices):
                known = ", ".join(get_args(choices))
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}: choose one.")
        for name, least in (("history", 1), ("top_m", 1), ("pst_window", 0), ("max_loose_run", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}: leave it away for the default.")
        if math.isnan(self.threshold):
            raise ValueError("threshold must be a cosine, got NaN: give a number between -1 and 1.")

    def judge(self, judged: Judged, state: RowState) -> Ruling:
        """Cuts the strict set, judges place by place, and remembers scores and used occurrences."""
        scores = required(judged, "relevance")
        verdict = ruling(judged, self._reasons(judged, state, self.strict_places(scores, state)))
        state.scores.extend(scores[: len(verdict.log)])
        while len(state.scores) > self.history:
            state.scores.popleft()
        # occurrences beyond the accepted tokens are not part of the text; those out of reach need no memory
        end = state.position + verdict.accepted
        state.used = {(side, at) for side, at in state.used if side == "text" and end - self.pst_window < at <= end}
        state.position = end + 1
        return verdict

    def strict_places(self, scores: list[float], state: RowState) -> set[int]:
        """The places, from 0, at which a mismatch is not simply let through.

        Args:
            scores: K relevances of this round.
            state: The row's state, whose scores ``running`` looks at; it is not changed.

        Raises:
            ValueError: A relevance is NaN.
        """
        if any(math.isnan(score) for score in scores):
            raise ValueError("relevance must be finite, got NaN: check the hidden states and their precision.")
        if self.selection == "threshold":
            return {place for place, score in enumerate(scores) if score >= self.threshold}
        if self.selection == "round":
            order = sorted(range(len(scores)), key=lambda place: -scores[place])
            return set(order[: self._strict_count(len(scores))])
        pool = sorted([*state.scores, *scores], reverse=True)
        count = self._strict_count(len(pool))
        return {place for place, score in enumerate(scores) if count and score >= pool[count - 1]}

    def _strict_count(self, places: int) -> int:
        return places - math.floor(as_written(self.relaxation) * places)

    def _reasons(self, judged: Judged, state: RowState, strict: set[int]) -> Iterator[Reason]:
        guarded = state.guarded.union(self.special_ids, self.negation_ids, self.option_ids)
        run = 0
        for place, (token, choice) in enumerate(zip(judged.drafted, judged.choices, strict=False)):
            if token == choice:
                run = 0
                yield "match"
                continue
            if guards(judged, place, guarded):
                yield "guard"
                continue
            run += 1
            if self.max_loose_run is not None and run > self.max_loose_run:
                yield "reject"
            elif place not in strict and self._lets_through(judged, place):
                yield "loose"
            else:
                yield "pst" if self._shifted(judged, place, state) else "reject"

    def _lets_through(self, judged: Judged, place: int) -> bool:
        """Whether a loose place lets its mismatch stand."""
        if self.loose == "top_m":
            return required(judged, "ranks")[place] < self.top_m
        if self.loose == "ratio":
            return required(judged, "ratios")[place] >= self.ratio
        return True

    def _shifted(self, judged: Judged, place: int, state: RowState) -> bool:
        """Whether an unused occurrence nearby excuses the mismatch; it is used from then on."""
        token, choice = judged.drafted[place], judged.choices[place]
        recent = judged.recent[-self.pst_window :]
        text, here = recent + judged.drafted, len(recent) + place
        # forwards first, then backwards, the nearest first
        near = [here + step for step in range(1, self.pst_window + 1)]
        near += [here - step for step in range(1, self.pst_window + 1)]
        # the newest of `recent` stands at state.position in the row's text, the first drafted token behind it
        start = state.position + 1 - len(recent)
        excuses = [("text", start + at) for at in near if 0 <= at < len(text) and text[at] == choice]
        if self.pst == "both":
            places = range(max(0, place - self.pst_window), place + self.pst_window + 1)
            excuses += [("choice", at) for at in places if at < len(judged.choices) and judged.choices[at] == token]
        for excuse in excuses:
            if excuse not in state.used:
                state.used.add(excuse)
                return True
        return False
