"""How a budget is divided: exact sums, limits, and the smallest budget that is enough."""

from __future__ import annotations

import random
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.inference.compression.allocation import (
    BudgetTooSmallError,
    allocate,
    split_evenly,
    total_budget,
    water_fill,
)


def test_random_allocations_keep_to_every_rule() -> None:
    draw, refused, full = random.Random(0), 0, 0
    for _ in range(10_000):
        units, length, chunk = draw.randint(1, 12), draw.randint(1, 4000), draw.choice((1, 7, 16, 64))
        scores, theta = [draw.random() for _ in range(units)], draw.choice((0, 0.3, 0.6, 0.9, 2))
        static = [score >= theta for score in scores]
        budget = draw.choice((1, round(draw.uniform(0.001, 1), 3)))
        least_static, least_dynamic = draw.randint(0, 100), draw.randint(1, 100)
        divided = partial(
            allocate, static, [1 - score for score in scores], length=length, ratio=draw.choice((0.25, 1, 2, 4, 6.3)),
            chunk=chunk, least_static=least_static, least_dynamic=least_dynamic,
        )  # fmt: skip
        least = [min(length, least_static if kind else -(-least_dynamic // chunk) * chunk) for kind in static]
        if total_budget(budget, units, length) < sum(least):
            refused += 1
            with pytest.raises(BudgetTooSmallError) as caught:
                divided(budget=budget)
            assert budget < caught.value.smallest <= 1
            assert f"at least {caught.value.smallest}" in str(caught.value)
            budget = caught.value.smallest
        caps, total = divided(budget=budget), total_budget(budget, units, length)
        assert sum(caps) <= total
        for cap, kind, low in zip(caps, static, least, strict=True):
            assert low <= cap <= length
            assert kind or cap % chunk == 0 or cap == length
        # nothing is left over, but for what does not divide into chunks where no static head has room
        if any(cap < length for cap, kind in zip(caps, static, strict=True) if kind):
            assert sum(caps) == total
        else:
            assert total - sum(caps) < max(1, chunk * (units - sum(static)))
        full += budget == 1 and caps == [length] * units
    assert refused > 300
    assert full > 4000, "the whole budget keeps everything, whatever the ratio"


def test_the_smallest_budget_is_the_smallest() -> None:
    def divided(budget: float) -> list[int]:
        return allocate(
            [True, False], [1, 1], budget=budget, length=1000, ratio=4, chunk=16, least_static=52, least_dynamic=64
        )

    with pytest.raises(BudgetTooSmallError, match=r"at least 0\.058 for a prompt of 1000 tokens, got 0\.0579: raise"):
        divided(0.0579)
    assert divided(0.058) == [52, 64]


def test_static_heads_get_the_ratio() -> None:
    caps = allocate(
        [True] * 8 + [False] * 24, [1] * 32, budget=0.1, length=2048, ratio=4, chunk=16, least_static=52,
        least_dynamic=64,
    )  # fmt: skip
    assert caps[-1] == 112  # 24 / (24 + 4 * 8) of 6553 entries, a twenty-fourth, in whole chunks
    assert sum(caps) == 6553
    assert set(caps[:8]) == {483, 484}  # equal weights


@given(st.data())
@settings(max_examples=100)
def test_water_filling_is_exact_and_follows_the_weights(data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, 8))
    limits = [sorted(data.draw(st.tuples(st.integers(0, 500), st.integers(0, 500)))) for _ in range(parts)]
    low, high = [pair[0] for pair in limits], [pair[1] for pair in limits]
    total = data.draw(st.integers(sum(low), sum(high)))
    weights = data.draw(st.lists(st.floats(0, 1), min_size=parts, max_size=parts))
    filled = water_fill(total, weights, low, high)
    assert sum(filled) == total
    assert all(a <= b <= c for a, b, c in zip(low, filled, high, strict=True))
    extra = [(part - least, weight) for part, least, weight in zip(filled, low, weights, strict=True)]
    inside = [pair for pair, part, most in zip(extra, filled, high, strict=True) if part < most]
    for (more, heavy), (less, light) in pairwise(inside):
        assert (more + 1) * light >= (less - 1) * heavy - 1e-6 * 500  # a heavier head never gets less, but for rounding
        assert heavy < light or more >= less - 1


def test_water_filling_refuses_what_does_not_fit() -> None:
    assert water_fill(10, [1, 3], [0, 0], [10, 4]) == [6, 4]
    assert water_fill(4, [0, 0], [0, 0], [10, 10]) == [2, 2]
    with pytest.raises(ValueError, match=r"^total must be between 1 and 8, got 9: "):
        water_fill(9, [1, 1], [1, 0], [4, 4])


def test_budgets_are_exact_on_decimals() -> None:
    assert total_budget(0.29, 1, 100) == 29  # 0.29 * 100 is 28.999999999999996
    assert split_evenly(7, 3) == [3, 2, 2]
