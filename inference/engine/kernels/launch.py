"""Kernels that start before the one in front of them has ended (programmatic dependent launch)."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def follow(EARLY: tl.constexpr) -> None:
    """Waits for the kernel in front, then lets the next one start; before it only weights may be read.

    Every kernel must call it, or the one behind would not know that those further in front have ended.
    """
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@functools.lru_cache(maxsize=8)
def early(device: torch.device) -> dict[str, Any]:
    """Arguments of a launch: early where the device can do it (compute capability 9 and above)."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return {"EARLY": False}
    return {"EARLY": True, "launch_pdl": True}
