"""Predictions of a model under every missing-data condition, and metrics computed from them."""

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
"""Numbers of one pass by kind and name: ``metrics``, ``weights`` (of CAS, by modality), ``observed`` (by modality)."""


@dataclass(frozen=True)
class EvaluationPass:
    """One pass over the data.

    Args:
        condition: What is missing.
        seed: Seed of the masks.
    """

    condition: Condition
    seed: int


def passes_of(conditions: Sequence[Condition], mask_seeds: int) -> list[EvaluationPass]:
    """List every condition with every mask seed, and conditions that are not random once."""
    return [
        EvaluationPass(condition, seed)
        for condition in conditions
        for seed in range(mask_seeds if condition.random else 1)
    ]


class PredictionPool:
    """Predictions for this rank's samples in every pass, 4 bytes for each number.

    Predictions are kept for each sample instead of being summed, because a distributed sampler repeats some samples to
    give every rank the same number. Which ones is known only after the keys of all ranks are gathered.

    Args:
        passes: Number of passes.
        columns: Number of values in one prediction: 1, or one for each class.
    """

    def __init__(self, passes: int, columns: int) -> None:
        self.columns = columns
        self._keys = [torch.empty(0, dtype=torch.int64)]
        self._labels = [torch.empty(0)]
        self._outcomes = [torch.empty(0, passes, columns + 2 * len(MODALITIES))]

    def add(self, keys: Tensor, labels: Tensor, outcomes: Tensor) -> None:
        """Add a batch.

        Args:
            keys: Keys of the samples, long [B].
            labels: Their labels [B].
            outcomes: For every pass, the prediction, the weights of the modalities (NaN if the model has none), and the
                observed shares of the modalities, [B, passes, columns + 6].
        """
        self._keys.append(keys.cpu())
        self._labels.append(labels.float().cpu())
        self._outcomes.append(outcomes.float().cpu())

    def gathered(self, device: torch.device) -> Predictions:
        """Gather the samples of all ranks, each once, ordered by key. Every rank must call this."""
        keys = gather_rows(torch.cat(self._keys), device)
        labels = gather_rows(torch.cat(self._labels), device)
        outcomes = gather_rows(torch.cat(self._outcomes), device)
        # ordered by key, so that sums do not depend on the distribution of samples over ranks
        _, first = np.unique(keys.numpy(), return_index=True)
        chosen = torch.from_numpy(first)
        values, weights, observed = outcomes[chosen].split([self.columns, len(MODALITIES), len(MODALITIES)], 2)
        return Predictions(labels[chosen], values, weights, observed, repeated=len(keys) - len(first))


@dataclass
class Predictions:
    """Predictions of all samples.

    Args:
        labels: float [N].
        values: Predictions [N, passes, columns].
        weights: Weights of the modalities [N, passes, 3], NaN if the model has none.
        observed: Share of each modality that the model observed, [N, passes, 3].
        repeated: Number of samples that were left out because another has the same key.
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
        """Compute the metrics of every pass, and its mean weights and observed shares.

        Args:
            metrics: A collection made by `metrics_for`; it is reset.
            classification: Whether labels are class numbers.
        """
        weights, observed = self.weights.double().mean(0), self.observed.double().mean(0)
        found = []
        for place in range(self.values.shape[1]):
            numbers: Scores = {"metrics": self._compute(metrics, self.values[:, place], classification)}
            if not bool(weights[place].isnan().any()):
                numbers["weights"] = dict(zip(MODALITIES, weights[place].tolist(), strict=True))
            numbers["observed"] = dict(zip(MODALITIES, observed[place].tolist(), strict=True))
            found.append(numbers)
        return found

    def constants(self, metrics: MetricCollection, classification: bool, label_range: float) -> dict[str, float]:
        """Compute the best result of a constant prediction for each metric, chosen on these labels.

        Args:
            metrics: A collection made by `metrics_for`; it is reset.
            classification: Whether labels are class numbers.
            label_range: Largest label of a regression.

        Returns:
            The smallest MAE and the largest value of all other metrics, without the correlation, which is undefined.
        """
        count = self.values.shape[2]
        if classification:
            candidates = list(torch.eye(count))
        else:
            grid = torch.linspace(-label_range, label_range, 25)
            candidates = [*grid[:, None], self.labels.median()[None]]
        levels = [self._compute(metrics, one.expand(len(self), count), classification) for one in candidates]
        names = [name for name in levels[0] if name != "corr"]
        return {name: (min if name == "mae" else max)(level[name] for level in levels) for name in names}

    def _compute(self, metrics: MetricCollection, values: Tensor, classification: bool) -> dict[str, float]:
        # the samples of all ranks are gathered already: no synchronisation is needed
        for metric in metrics.values():
            metric.distributed_available_fn = _not_distributed
        metrics.update(
            values if classification else values[:, 0], self.labels.long() if classification else self.labels
        )
        result = {name: float(value) for name, value in metrics.compute().items()}
        metrics.reset()
        return result


def _not_distributed() -> bool:
    return False


@dataclass
class Summary:
    """Metrics of one condition, or means over the conditions of a group.

    Args:
        name: Name of the condition or of the group.
        members: The conditions.
        numbers: By kind and name, one number for each mask seed; a single one if the condition is not random.
    """

    name: str
    members: list[Condition]
    numbers: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """Name of the group."""
        return self.members[0].group

    def spread(self, kind: str) -> dict[str, dict[str, float | None]]:
        """Return mean and sample standard deviation over mask seeds; None instead of NaN or infinity."""
        return {name: mean_and_sd(values) for name, values in self.numbers.get(kind, {}).items()}


def mean_and_sd(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean of numbers and their sample standard deviation; None instead of NaN or infinity."""
    if not all(math.isfinite(value) for value in values):
        return {"mean": None, "sd": None}
    return {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None}


def by_condition(passes: Sequence[EvaluationPass], scores: Sequence[Scores]) -> list[Summary]:
    """Make one summary for each condition, in the order of the passes."""
    found: dict[Condition, Summary] = {}
    for one, numbers in zip(passes, scores, strict=True):
        summary = found.setdefault(one.condition, Summary(one.condition.name, [one.condition]))
        for kind, values in numbers.items():
            for name, value in values.items():
                summary.numbers.setdefault(kind, {}).setdefault(name, []).append(value)
    return list(found.values())


def by_group(conditions: Sequence[Summary]) -> list[Summary]:
    """Compute means over the conditions of each group, for each mask seed.

    The mean of a curve includes the complete data, which is its rate 0. The mean of patterns of modalities does not
    include it, because the complete data is the reference there. A curve that begins at 0 also gets its AUILC, the area
    under each metric over its rates.

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
    """Whether nothing is missing under a condition."""
    return set(condition.present) == set(MODALITIES) and not any((*condition.rates, *condition.absent))


def is_curve(conditions: Sequence[Condition]) -> bool:
    """Whether conditions form a curve over their rate: three or more, all at different rates."""
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
    """Return what is logged: the mean over mask seeds of every metric of every group."""
    return {
        f"missing/{group.name.replace(' ', '_')}/{name}": fmean(values)
        for group in groups
        for name, values in group.numbers["metrics"].items()
    }
