"""AUILC: one number that summarises a metric over all missing rates."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_SAME_RATE = 1e-6  # rates that differ by less are the same rate


def auilc(rates: Sequence[float], values: Sequence[float]) -> float:
    """Area under a metric as a function of the missing rate, by the trapezoidal rule.

    This is the "area under indicators line chart" of TFR-Net and the papers that follow it. As in their tables, the
    area is *not* divided by the range of the rates: over rates 0 to 1 it equals the mean, over 0 to 0.5 (CH-SIMS) half
    of the mean. Areas over different ranges are therefore not comparable.

    Args:
        rates: At least two different missing rates, in any order.
        values: The metric at each of them.

    Returns:
        The area, in units of the metric.

    Raises:
        ValueError: There are fewer than two rates, a rate is repeated, or the lengths differ.
    """
    if len(rates) != len(values):
        raise ValueError(f"values must have one entry for each of the {len(rates)} rates, got {len(values)}.")
    order = sorted(range(len(rates)), key=lambda index: rates[index])
    x = torch.tensor([float(rates[index]) for index in order], dtype=torch.float64)
    y = torch.tensor([float(values[index]) for index in order], dtype=torch.float64)
    if len(x) < 2 or not bool((x.diff() > _SAME_RATE).all()):
        raise ValueError(f"rates must be at least two different numbers, got {list(rates)}: give each rate once.")
    return float(torch.trapezoid(y, x))
