"""Small tables of the host on a device, without waiting for it (ours)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(
    numbers: Sequence[float] | Sequence[Sequence[float]], device: torch.device, dtype: torch.dtype = torch.long
) -> Tensor:
    """Numbers as a tensor on a device; the host goes on at once, and may be a whole draft ahead of a GPU.

    Indexing a tensor on a GPU with a list, or ``torch.tensor(numbers, device=device)``, waits until everything before
    is done: the copy has to read memory that the host may change.

    Args:
        numbers: One or two levels of equally long sequences.
        device: Where the tensor shall lie.
        dtype: Of the tensor; integers by default.
    """
    pinned = device.type == "cuda"
    return torch.tensor(numbers, dtype=dtype, pin_memory=pinned).to(device, non_blocking=True)
