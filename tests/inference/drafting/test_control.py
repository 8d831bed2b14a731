"""The length of drafts: nearly as fast as the best fixed length, and never much slower than no draft."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from saccade.inference.drafting.control import DraftControl, choices

LONGEST = 12


def expected(accepted: float, count: int) -> float:
    return sum(accepted**place for place in range(count + 1))


def simulate(
    control: DraftControl | int,
    cost: Callable[[int], float],
    accepted: Callable[[int], float],
    tokens: int,
    noise: float = 0.1,
    found: float = 1.0,
    seed: int = 0,
) -> float:
    """Tokens for the time of a text; a round has a draft with probability `found`, as prompt lookup does."""
    draw, total, elapsed = random.Random(seed), 0, 0.0
    while total < tokens:
        allowed = control if isinstance(control, int) else control.length()
        drafted = allowed if draw.random() < found else 0
        taken = 0
        while taken < drafted and draw.random() < accepted(total):
            taken += 1
        seconds = cost(drafted) * (1 + noise * abs(draw.gauss(0, 1)))
        if not isinstance(control, int):
            control.observe([drafted], [taken], allowed, seconds)
        total += taken + 1
        elapsed += seconds
    return total / elapsed


COSTS = {
    "a step costs what a token costs": lambda count: 1.0 + 1.0 * count,
    "a cheap draft": lambda count: 1.0 + 0.05 * (count > 0) + 0.08 * count,
    "wide steps cost more": lambda count: 1.0 + 0.15 * count,
    "drafting has a start": lambda count: 1.0 + 0.5 * (count > 0) + 0.02 * count,
}


@pytest.mark.parametrize("found", [1.0, 0.4])
@pytest.mark.parametrize("accepted", [0.05, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", COSTS)
def test_never_slower_than_plain_and_nearly_the_best(name, accepted, found):
    cost = COSTS[name]
    fixed = {count: simulate(count, cost, lambda place: accepted, 6000, found=found) for count in choices(LONGEST)}
    chosen = simulate(DraftControl(LONGEST), cost, lambda place: accepted, 4000, found=found, seed=1)
    assert chosen >= 0.97 * fixed[0]
    best = max(fixed.values())
    assert chosen - fixed[0] >= 0.9 * (best - fixed[0]) - 0.04 * fixed[0], fixed


def test_a_text_that_becomes_easy_is_noticed():
    control = DraftControl(LONGEST)
    cost = COSTS["a cheap draft"]
    simulate(control, cost, lambda place: 0.0, 500)
    assert control.best() == 0
    easy = simulate(control, cost, lambda place: 0.95, 2000)
    assert easy >= 0.8 * simulate(LONGEST, cost, lambda place: 0.95, 2000)


def test_a_text_that_becomes_hard_is_noticed():
    control = DraftControl(LONGEST)
    cost = COSTS["wide steps cost more"]
    simulate(control, cost, lambda place: 0.95, 500)
    assert control.best() >= 4
    assert simulate(control, cost, lambda place: 0.0, 1000) >= 0.9 * simulate(0, cost, lambda place: 0.0, 1000)


def test_the_first_rounds_measure_the_plain_step():
    control = DraftControl(4)
    lengths = []
    for _ in range(6):
        allowed = control.length()
        lengths.append(allowed)
        control.observe([allowed], [0], allowed, 1.0)
    assert lengths == [0, 0, 0, 0, 4, 4]


def test_a_slow_first_round_of_a_length_does_not_count():
    """It captures a graph."""
    control = DraftControl(4)
    for seconds in (50.0, 1.0, 1.0, 1.0):
        control.observe([0], [0], 0, seconds)
    assert control.costs(0) == 1.0
    for seconds in (70.0, 1.5, 1.5):
        control.observe([4], [4], 4, seconds)
    assert control.costs(4) == 1.5
    assert control.best() == 4


def test_costs_stay_and_acceptances_become_a_guess():
    control = DraftControl(4)
    for _ in range(50):
        control.observe([0], [0], 0, 1.0)
        control.observe([4], [4], 4, 2.0)
        control.observe([4], [4], 4, 2.0)
    control.begin()
    assert control.costs(4) == 2.0
    assert control.length() == 4
    for _ in range(8):
        control.observe([4], [0], 4, 2.0)
    assert control.length() < 4, "a few rounds of another text outweigh the earlier ones"


def test_few_lengths():
    assert choices(1) == [0, 1]
    assert choices(12) == [0, 1, 2, 3, 4, 6, 8, 12]
    assert choices(5) == [0, 1, 2, 3, 4, 5]


def test_rounds_in_which_nothing_is_found_leave_room_for_longer_drafts():
    """Their time is spent anyway, so that the best length is longer than that of the rounds with a draft alone."""
    costs = {0: 1.0, 4: 1.4, 12: 2.2}
    always, seldom = DraftControl(12), DraftControl(12)
    for control, empty in ((always, 0), (seldom, 9)):
        for _ in range(4):
            control.observe([0], [0], 0, costs[0])
        for _ in range(40):
            for _ in range(empty):
                control.observe([0], [0], 12, costs[0])
            for count, taken in ((4, 4), (4, 4), (12, 6)):
                control.observe([count], [taken], count, costs[count])
    assert always.tokens(12) == pytest.approx(seldom.tokens(12), rel=0.01)
    assert always.speed(4) > always.speed(12)
    assert seldom.speed(12) > seldom.speed(4)


@pytest.mark.parametrize(("price", "most"), [(0.15, 0.07), (1.0, 0.01), (4.0, 0.003)])
def test_probes_lose_half_a_percent(price, most):
    """What a probe costs decides how often drafting is tried again where it does not pay."""
    control = DraftControl(4)
    tried = 0
    for place in range(6000):
        allowed = control.length()
        tried += allowed > 0 and place > 100
        control.observe([allowed], [0], allowed, 1.0 + (price * allowed if allowed else 0.0))
    assert 0.2 * most <= tried / 6000 <= most


@pytest.mark.parametrize(("entry", "texts_with_drafts"), [(2.0, True), (80.0, False)])
def test_what_the_first_draft_of_a_text_costs_beyond_later_ones_counts(entry, texts_with_drafts):
    """A draft model reads the prompt first; in a short text a small gain does not make up for it."""
    control = DraftControl(4)
    with_drafts = 0
    for text in range(40):
        control.begin()
        missed, tokens, drafts = entry, 0, 0
        while tokens < 100:
            allowed = control.length()
            taken = min(allowed, 2)
            control.observe([allowed], [taken], allowed, 1.0 + 0.12 * allowed + (missed if allowed else 0.0))
            missed = 0.0 if allowed else missed
            tokens += 1 + taken
            drafts += allowed > 0
        with_drafts += drafts > 10 and text >= 20
    assert with_drafts == (20 if texts_with_drafts else 0)
