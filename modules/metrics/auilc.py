"""AUILC: one number for a metric over all rates of missing data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saccade.modules.metrics.sums import SumMetric

_SAME_RATE = 1e-6


def auilc(rates: Sequence[float], values: Sequence[float]) -> float:
    """Area under a metric as a function of the missing rate, by trapezoids.

    This is the "area under indicators line chart" of TFR-Net and its successors. The area is *not* divided by the width
    of the rates, as in their tables: over rates 0 to 1 it is a mean, over 0 to 0.5 (CH-SIMS) it is half of one. So
    areas over different rates are not comparable.

    Args:
        rates: Missing rates in any order, each once, at least two.
        values: The metric at each of them.

    Returns:
        The area, in units of the metric.

    Raises:
        ValueError: There are too few rates, a rate comes twice, or the lengths differ.
    """
    if len(rates) != len(values):
        raise ValueError(f"values: must be one for each of the {len(rates)} rates, but are {len(values)}")
    order = sorted(range(len(rates)), key=lambda index: rates[index])
    x = torch.tensor([float(rates[index]) for index in order], dtype=torch.float64)
    y = torch.tensor([float(values[index]) for index in order], dtype=torch.float64)
    if len(x) < 2 or not bool((x.diff() > _SAME_RATE).all()):
        raise ValueError(f"rates: must be at least two different numbers, each once, but are {list(rates)}")
    return float(torch.trapezoid(y, x))


class AUILC(SumMetric):
    """Area under a metric as a function of the missing rate; see `auilc`.

    Values that are given for one rate, by several mask seeds or by several ranks, are averaged first, so it makes no
    difference whether every rank reports a rate or only one does.

    Args:
        rates: The rates that must be measured, each once, at least two. None takes 0, 0.1, ..., 1.

    Raises:
        ValueError: The rates are impossible.
    """

    higher_is_better = None
    is_differentiable = False
    totals: Tensor
    counts: Tensor

    def __init__(self, rates: Sequence[float] | None = None) -> None:
        super().__init__()
        self.rates = [index / 10 for index in range(11)] if rates is None else [float(rate) for rate in rates]
        auilc(self.rates, self.rates)
        self.add_sum("totals", (len(self.rates),))
        self.add_sum("counts", (len(self.rates),), torch.long)

    def update(self, rate: float, value: float | Tensor) -> None:
        """Add a measured value.

        Args:
            rate: Missing rate at which it was measured, one of `rates`.
            value: Of the metric over the whole data set, the same unit each time.

        Raises:
            ValueError: The rate is not one of `rates`.
        """
        slots = [index for index, known in enumerate(self.rates) if abs(known - rate) <= _SAME_RATE]
        if not slots:
            raise ValueError(f"rate: must be one of {self.rates}, but is {rate:g}; name the rates when making AUILC")
        slot = torch.arange(len(self.rates), device=self.counts.device) == slots[0]
        # not `slot * value`: NaN of one rate would reach the others
        self.totals = torch.where(slot, self.totals + float(value), self.totals)
        self.counts = self.counts + slot

    def compute(self) -> Tensor:
        """The area, float32 scalar.

        Raises:
            ValueError: A rate was measured on no rank; an area over fewer rates would be another number.
        """
        missing = [rate for rate, count in zip(self.rates, self.counts.tolist(), strict=True) if count == 0]
        if missing:
            raise ValueError(
                f"AUILC: every rate must have a value, but {missing} have none; measure them or name fewer"
            )
        return self.totals.new_tensor(auilc(self.rates, (self.totals / self.counts).tolist()), dtype=torch.float32)
