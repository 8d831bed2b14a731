"""Copies of small lists of numbers to a device, without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(
    numbers: Sequence[float] | Sequence[Sequence[float]], device: torch.device, dtype: torch.dtype = torch.long
) -> Tensor:
    """Copy numbers to a tensor on a device, without waiting for the work that is queued there.

    Indexing a tensor on a GPU with a list, or ``torch.tensor(numbers, device=device)``, waits until all earlier work
    is done, because it copies from memory that the host may change. This copies from pinned memory instead.

    Args:
        numbers: A sequence, or a sequence of equally long sequences.
        device: Device of the tensor.
        dtype: Type of the tensor; integers by default.

    Returns:
        The tensor, with the shape of ``numbers``.
    """
    pinned = device.type == "cuda"
    return torch.tensor(numbers, dtype=dtype, pin_memory=pinned).to(device, non_blocking=True)
