"""Wall-clock times of work on a device, and medians of repeated measurements."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def clock(device: torch.device) -> float:
    """Read a monotonic clock after all work queued on a device is done.

    Args:
        device: To wait for, if it is a GPU.

    Returns:
        Seconds since an arbitrary point in time.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def median_seconds(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median time of one call in seconds; see :func:`medians_in_turn`."""
    return medians_in_turn([call], repeats, device)[0]


def medians_in_turn(calls: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[float]:
    """Median time of each of several calls, measured in turn after three untimed turns.

    The calls alternate, so that a change in the speed of the machine affects all of them alike. Each time includes all
    work of the call on the device.

    Args:
        calls: The functions to time.
        repeats: Number of timed turns.
        device: The device that the calls use.

    Returns:
        Seconds, one median for each call.
    """
    times: list[list[float]] = [[] for _ in calls]
    for attempt in range(repeats + 3):  # the first three turns warm up
        for call, found in zip(calls, times, strict=True):
            start = clock(device)
            call()
            seconds = clock(device) - start
            if attempt >= 3:
                found.append(seconds)
    return [statistics.median(found) for found in times]
