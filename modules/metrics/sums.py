"""Base of the metrics: states that are sums of fixed size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class SumMetric(Metric):
    """A metric whose states are sums: the states of all ranks are added, and a rank without data contributes zeros.

    The states keep their precision when the module that holds the metric is cast, for example by
    `precision: bf16-true`.
    """

    full_state_update = False

    def add_sum(self, name: str, size: tuple[int, ...] = (), dtype: torch.dtype = torch.float64) -> None:
        """Register a state that starts at zero and is summed over ranks.

        Args:
            name: Name of the attribute.
            size: Shape of the state.
            dtype: float64 for sums of real numbers, long for counts.
        """
        self.add_state(name, torch.zeros(size, dtype=dtype), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> torch.nn.Module:
        # Only the device changes: sums in bfloat16 would be inexact, and states of different types cannot be reduced.
        return super()._apply(lambda state: state.to(fn(state.new_empty(0)).device), exclude_state)


def check_pairs(preds: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return predictions and labels, detached and in at least float32.

    Args:
        preds: Predicted values, [B].
        target: Labels, [B].

    Raises:
        ValueError: They are not two vectors of the same length.
    """
    if preds.ndim != 1 or preds.shape != target.shape:
        shapes = f"{list(preds.shape)} and {list(target.shape)}"
        raise ValueError(f"preds and target must have the same shape [B], got {shapes}: flatten the predictions.")
    pairs = (preds.detach(), target.detach())
    return tuple(x if x.dtype == torch.float64 else x.float() for x in pairs)  # type: ignore[return-value]


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """`part / whole` as float32 scalar, 0 where `whole` is 0."""
    return (part.double() / whole.clamp(min=1)).float()
