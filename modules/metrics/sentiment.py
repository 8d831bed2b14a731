"""Accuracy and F1 of sentiment classes, which are intervals of the sentiment strength.

The class boundaries are those commonly reported (`metricsTop` of MMSA); the implementation is ours.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from saccade.modules.metrics.sums import SumMetric, check_pairs, ratio

Zeros = Literal["has0", "non0"]
"""How samples whose label is 0 are treated: "has0" counts them as non-negative, "non0" leaves them out."""

# CH-SIMS: a value on a boundary belongs to the class below
_SIMS_BOUNDARIES = {2: (0.0,), 3: (-0.1, 0.1), 5: (-0.7, -0.1, 0.1, 0.7)}


def sentiment_class(values: Tensor, classes: int, label_range: float = 3.0, zeros: Zeros = "has0") -> Tensor:
    """Convert values to class numbers, starting at 0 for the most negative class.

    Labels in [-3, 3] (CMU-MOSI, CMU-MOSEI): for 3, 5 and 7 classes, values are clipped to -1..1, -2..2, -3..3 and
    rounded, halves to the even number, as numpy does. 2 classes are `value >= 0` with "has0" and `value > 0` with
    "non0". Labels in [-1, 1] (CH-SIMS): 2 classes are separated at 0, 3 at -0.1 and 0.1, 5 at -0.7, -0.1, 0.1 and 0.7;
    a value on a boundary belongs to the class below it, so 0 is in the lower of two classes.

    Args:
        values: Predictions or labels, float of any shape.
        classes: 2, 3, 5, or (labels in [-3, 3] only) 7.
        label_range: Largest label, 3 or 1.
        zeros: How zeros are treated for two classes of labels in [-3, 3]; see `Zeros`.

    Returns:
        Long tensor of the same shape, 0 to `classes - 1`.

    Raises:
        ValueError: The combination of settings is not supported.
    """
    check_classes(classes, label_range, zeros)
    values = values if values.dtype == torch.float64 else values.float()
    if label_range == 1:
        return torch.bucketize(values, values.new_tensor(_SIMS_BOUNDARIES[classes]))
    if classes == 2:
        return (values >= 0 if zeros == "has0" else values > 0).long()
    largest = classes // 2
    # converting NaN to an integer is undefined
    return (values.clamp(-largest, largest).round() + largest).nan_to_num(0.0).long()


def check_classes(classes: int, label_range: float, zeros: Zeros = "has0") -> None:
    """Validate the settings of sentiment classes.

    Args:
        classes: Number of classes.
        label_range: Largest label.
        zeros: See `Zeros`.

    Raises:
        ValueError: The combination of settings is not supported.
    """
    if label_range not in (1, 3):
        raise ValueError(
            f"label_range must be 3 or 1, got {label_range:g}: use 3 for labels of MOSI and MOSEI, 1 for CH-SIMS."
        )
    known = (2, 3, 5) if label_range == 1 else (2, 3, 5, 7)
    if classes not in known:
        raise ValueError(
            f"classes must be one of {', '.join(map(str, known))} with label_range={label_range:g}, got {classes}:"
            " choose one of them."
        )
    if zeros not in ("has0", "non0"):
        raise ValueError(f"zeros must be has0 or non0, got {zeros!r}: choose one of them.")
    if zeros == "non0" and (classes != 2 or label_range == 1):
        raise ValueError(
            f"zeros must be has0 unless there are two classes of labels in [-3, 3], got 'non0' with classes={classes}"
            f" and label_range={label_range:g}: use has0."
        )


def _classes_of_pairs(
    preds: Tensor, target: Tensor, classes: int, label_range: float, zeros: Zeros
) -> tuple[Tensor, Tensor]:
    """Return predicted and true classes; a NaN prediction always counts as a wrong class."""
    preds, target = check_pairs(preds, target)
    if zeros == "non0":
        kept = target != 0
        preds, target = preds[kept], target[kept]
    truth = sentiment_class(target, classes, label_range, zeros)
    predicted = sentiment_class(preds, classes, label_range, zeros)
    return torch.where(preds.isnan(), (truth + 1) % classes, predicted), truth


class SentimentAccuracy(SumMetric):
    """Fraction of samples whose prediction is in the label's class; 0 if no sample counts.

    Args:
        classes: 2, 3, 5 or 7; see `sentiment_class`.
        label_range: Largest label: 3 for labels in [-3, 3], 1 for labels in [-1, 1].
        zeros: For two classes of labels in [-3, 3]: "has0" is negative against non-negative, "non0" leaves out samples
            whose label is exactly 0.

    Raises:
        ValueError: The combination of settings is not supported.
    """

    higher_is_better = True
    is_differentiable = False
    correct: Tensor
    total: Tensor

    def __init__(self, classes: int, label_range: float = 3.0, zeros: Zeros = "has0") -> None:
        super().__init__()
        check_classes(classes, label_range, zeros)
        self.classes, self.label_range, self.zeros = classes, label_range, zeros
        self.add_sum("correct", dtype=torch.long)
        self.add_sum("total", dtype=torch.long)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            preds: Predicted sentiment strength, not clipped, float [B].
            target: Labels, float [B].

        Raises:
            ValueError: The shapes differ.
        """
        predicted, truth = _classes_of_pairs(preds, target, self.classes, self.label_range, self.zeros)
        self.correct = self.correct + (predicted == truth).sum()
        self.total = self.total + len(truth)

    def compute(self) -> Tensor:
        """The accuracy, a fraction."""
        return ratio(self.correct, self.total)


class SentimentF1(SumMetric):
    """F1 of two classes, weighted by the number of true samples of each class; 0 if no sample counts.

    Some published code exchanges predictions and labels, so that the weights are the predicted supports. A constant
    prediction that is right for a fraction p of the samples then gets 2p / (1 + p) instead of 2p² / (1 + p).

    Args:
        label_range: Largest label: 3 for labels in [-3, 3], 1 for labels in [-1, 1].
        zeros: See `SentimentAccuracy`.

    Raises:
        ValueError: The combination of settings is not supported.
    """

    higher_is_better = True
    is_differentiable = False
    confusion: Tensor

    def __init__(self, label_range: float = 3.0, zeros: Zeros = "has0") -> None:
        super().__init__()
        check_classes(2, label_range, zeros)
        self.label_range, self.zeros = label_range, zeros
        self.add_sum("confusion", (2, 2), torch.long)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            preds: Predicted sentiment strength, float [B].
            target: Labels, float [B].

        Raises:
            ValueError: The shapes differ.
        """
        predicted, truth = _classes_of_pairs(preds, target, 2, self.label_range, self.zeros)
        pairs = 2 * truth + predicted
        self.confusion = self.confusion + (pairs == torch.arange(4, device=pairs.device)[:, None]).sum(1).view(2, 2)

    def compute(self) -> Tensor:
        """The support-weighted F1, a fraction."""
        support, predicted, right = self.confusion.sum(1), self.confusion.sum(0), self.confusion.diagonal()
        f1 = 2 * right / (support + predicted).clamp(min=1)
        return ratio((f1.double() * support).sum(), support.sum())
