"""Prompt lookup with draft control where kinds of text change: no kind loses, and none gives up what drafts gain."""

from __future__ import annotations

import pytest

from saccade.inference.drafting.control import DraftControl
from tests.inference.drafting.played_texts import H200, play, ratios, written

KINDS = {"copies": 0.2, "none": 0.0, "some": 0.05, "new": 0.0}
"""Chance that a copy of a part of the prompt begins, by kind."""


def texts(length: int, rounds: int = 8):
    """Three texts of each kind, in turn."""
    return [
        written(kind, copies, length, seed=100 * turn + 10 * place + number)
        for turn in range(rounds)
        for place, (kind, copies) in enumerate(KINDS.items())
        for number in range(3)
    ]


@pytest.mark.parametrize("cost", H200)
@pytest.mark.parametrize(("length", "least"), [(20, 0.96), (200, 0.98)])
def test_no_kind_loses_and_none_gives_up_what_drafts_gain(length, least, cost):
    for kind, (chosen, best) in ratios(texts(length), H200[cost]).items():
        assert chosen >= least, kind
        assert chosen >= 0.95 * best, kind


def test_short_matches_are_not_drafted_where_only_long_ones_are_right():
    """Matches of one token are chance, those of more are copies: without grades their mean decides for both."""

    class Ungraded(DraftControl):
        def length(self, grade=None):
            return super().length()

        def observe(self, drafted, accepted, allowed, seconds, grade=None):
            super().observe(drafted, accepted, allowed, seconds)

    some = [written("some", 0.05, 200, seed) for seed in range(12)]
    (graded, best), (ungraded, _) = (ratios(some, H200["a jump"], kind(8))["some"] for kind in (DraftControl, Ungraded))
    assert graded > 1.03 * max(ungraded, best)


def test_a_new_text_of_another_kind_tries_one_draft():
    control = DraftControl(8)
    for seed in range(6):
        play(written("copies", 0.2, 200, seed), control, H200["a jump"])
    for seed in range(3):
        play(written("none", 0.0, 200, seed), control, H200["a jump"])
    drafts, observe = [], control.observe

    def counted(drafted, *rest):
        drafts.append(drafted[0] > 0)
        observe(drafted, *rest)

    control.observe = counted
    for seed in range(10, 20):
        play(written("none", 0.0, 20, seed), control, H200["a jump"])
    assert 1 <= sum(drafts) <= 15
