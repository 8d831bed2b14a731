"""Programmatic dependent launch: kernels that start before the previous kernel has ended."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def follow(EARLY: tl.constexpr) -> None:
    """Waits until the previous kernel has ended, then lets the next kernel start.

    A kernel may read weights before this call, but nothing that an earlier kernel writes. Every kernel must call it:
    the next kernel relies on it to know that all earlier kernels have ended.
    """
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@functools.lru_cache(maxsize=8)
def early(device: torch.device) -> dict[str, Any]:
    """Launch arguments that turn programmatic dependent launch on for devices of compute capability 9 and above."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return {"EARLY": False}
    return {"EARLY": True, "launch_pdl": True}
