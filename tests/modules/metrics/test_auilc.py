"""The area under a metric over missing rates."""

import numpy as np
import pytest
import torch

from saccade.modules.metrics import AUILC, auilc

RATES = [index / 10 for index in range(11)]


def test_area_is_the_trapezoids_and_is_not_divided():
    values = np.random.default_rng(0).random(11)
    assert auilc(RATES, list(values)) == pytest.approx(np.trapezoid(values, RATES))
    order = np.random.default_rng(1).permutation(11)
    assert auilc([RATES[i] for i in order], [values[i] for i in order]) == pytest.approx(np.trapezoid(values, RATES))
    # CH-SIMS: a constant 74.6 % over rates to a half is an area of 37.3
    assert auilc(RATES[:6], [0.746] * 6) == pytest.approx(0.373)


def test_class_averages_repeated_rates_and_takes_any_order():
    metric = AUILC()
    values = np.random.default_rng(2).random((3, 11))
    for seed in range(3):
        for index in np.random.default_rng(seed).permutation(11):
            metric.update(0.1 * index, torch.tensor(values[seed, index]))
    assert float(metric.compute()) == pytest.approx(np.trapezoid(values.mean(0), RATES), abs=1e-6)


def test_a_missing_or_unknown_rate_is_refused():
    metric = AUILC([0.0, 0.5, 1.0])
    metric.update(0.0, 1.0)
    with pytest.raises(ValueError, match=r"every rate must have a value, but \[0.5, 1.0\] have none"):
        metric.compute()
    with pytest.raises(ValueError, match=r"rate: must be one of .* but is 0.3"):
        metric.update(0.3, 1.0)


@pytest.mark.parametrize("rates", [[], [0.1], [0.1, 0.2, 0.1]])
def test_impossible_rates(rates):
    with pytest.raises(ValueError, match="rates: must be at least two different numbers"):
        AUILC(rates)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="values: must be one for each of the 2 rates, but are 3"):
        auilc([0, 1], [1, 2, 3])
