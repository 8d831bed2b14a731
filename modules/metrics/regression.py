"""Mean absolute error and correlation of unclipped predictions, from sums in float64.

The metrics of torchmetrics are not used because its Pearson correlation of constant predictions is NaN with a warning,
and its MAE sums in the precision of the predictions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.modules.metrics.sums import SumMetric, check_pairs

# A variance below this fraction of the mean square is rounding error: float32 has a relative precision of 6e-8.
_CONSTANT = 1e-12


class MeanAbsoluteError(SumMetric):
    """Mean of |prediction - label|, in units of the label; NaN if there are no samples."""

    higher_is_better = False
    is_differentiable = False
    error: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_sum("error")
        self.add_sum("total", dtype=torch.long)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            preds: Predictions, float [B].
            target: Labels, float [B].

        Raises:
            ValueError: The shapes differ.
        """
        preds, target = check_pairs(preds, target)
        self.error = self.error + (preds.double() - target.double()).abs().sum()
        self.total = self.total + len(target)

    def compute(self) -> Tensor:
        """The mean absolute error."""
        return (self.error / self.total).float()


class PearsonCorrelation(SumMetric):
    """Pearson correlation of predictions and labels, -1 to 1.

    If predictions or labels are constant, or there is at most one sample, the correlation is undefined; this metric
    then returns 0, because such predictions hold no information about the label. Constant means: a standard deviation
    below a millionth of the root mean square. NaN predictions give NaN.
    """

    higher_is_better = True
    is_differentiable = False
    total: Tensor
    sums: Tensor
    products: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_sum("total", dtype=torch.long)
        self.add_sum("sums", (2,))
        self.add_sum("products", (2, 2))

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            preds: Predictions, float [B].
            target: Labels, float [B].

        Raises:
            ValueError: The shapes differ.
        """
        pairs = torch.stack([values.double() for values in check_pairs(preds, target)])
        self.total = self.total + pairs.shape[1]
        self.sums = self.sums + pairs.sum(1)
        self.products = self.products + pairs @ pairs.T

    def compute(self) -> Tensor:
        """The correlation."""
        covariance = self.products - torch.outer(self.sums, self.sums) / self.total.clamp(min=1)
        variances = covariance.diagonal()
        if (variances <= _CONSTANT * self.products.diagonal()).any():
            return variances.new_zeros((), dtype=torch.float32)
        return (covariance[0, 1] / variances.prod().sqrt()).clamp(-1, 1).float()
