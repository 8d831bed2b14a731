"""Counter-based random numbers, the same in any batch and on any device."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def _signed(number: int) -> int:
    """The 64-bit pattern of an unsigned number as torch's int64 holds it."""
    return number - (1 << 64) if number >= 1 << 63 else number


_STEP = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)
_BITS = 24  # integers that float32 represents exactly


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros; the shift of torch fills with the sign."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)


def _mixed(numbers: Tensor) -> Tensor:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): every input bit affects every output bit."""
    numbers = (numbers ^ _shifted(numbers, 30)) * _FIRST
    numbers = (numbers ^ _shifted(numbers, 27)) * _SECOND
    return numbers ^ _shifted(numbers, 31)


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
    digest = hashlib.sha256(f"{stream}/{seed}/{epoch}".encode()).digest()
    start = _signed(int.from_bytes(digest[:8], "big"))
    places = torch.arange(1, positions + 1, device=key.device, dtype=torch.int64)
    mixed = _mixed(_mixed(key ^ start)[:, None] + places * _STEP)
    return _shifted(mixed, 64 - _BITS).to(torch.float32) * 2.0**-_BITS
