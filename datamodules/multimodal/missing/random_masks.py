"""Random numbers that depend on what they are for and on nothing else: the same in any batch and on any device."""

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
_BITS = 24  # what a float32 holds exactly


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros; torch's own shift fills with the sign."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)


def _mixed(numbers: Tensor) -> Tensor:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): every input bit moves every output bit."""
    numbers = (numbers ^ _shifted(numbers, 30)) * _FIRST
    numbers = (numbers ^ _shifted(numbers, 27)) * _SECOND
    return numbers ^ _shifted(numbers, 31)


def uniform(key: Tensor, stream: str, seed: int, epoch: int, positions: int) -> Tensor:
    """Draw numbers in 0 to 1 for each sample, from a counter and not from a state.

    Args:
        key: A number for each sample, long [B].
        stream: What they are for; each stream is independent of the others.
        seed: Of the whole experiment.
        epoch: Fresh numbers for each.
        positions: How many for each sample.

    Returns:
        Float [B, positions], at least 0 and below 1, the same whatever the batch, the order and the device.
    """
    digest = hashlib.sha256(f"{stream}/{seed}/{epoch}".encode()).digest()
    start = _signed(int.from_bytes(digest[:8], "big"))
    places = torch.arange(1, positions + 1, device=key.device, dtype=torch.int64)
    mixed = _mixed(_mixed(key ^ start)[:, None] + places * _STEP)
    return _shifted(mixed, 64 - _BITS).to(torch.float32) * 2.0**-_BITS
