"""DraftControl: how many tokens to draft in the next round, from what rounds have cost and what was accepted (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from saccade.inference.drafting.control.acceptances import Acceptances
from saccade.inference.drafting.control.control import Control
from saccade.inference.drafting.control.costs import RoundCosts
from saccade.inference.drafting.control.probes import Probes

ControlKind = Literal["auto", "fixed"]
"""Whether the number of drafted tokens is chosen in every round, or is what the decoder's settings say."""

_FIRST_DRAFT = 4
"""Length of the drafts with which an unknown model starts: enough to tell what a token costs, and cheap to lose."""
_SHARE_DECAY = 0.93
"""Weight of the earlier rounds in the shares of the grades."""
_LEAST_SHARE = 0.01
"""Share that a grade is taken to have at least."""
_LEAST_LEFT = 16.0
"""Tokens that a text is taken to have left at least."""
_MARGIN = 1.03
"""Drafting must promise this factor over plain rounds: below it, its gain is within the error of the estimates."""


class _Grade:
    """What is known of the drafts of a grade: acceptances, present choice and, where it is none, probes.

    Args:
        longest: The most tokens that a draft may have.
    """

    def __init__(self, longest: int) -> None:
        self.acceptances, self.probes = Acceptances(longest), Probes()
        self.share = 0.0
        self.count: int | None = None  # drafted tokens; None until it is chosen anew
        self.probe = longest
        self.used = 0  # the last choice


class DraftControl(Control):
    """Chooses the number of drafted tokens with the most tokens for the time, zero included.

    A round that drafts ``k`` tokens costs the time ``C(k)`` and gives ``E(k) = 1 + p1 + p1 p2 + ... + p1 ... pk``
    tokens, where ``p`` is the acceptance at each place of a draft, given that the places before were accepted. Both are
    measured while decoding: :class:`saccade.inference.drafting.control.costs.RoundCosts`,
    :class:`saccade.inference.drafting.control.acceptances.Acceptances`. The choice is the ``k`` with the largest
    ``E(k) / C(k)``, where rounds for which the drafter finds nothing count on both sides.

    A drafter may grade what it has found before it drafts (prompt lookup: by the length of the match). Then each grade
    has its own acceptances and its own choice, and the rounds of the other grades count on both sides too.

    When the choice is zero, drafting is tried again as soon as half a percent of the time of the plain rounds has made
    up for what the trial can lose (:class:`saccade.inference.drafting.control.probes.Probes`), so that text that
    becomes easy is noticed: after some twenty rounds where a draft costs next to nothing, after two hundred where it
    costs as much as a token. What the first draft of a text costs beyond later ones (a draft model reads the prompt)
    has to pay in a text as long as the last ones. The costs stay with the decoder for its next call; what was accepted
    counts there as a guess.

    Args:
        longest: The most tokens that a draft may have, at least 1.

    Attributes:
        costs: Seconds of rounds.
        rounds: Rounds that were observed.
        plain_rounds: Rounds among them without a draft, at times when the control chose none for any grade.
    """

    def __init__(self, longest: int) -> None:
        super().__init__(longest)
        self.costs = RoundCosts()
        self._grades = {1: _Grade(longest)}
        self._grades[1].share = 1.0
        self._empty = 0.0  # share of rounds for which the drafter finds nothing
        self._behind, self._begun = True, False
        self._text, self._usual_text = 0.0, 0.0
        self._lengths = choices(longest)

    def begin(self) -> None:
        """Starts a call: the acceptances of earlier texts count as a guess."""
        for item in self._grades.values():
            item.acceptances.begin()
            item.probes.begin(self.costs.plain or 0.0)
            item.count = None
        self._usual_text = 0.5 * (self._usual_text + self._text) if self._usual_text else self._text
        self._text, self._begun, self._behind = 0.0, False, True

    def length(self, grade: int | None = None) -> int:
        """The most tokens that the next round should draft.

        Args:
            grade: How good the drafter takes what it has found to be, 0 for nothing; ``None`` if it does not say.
        """
        if self.costs.plain is None or grade == 0:
            return 0
        if not self.costs.of_drafts:
            return min(self.longest, _FIRST_DRAFT)
        item = self._grade(1 if grade is None else grade)
        if item.count is None:
            self._choose(item, self.costs.entry(self._begun) if grade is None else 0.0)
        return item.count or (item.probe if item.probes.due() else 0)

    def _grade(self, grade: int) -> _Grade:
        if grade not in self._grades:
            item = self._grades[grade] = _Grade(self.longest)
            item.probes.begin(self.costs.plain or 0.0)
        return self._grades[grade]

    def _choose(self, item: _Grade, entry: float) -> None:
        """Sets what the rounds of a grade draft, and where that is nothing, what a probe drafts and may lose."""
        expected, plain = item.acceptances.expected(), self.costs(0)
        best = self._fastest(item, expected)
        seconds = self.costs(best)
        pays = self._pays(expected[best], seconds)
        if pays and entry and self._behind:  # the rest of a text as long as the last ones has to make up for it
            left = max(self._usual_text - self._text, _LEAST_LEFT)
            pays = left * (plain - seconds / expected[best]) > entry
        item.count = item.used = best if pays else 0
        item.probe = best
        item.probes.price(seconds - plain, plain, entry)

    def _pays(self, tokens: float, seconds: float) -> bool:
        return tokens * self.costs(0) > _MARGIN * seconds

    def _fastest(self, item: _Grade, expected: Sequence[float]) -> int:
        """The number of drafted tokens above zero with the most tokens for the time of all rounds."""
        share, tokens, seconds = self._others(item)
        return max(
            self._lengths[1:],
            key=lambda count: (tokens + share * expected[count]) / (seconds + share * self.costs(count)),
        )

    def _others(self, item: _Grade) -> tuple[float, float, float]:
        """The share of a grade in the rounds, and the tokens and seconds of the others for each round."""
        tokens, seconds = self._empty, self._empty * self.costs(0)
        for other in self._grades.values():
            if other is not item and other.share > _LEAST_SHARE:
                tokens += other.share * other.acceptances.expected()[other.used]
                seconds += other.share * self.costs(other.used)
        return max(item.share, _LEAST_SHARE), tokens, seconds

    def best(self, grade: int = 1) -> int:
        """The number of drafted tokens with the most tokens for the time; 0 if no draft promises a gain.

        Args:
            grade: Of the draft.
        """
        item = self._grade(grade)
        expected = item.acceptances.expected()
        found = self._fastest(item, expected)
        return found if self._pays(expected[found], self.costs(found)) else 0

    def speed(self, count: int, grade: int = 1) -> float:
        """Tokens a second of rounds that may draft ``count`` tokens, by the present estimates.

        Args:
            count: Drafted tokens, 0 to ``longest``, in rounds of the grade; the others go on as they do.
            grade: Of the drafts.
        """
        share, tokens, seconds = self._others(self._grade(grade))
        return (tokens + share * self.tokens(count, grade)) / (seconds + share * self.costs(count))

    def tokens(self, count: int, grade: int = 1) -> float:
        """Expected tokens of a round that drafts ``count`` tokens: the accepted ones and one of the target.

        Args:
            count: Drafted tokens.
            grade: Of the draft.
        """
        return self._grade(grade).acceptances.expected()[count]

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
        count = min(max(drafted, default=0), self.longest)
        tokens = 1.0 + sum(accepted) / max(1, len(accepted))
        self._text += tokens
        # a drafter that has graded its draft has no cache of its own that could have missed tokens
        reads = count > 0 and self._behind and grade is None
        entry = self.costs.entry(self._begun) if reads else 0.0
        self.costs.observe(count, seconds, reads, self._begun)
        self._begun |= count > 0
        self._behind = allowed == 0
        if allowed or grade is not None:
            self._count_shares(int(count > 0) if grade is None else grade)
        plain = self.costs.plain or 0.0
        if not allowed:
            self.plain_rounds += not any(item.used for item in self._grades.values())
            for item in self._grades.values():
                item.probes.save(plain)
            return
        item = self._grade(1 if grade is None else grade)
        for row, taken in zip(drafted, accepted, strict=True):
            item.acceptances.observe(row, taken, item.probes.going)
        for other in self._grades.values():
            other.count = None
        if item.probes.going and count:
            item.probes.observe(self.costs(count) - tokens * plain + entry, list(drafted) == list(accepted))

    def _count_shares(self, grade: int) -> None:
        """Counts a round for which the drafter had found a draft of a grade, or nothing: 0."""
        self._empty *= _SHARE_DECAY
        for item in self._grades.values():
            item.share *= _SHARE_DECAY
        if grade:
            self._grade(grade).share += 1.0 - _SHARE_DECAY
        else:
            self._empty += 1.0 - _SHARE_DECAY


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
