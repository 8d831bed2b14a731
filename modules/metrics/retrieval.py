"""Measures of retrieval as a metric that adds up over batches and ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from saccade.modules.metrics.sums import SumMetric
from saccade.retrieval.measures import METRICS, Qrels, Run, check_metrics, measure


class RetrievalMeasures(SumMetric):
    """Means over queries of trec_eval's measures; see `saccade.retrieval.measures.measure`.

    The states are sums over queries, so any number of ranks that measure different queries gives what one process
    gives. A query that two ranks measure counts twice: hand each to one rank.

    Args:
        metrics: Names of the measures, each with its cut.

    Raises:
        ValueError: A measure does not exist, or pytrec_eval is missing.
    """

    higher_is_better = True
    is_differentiable = False
    totals: Tensor
    count: Tensor

    def __init__(self, metrics: Sequence[str] = METRICS) -> None:
        super().__init__()
        check_metrics(metrics)
        self.metrics = (metrics,) if isinstance(metrics, str) else tuple(metrics)
        self.add_sum("totals", (len(self.metrics),))
        self.add_sum("count", dtype=torch.long)

    def update(self, run: Run, qrels: Qrels) -> None:
        """Measure some queries.

        Args:
            run: Scores by query and document, of these queries.
            qrels: Grades by query and document, of these queries and no others: every query here counts, 0 where the
                run lacks it.

        Raises:
            ValueError: A score is not a number, or a grade is not a whole number.
        """
        values = measure(run, qrels, self.metrics).per_query
        totals = [math.fsum(values[name].values()) for name in self.metrics]
        self.totals = self.totals + self.totals.new_tensor(totals)
        self.count = self.count + len(qrels)

    def compute(self) -> dict[str, float]:
        """By measure, its mean over the queries, a fraction; 0 without queries."""
        means = (self.totals / self.count.clamp(min=1)).tolist()
        return dict(zip(self.metrics, means, strict=True))
