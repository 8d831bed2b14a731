"""The area under a metric over missing rates."""

import numpy as np
import pytest

from saccade.modules.metrics import auilc

RATES = [index / 10 for index in range(11)]


def test_area_is_the_trapezoids_and_is_not_divided():
    values = np.random.default_rng(0).random(11)
    assert auilc(RATES, list(values)) == pytest.approx(np.trapezoid(values, RATES))
    order = np.random.default_rng(1).permutation(11)
    assert auilc([RATES[i] for i in order], [values[i] for i in order]) == pytest.approx(np.trapezoid(values, RATES))
    # CH-SIMS: a constant 74.6 % over rates to a half is an area of 37.3
    assert auilc(RATES[:6], [0.746] * 6) == pytest.approx(0.373)


@pytest.mark.parametrize("rates", [[], [0.1], [0.1, 0.2, 0.1]])
def test_impossible_rates(rates):
    with pytest.raises(ValueError, match="rates must be at least two different numbers"):
        auilc(rates, rates)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="values must have one entry for each of the 2 rates, got 3"):
        auilc([0, 1], [1, 2, 3])
