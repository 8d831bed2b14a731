"""Whether the chunks of compressed prompts fit in host memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from saccade.inference.compression.compressor import Plan
from saccade.inference.compression.precision import CHANNEL, TOKEN, row_bytes

_SYSTEM = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")  # that of a container, as seen from its inside


def free_host_bytes() -> int | None:
    """Host memory that can still be allocated: what the system has, or the process's group is allowed, if less.

    Returns:
        Bytes; ``None`` where the system does not say it.
    """
    found = []
    try:
        entries = dict(line.split(":", 1) for line in _SYSTEM.read_text().splitlines() if ":" in line)
        found.append(int(entries["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError, IndexError):
        pass
    try:
        most, used = ((_GROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        # files that the kernel can drop count as used
        kinds = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        found.append(int(most) - int(used) + int(kinds["inactive_file"]))
    except (OSError, KeyError, ValueError):  # no group, or one without a limit
        pass
    return max(0, min(found)) if found else None


def host_buffer(*shape: int, dtype: torch.dtype, pinned: bool) -> Tensor:
    """Host memory for chunks, which a device can read if it is pinned; what is in it is not defined.

    Args:
        shape: Of the tensor.
        dtype: Its type.
        pinned: Whether a device reads it.
    """
    return torch.empty(*shape, dtype=dtype, pin_memory=pinned)


def chunk_bytes(plans: Sequence[Plan], width: int, itemsize: int, *, pinned: bool) -> int:
    """Host memory that the chunks of all layers take, the ranges of packed ones included.

    Args:
        plans: What is kept of every row.
        width: Dimensions of a head.
        itemsize: Bytes of a number.
        pinned: Whether the memory is pinned: torch rounds each allocation up to a power of two.
    """
    layers = len(plans[0].slots) if plans else 0
    total = 0
    for layer in range(layers):
        for over in (CHANNEL, TOKEN):
            each = sum(
                (0 if plan.bounds is None else len(plan.bounds) - 1)
                * row_bytes(plan.chunk, width, itemsize, plan.host_bits, over)
                * sum(map(bool, plan.slots[layer]))
                for plan in plans
            )
            total += 1 << (each - 1).bit_length() if pinned and each else each
    return total


def check_host_fits(plans: Sequence[Plan], width: int, itemsize: int, *, pinned: bool, more: int = 0) -> None:
    """Refuses plans whose chunks do not fit in host memory, before any of it is allocated.

    Args:
        plans: What is kept of every row.
        width: Dimensions of a head.
        itemsize: Bytes of a number.
        pinned: Whether the memory is pinned.
        more: Bytes that are needed beside the chunks, for probation.

    Raises:
        ValueError: They do not fit; the message says how much is needed.
    """
    needed, free = more + chunk_bytes(plans, width, itemsize, pinned=pinned), free_host_bytes()
    if free is not None and needed > free:
        raise ValueError(
            f"the chunks of {len(plans)} compressed prompts need {needed:,} bytes of host memory, but {free:,} are "
            "free: use fewer rows, shorter prompts, or a compressor that keeps nothing on the host, such as SnapKV."
        )
