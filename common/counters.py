"""Random bits from a counter, without a generator state: the same in any batch, in any order and on any device."""

from __future__ import annotations

import hashlib

from torch import Tensor

_WORD = 1 << 64


def signed(number: int) -> int:
    """The 64-bit pattern of a whole number as torch's int64 holds it."""
    number %= _WORD
    return number - _WORD if number >= _WORD >> 1 else number


STEP = signed(0x9E3779B97F4A7C15)
"""Distance of two counters whose mixed values are the neighbouring numbers of a SplitMix64 generator."""

FIRST, SECOND = signed(0xBF58476D1CE4E5B9), signed(0x94D049BB133111EB)
"""The factors of SplitMix64's finalizer."""


def key_of(*parts: object) -> int:
    """A number of 64 bits that texts, seeds and other values determine together.

    >>> key_of("mask", 3, 0) == key_of("mask", 3, 0) != key_of("mask", 30)
    True
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return signed(int.from_bytes(digest[:8], "big"))


def shifted(numbers: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros; the shift of torch fills with the sign."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)


def mixed(numbers: Tensor) -> Tensor:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): every input bit affects every output bit.

    Args:
        numbers: Long, of any shape.

    Returns:
        Long of the same shape; different numbers for different ones.
    """
    numbers = (numbers ^ shifted(numbers, 30)) * FIRST
    numbers = (numbers ^ shifted(numbers, 27)) * SECOND
    return numbers ^ shifted(numbers, 31)
