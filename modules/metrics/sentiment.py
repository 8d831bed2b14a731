"""Accuracy and F1 of the classes into which sentiment strength is cut.

The cuts are those of the field (`metricsTop` of MMSA), the classes here are ours.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from saccade.modules.metrics.sums import SumMetric, check_pairs, ratio

Zeros = Literal["has0", "non0"]
"""What happens to samples whose label is 0: "has0" keeps them as non-negative ones, "non0" leaves them out."""

# CH-SIMS: a value on a boundary belongs to the class below
_SIMS_BOUNDARIES = {2: (0.0,), 3: (-0.1, 0.1), 5: (-0.7, -0.1, 0.1, 0.7)}


def sentiment_class(values: Tensor, classes: int, label_range: float = 3.0, zeros: Zeros = "has0") -> Tensor:
    """The class of each value, from 0 for the most negative one.

    Labels in [-3, 3] (CMU-MOSI, CMU-MOSEI): 3, 5 and 7 classes are the values clipped to -1..1, -2..2, -3..3 and
    rounded, halves to the even number, as numpy does. 2 classes are `value >= 0` with "has0" and `value > 0` with
    "non0". Labels in [-1, 1] (CH-SIMS): 2 classes are cut at 0, 3 at -0.1 and 0.1, 5 at -0.7, -0.1, 0.1 and 0.7; a
    value on a cut belongs to the class below it, so 0 is in the lower of two.

    Args:
        values: Predictions or labels, float of any shape.
        classes: 2, 3, 5, or (labels in [-3, 3] only) 7.
        label_range: Largest label, 3 or 1.
        zeros: Which two classes of labels in [-3, 3] are meant; see `Zeros`.

    Returns:
        Long tensor of the same shape, 0 to `classes - 1`.

    Raises:
        ValueError: There is no such cut.
    """
    check_classes(classes, label_range, zeros)
    values = values if values.dtype == torch.float64 else values.float()
    if label_range == 1:
        return torch.bucketize(values, values.new_tensor(_SIMS_BOUNDARIES[classes]))
    if classes == 2:
        return (values >= 0 if zeros == "has0" else values > 0).long()
    largest = classes // 2
    # of NaN as a long number nothing is promised
    return (values.clamp(-largest, largest).round() + largest).nan_to_num(0.0).long()


def check_classes(classes: int, label_range: float, zeros: Zeros = "has0") -> None:
    """Refuse a cut that there is not.

    Args:
        classes: Number of classes.
        label_range: Largest label.
        zeros: See `Zeros`.

    Raises:
        ValueError: One of them is impossible.
    """
    if label_range not in (1, 3):
        raise ValueError(f"label_range: must be 3 (MOSI, MOSEI) or 1 (CH-SIMS), but is {label_range:g}")
    known = (2, 3, 5) if label_range == 1 else (2, 3, 5, 7)
    if classes not in known:
        raise ValueError(f"classes: must be one of {known} with label_range={label_range:g}, but is {classes}")
    if zeros not in ("has0", "non0"):
        raise ValueError(f"zeros: must be 'has0' or 'non0', but is {zeros!r}")
    if zeros == "non0" and (classes != 2 or label_range == 1):
        raise ValueError(
            f"zeros: 'non0' must go with two classes of labels in [-3, 3], but classes is {classes} and label_range is"
            f" {label_range:g}; use 'has0'"
        )


def _classes_of_pairs(
    preds: Tensor, target: Tensor, classes: int, label_range: float, zeros: Zeros
) -> tuple[Tensor, Tensor]:
    """Predicted and true classes; a prediction that is not a number gets a wrong class, whatever the truth."""
    preds, target = check_pairs(preds, target)
    if zeros == "non0":
        kept = target != 0
        preds, target = preds[kept], target[kept]
    truth = sentiment_class(target, classes, label_range, zeros)
    predicted = sentiment_class(preds, classes, label_range, zeros)
    return torch.where(preds.isnan(), (truth + 1) % classes, predicted), truth


class SentimentAccuracy(SumMetric):
    """Share of samples whose prediction lies in the label's class; 0 where no sample counts.

    Args:
        classes: 2, 3, 5 or 7; see `sentiment_class`.
        label_range: Largest label: 3 for labels in [-3, 3], 1 for labels in [-1, 1].
        zeros: Of two classes in [-3, 3]: "has0" is negative against non-negative, "non0" leaves out samples whose label
            is exactly 0.

    Raises:
        ValueError: There is no such cut.
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
    """F1 of two classes, weighted by how many samples truly belong to each; 0 where no sample counts.

    The weights are the *true* supports. With predictions and labels exchanged, as some code of the field has it, a
    constant predictor that is right with share p gets 2p / (1 + p) instead of 2p² / (1 + p).

    Args:
        label_range: Largest label: 3 for labels in [-3, 3], 1 for labels in [-1, 1].
        zeros: See `SentimentAccuracy`.

    Raises:
        ValueError: There is no such cut.
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
