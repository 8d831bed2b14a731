"""Seconds of work on a device, and medians of repeated measurements."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def clock(device: torch.device) -> float:
    """Seconds of a steady clock, read when the device has done all its work and not merely been told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def median_seconds(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """:func:`medians_in_turn` of one call."""
    return medians_in_turn([call], repeats, device)[0]


def medians_in_turn(calls: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[float]:
    """Median time of each call in seconds, the device waited for on both sides; three turns before warm up.

    The calls take turns, so that a machine that becomes slower meanwhile is slower for all of them.

    Args:
        calls: What is timed.
        repeats: Timed turns.
        device: That they run on.
    """
    times: list[list[float]] = [[] for _ in calls]
    for attempt in range(repeats + 3):  # the first three warm up
        for call, found in zip(calls, times, strict=True):
            start = clock(device)
            call()
            seconds = clock(device) - start
            if attempt >= 3:
                found.append(seconds)
    return [statistics.median(found) for found in times]
