"""Counter-based random numbers, the same in any batch and on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.common.counters import STEP, key_of, mixed, shifted

_BITS = 24  # integers that float32 represents exactly


def uniform(key: Tensor, stream: str, seed: int, epoch: int, positions: int) -> Tensor:
    """Draw uniform numbers for each sample from its key, without a generator state.

    Args:
        key: A number for each sample, long [B].
        stream: Purpose of the numbers; different streams are independent.
        seed: Seed of the experiment.
        epoch: Numbers differ between epochs.
        positions: How many numbers for each sample.

    Returns:
        Float [B, positions], at least 0 and below 1. The numbers of a sample do not depend on the other samples or the
        device.
    """
    start = key_of(stream, seed, epoch)
    places = torch.arange(1, positions + 1, device=key.device, dtype=torch.int64)
    drawn = mixed(mixed(key ^ start)[:, None] + places * STEP)
    return shifted(drawn, 64 - _BITS).to(torch.float32) * 2.0**-_BITS
