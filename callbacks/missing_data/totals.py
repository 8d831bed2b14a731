"""What a model predicted under every missing-data condition, and the numbers that follow from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from saccade.common.distributed import gather_rows
from saccade.datamodules.multimodal.batch import MODALITIES
from saccade.datamodules.multimodal.missing.base import Condition
from saccade.modules.metrics import auilc

Scores = dict[str, dict[str, float]]
"""Numbers of one run by kind and name: ``metrics``, ``weights`` (of CAS, by modality), ``observed`` (by modality)."""


@dataclass(frozen=True)
class Run:
    """One pass over the data.

    Args:
        condition: What is taken away.
        seed: Of the masks.
    """

    condition: Condition
    seed: int


def runs_of(conditions: Sequence[Condition], mask_seeds: int) -> list[Run]:
    """Every condition under every mask seed; a condition that is not random once."""
    return [Run(condition, seed) for condition in conditions for seed in range(mask_seeds if condition.random else 1)]


class PredictionPool:
    """Predictions of this rank's samples under every run, 4 bytes for each number.

    They are kept by sample, not added up, because a distributed sampler hands out some samples twice to make the shares
    equal; which ones is only known when all ranks have named theirs.

    Args:
        runs: Number of runs.
        columns: Numbers of one prediction: 1, or one for each class.
    """

    def __init__(self, runs: int, columns: int) -> None:
        self.columns = columns
        self._keys = [torch.empty(0, dtype=torch.int64)]
        self._labels = [torch.empty(0)]
        self._outcomes = [torch.empty(0, runs, columns + 2 * len(MODALITIES))]

    def add(self, keys: Tensor, labels: Tensor, outcomes: Tensor) -> None:
        """Adds a batch.

        Args:
            keys: Of the samples, long [B].
            labels: Their labels [B].
            outcomes: Of every run: prediction, weights of the modalities (NaN where there are none), and observed
                shares of the modalities, [B, runs, columns + 6].
        """
        self._keys.append(keys.cpu())
        self._labels.append(labels.float().cpu())
        self._outcomes.append(outcomes.float().cpu())

    def gathered(self, device: torch.device) -> Predictions:
        """The samples of all ranks, each once, ordered by key; every rank must call it, also one without samples."""
        keys = gather_rows(torch.cat(self._keys), device)
        labels = gather_rows(torch.cat(self._labels), device)
        outcomes = gather_rows(torch.cat(self._outcomes), device)
        # by key, so that sums do not depend on who had which sample
        _, first = np.unique(keys.numpy(), return_index=True)
        chosen = torch.from_numpy(first)
        values, weights, observed = outcomes[chosen].split([self.columns, len(MODALITIES), len(MODALITIES)], 2)
        return Predictions(labels[chosen], values, weights, observed, repeated=len(keys) - len(first))


@dataclass
class Predictions:
    """Predictions of all samples.

    Args:
        labels: float [N].
        values: Predictions [N, runs, columns].
        weights: Of the modalities, [N, runs, 3], NaN where the model has none.
        observed: Observed share of each modality as the model saw it, [N, runs, 3].
        repeated: How many samples were left out because another has the same key.
    """

    labels: Tensor
    values: Tensor
    weights: Tensor
    observed: Tensor
    repeated: int

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.labels)

    def scores(self, metrics: MetricCollection, classification: bool) -> list[Scores]:
        """The numbers of every run.

        Args:
            metrics: A collection of `metrics_for`; it is reset.
            classification: Whether labels are class numbers.
        """
        weights, observed = self.weights.double().mean(0), self.observed.double().mean(0)
        found = []
        for run in range(self.values.shape[1]):
            numbers: Scores = {"metrics": self._measured(metrics, self.values[:, run], classification)}
            if not bool(weights[run].isnan().any()):
                numbers["weights"] = dict(zip(MODALITIES, weights[run].tolist(), strict=True))
            numbers["observed"] = dict(zip(MODALITIES, observed[run].tolist(), strict=True))
            found.append(numbers)
        return found

    def constants(self, metrics: MetricCollection, classification: bool, label_range: float) -> dict[str, float]:
        """What the best constant prediction would reach, metric by metric, chosen on these very labels.

        Args:
            metrics: A collection of `metrics_for`; it is reset.
            classification: Whether labels are class numbers.
            label_range: Largest label of a regression.

        Returns:
            The smallest MAE and the largest of all others; no correlation, which constants do not have.
        """
        count = self.values.shape[2]
        if classification:
            candidates = list(torch.eye(count))
        else:
            grid = torch.linspace(-label_range, label_range, 25)
            candidates = [*grid[:, None], self.labels.median()[None]]
        levels = [self._measured(metrics, one.expand(len(self), count), classification) for one in candidates]
        names = [name for name in levels[0] if name != "corr"]
        return {name: (min if name == "mae" else max)(level[name] for level in levels) for name in names}

    def _measured(self, metrics: MetricCollection, values: Tensor, classification: bool) -> dict[str, float]:
        # the samples of all ranks are here already: nothing to synchronise
        for metric in metrics.values():
            metric.distributed_available_fn = _nobody_else
        metrics.update(
            values if classification else values[:, 0], self.labels.long() if classification else self.labels
        )
        result = {name: float(value) for name, value in metrics.compute().items()}
        metrics.reset()
        return result


def _nobody_else() -> bool:
    return False


@dataclass
class Summary:
    """Numbers of one condition, or means over the conditions of a group.

    Args:
        name: Of the condition or of the group.
        members: The conditions it stands for.
        numbers: By kind and name, one number for each mask seed; a single one where no seed makes a difference.
    """

    name: str
    members: list[Condition]
    numbers: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """Name of the group."""
        return self.members[0].group

    def spread(self, kind: str) -> dict[str, dict[str, float | None]]:
        """Mean and sample standard deviation over mask seeds; None for what is not a number."""
        return {name: mean_and_sd(values) for name, values in self.numbers.get(kind, {}).items()}


def mean_and_sd(values: Sequence[float]) -> dict[str, float | None]:
    """Mean of some numbers and their sample standard deviation; None where it is not a number."""
    if not all(math.isfinite(value) for value in values):
        return {"mean": None, "sd": None}
    return {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None}


def by_condition(runs: Sequence[Run], scores: Sequence[Scores]) -> list[Summary]:
    """One summary for each condition, in the order of the runs."""
    found: dict[Condition, Summary] = {}
    for run, numbers in zip(runs, scores, strict=True):
        summary = found.setdefault(run.condition, Summary(run.condition.name, [run.condition]))
        for kind, values in numbers.items():
            for name, value in values.items():
                summary.numbers.setdefault(kind, {}).setdefault(name, []).append(value)
    return list(found.values())


def by_group(conditions: Sequence[Summary]) -> list[Summary]:
    """Means over the conditions of each group, mask seed by mask seed.

    The complete data is one of the rates of a curve and counts there; among patterns of modalities it is the bar that
    the others are held against, and does not. A curve that begins at 0 also gets its AUILC, the area under each metric
    over its rates.

    Args:
        conditions: One summary for each condition.

    Returns:
        One summary for each group, in the order of their first conditions.
    """
    groups: dict[str, list[Summary]] = {}
    for summary in conditions:
        groups.setdefault(summary.group, []).append(summary)
    return [_mean(name, members) for name, members in groups.items()]


def is_complete(condition: Condition) -> bool:
    """Whether a condition takes nothing away."""
    return set(condition.present) == set(MODALITIES) and not any((*condition.rates, *condition.absent))


def is_curve(conditions: Sequence[Condition]) -> bool:
    """Whether conditions can be drawn over their rate: three or more, all at different rates."""
    return len(conditions) >= 3 and len({condition.x for condition in conditions}) == len(conditions)


def _mean(name: str, summaries: Sequence[Summary]) -> Summary:
    curve = is_curve([summary.members[0] for summary in summaries])
    counted = [summary for summary in summaries if curve or not is_complete(summary.members[0])] or list(summaries)
    seeds = max(len(values) for summary in counted for values in summary.numbers["metrics"].values())

    def at(summary: Summary, kind: str, key: str, seed: int) -> float:
        values = summary.numbers[kind][key]
        return values[seed if len(values) > 1 else 0]

    numbers: dict[str, dict[str, list[float]]] = {
        kind: {
            key: [fmean(at(summary, kind, key, seed) for summary in counted) for seed in range(seeds)] for key in keys
        }
        for kind, keys in counted[0].numbers.items()
    }
    rates = [summary.members[0].x for summary in counted]
    if curve and min(rates) == 0:
        for key in [key for key in numbers["metrics"] if key in _AREAS]:
            area = [auilc(rates, [at(summary, "metrics", key, seed) for summary in counted]) for seed in range(seeds)]
            numbers["metrics"][f"auilc_{key}"] = area
    return Summary(name, [summary.members[0] for summary in counted], numbers)


_AREAS = ("mae", "acc_2", "acc_2_has0", "acc_2_non0", "accuracy")


def logged(groups: Sequence[Summary]) -> dict[str, float]:
    """What goes to the logger: the mean over mask seeds of every metric of every group."""
    return {
        f"missing/{group.name.replace(' ', '_')}/{name}": fmean(values)
        for group in groups
        for name, values in group.numbers["metrics"].items()
    }
