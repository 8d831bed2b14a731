"""LVSpec's rule: strict at tokens of high visual relevance, loose at the others, tolerant of position shifts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from saccade.common.checks import check_count, check_share
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

StrictSet = Literal["round", "running", "threshold"]
Loose = Literal["always", "top_m", "ratio"]
Pst = Literal["target", "both"]


@dataclass
class VisualRelaxation(RelaxedRule):
    """LVSpec's rule (ACL 2026, arXiv 2604.05650): tokens of high visual relevance must match, the others need not.

    The positions of a draft are divided into a strict set of the most relevant ones and loose ones. A mismatch at a
    loose position is accepted. A mismatch at a strict position is accepted if the target's choice occurs nearby
    (position shift tolerance, PST). The authors' code is not public: ``relaxation=0.7`` and these two rules are from
    the paper; how the strict set is chosen, the PST window, guarded tokens and all options that are off by default are
    ours.

    Args:
        relaxation: Share of loose positions (lambda of the paper), in [0, 1]; 0 with ``pst_window=0`` is lossless.
        selection: How strict positions are chosen. ``round``: the ``K - floor(relaxation * K)`` most relevant of the
            round's K, the earlier one of equals. ``running``: the most relevant share of this round's scores and the
            last ``history`` scores of the row. ``threshold``: positions whose relevance reaches ``threshold``,
            independent of ``relaxation``.
        threshold: Cosine from which a position is strict, for ``selection="threshold"``.
        history: Number of earlier scores that ``selection="running"`` uses, at least 1.
        loose: Which mismatches a loose position accepts. ``always``: all. ``top_m``: the target's ``top_m`` most likely
            tokens. ``ratio``: tokens with at least ``ratio`` times the largest probability. Other mismatches are
            treated as at strict positions.
        top_m: Number of tokens for ``loose="top_m"``, at least 1.
        ratio: Factor for ``loose="ratio"``, in [0, 1].
        pst_window: Window of the position shift tolerance in tokens; 0 turns it off. A strict mismatch is accepted if
            the target's choice is among the ``pst_window`` drafted tokens after it or the ``pst_window`` tokens before
            it. Every occurrence can be used once.
        pst: ``target`` looks for the target's choice only; ``both`` also looks for the drafted token among the
            target's choices of the round.
        special_ids: Guarded tokens: a mismatch that involves one is rejected. The model's special tokens are always
            guarded.
        negation_ids: Further guarded tokens: negations and numerals, which matter although their relevance is low.
        option_ids: Further guarded tokens: the letters of multiple-choice options.
        max_loose_run: Maximum number of consecutive accepted mismatches; ``None`` sets no limit. A run ends with the
            round, which always ends with a token of the target.

    Raises:
        ValueError: A setting outside its range.
    """

    needs_relevance: ClassVar[bool] = True

    relaxation: float = 0.7
    selection: StrictSet = "round"
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
    def needs_ranks_and_ratios(self) -> bool:
        """Whether loose positions compare ranks or probabilities."""
        return self.loose != "always"

    def __post_init__(self) -> None:
        check_share("relaxation", self.relaxation)
        check_share("ratio", self.ratio)
        for name, choices in (("selection", StrictSet), ("loose", Loose), ("pst", Pst)):
            if getattr(self, name) not in get_args(choices):
                known = ", ".join(get_args(choices))
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}: choose one.")
        for name, least in (("history", 1), ("top_m", 1), ("pst_window", 0), ("max_loose_run", 0)):
            if (value := getattr(self, name)) is not None:
                check_count(name, value, least)
        if math.isnan(self.threshold):
            raise ValueError("threshold must be a cosine, got NaN: give a number between -1 and 1.")

    def judge(self, judged: Judged, state: RowState) -> Ruling:
        """Chooses the strict positions, judges the draft, and stores the scores and the used occurrences."""
        scores = required(judged, "relevance")
        outcome = ruling(judged, self._reasons(judged, state, self.strict_places(scores, state)))
        state.scores.extend(scores[: len(outcome.log)])
        while len(state.scores) > self.history:
            state.scores.popleft()
        # keep the used occurrences that are in the text and can still be in the window of a later round
        end = state.position + outcome.accepted
        state.used = {(side, at) for side, at in state.used if side == "text" and end - self.pst_window < at <= end}
        state.position = end + 1
        return outcome

    def strict_places(self, scores: list[float], state: RowState) -> set[int]:
        """The strict positions of a round, counted from 0.

        Args:
            scores: K relevances of this round.
            state: The row's state, whose scores ``selection="running"`` uses; it is not changed.

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
        descending = sorted([*state.scores, *scores], reverse=True)
        count = self._strict_count(len(descending))
        return {place for place, score in enumerate(scores) if count and score >= descending[count - 1]}

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
            elif place not in strict and self._accepts_loose(judged, place):
                yield "loose"
            else:
                yield "pst" if self._shifted(judged, place, state) else "reject"

    def _accepts_loose(self, judged: Judged, place: int) -> bool:
        """Whether a loose position accepts its mismatch."""
        if self.loose == "top_m":
            return required(judged, "ranks")[place] < self.top_m
        if self.loose == "ratio":
            return required(judged, "ratios")[place] >= self.ratio
        return True

    def _shifted(self, judged: Judged, place: int, state: RowState) -> bool:
        """Whether there is an unused occurrence nearby, which is then marked as used."""
        token, choice = judged.drafted[place], judged.choices[place]
        recent = judged.recent[-self.pst_window :]
        text, here = recent + judged.drafted, len(recent) + place
        # first forwards, then backwards, from near to far
        near = [here + step for step in range(1, self.pst_window + 1)]
        near += [here - step for step in range(1, self.pst_window + 1)]
        # the last token of `recent` is at state.position of the row's text, the first drafted token follows it
        start = state.position + 1 - len(recent)
        occurrences = [("text", start + at) for at in near if 0 <= at < len(text) and text[at] == choice]
        if self.pst == "both":
            places = range(max(0, place - self.pst_window), place + self.pst_window + 1)
            occurrences += [("choice", at) for at in places if at < len(judged.choices) and judged.choices[at] == token]
        for occurrence in occurrences:
            if occurrence not in state.used:
                state.used.add(occurrence)
                return True
        return False
