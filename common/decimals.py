"""Decimal settings as exact fractions."""

from __future__ import annotations

from fractions import Fraction


def as_written(value: float) -> Fraction:
    """A decimal number as an exact fraction: 0.9 is nine tenths, not the nearest binary number.

    Args:
        value: A finite number.
    """
    return Fraction(repr(float(value)))
