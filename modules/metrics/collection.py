"""The metrics of a task, under the names that are logged."""

from __future__ import annotations

from typing import Literal

from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from saccade.common.checks import check_count
from saccade.modules.metrics.regression import MeanAbsoluteError, PearsonCorrelation
from saccade.modules.metrics.sentiment import SentimentAccuracy, SentimentF1, check_classes


def metrics_for(
    task: Literal["regression", "classification"], label_range: float = 3.0, classes: int | None = None
) -> MetricCollection:
    """Create the metrics of a task as one collection; `update(preds, target)` updates all of them.

    Regression on labels in [-3, 3]: `mae`, `corr`, `acc_2_has0`, `f1_has0` (negative or not), `acc_2_non0`, `f1_non0`
    (negative or positive, without neutral samples), `acc_3`, `acc_5`, `acc_7`. On labels in [-1, 1]: `mae`, `corr`,
    `acc_2`, `f1`, `acc_3`, `acc_5`. Classification: `accuracy`, and `f1` weighted by the classes' true supports.

    Args:
        task: "regression" takes values [B] and labels [B]; "classification" logits [B, C] and class numbers, long [B].
        label_range: Largest label, for regression: 3 (MOSI, MOSEI) or 1 (CH-SIMS).
        classes: Number of classes, at least 2, for classification.

    Returns:
        A new collection; accuracies and F1 are fractions. `clone(prefix="val_")` returns a copy with prefixed names.

    Raises:
        ValueError: A setting is out of range.
    """
    metrics: dict[str, Metric]
    if task == "classification":
        if classes is None:
            raise ValueError("classes must be given for classification, got None: give the number of classes.")
        check_count("classes", classes, 2)
        metrics = {
            "accuracy": MulticlassAccuracy(classes, average="micro"),
            "f1": MulticlassF1Score(classes, average="weighted"),
        }
    elif task == "regression":
        check_classes(2, label_range)
        metrics = {"mae": MeanAbsoluteError(), "corr": PearsonCorrelation()}
        if label_range == 1:
            metrics |= {"acc_2": SentimentAccuracy(2, 1.0), "f1": SentimentF1(1.0)}
        else:
            for zeros in ("has0", "non0"):
                metrics[f"acc_2_{zeros}"] = SentimentAccuracy(2, zeros=zeros)
                metrics[f"f1_{zeros}"] = SentimentF1(zeros=zeros)
        for count in (3, 5) if label_range == 1 else (3, 5, 7):
            metrics[f"acc_{count}"] = SentimentAccuracy(count, label_range)
    else:
        raise ValueError(f"task must be regression or classification, got {task!r}: choose one of them.")
    # With compute groups, torchmetrics lets metrics share their states if these are equal after the first batch; the
    # accuracies of different numbers of classes may be equal there by chance.
    return MetricCollection(dict(metrics), compute_groups=False)
