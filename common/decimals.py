"""Decimal settings as the fractions that were written."""

from __future__ import annotations

from fractions import Fraction


def as_written(value: float) -> Fraction:
    """A decimal exactly as it was written: 0.9 is nine tenths, not the nearest binary number.

    Args:
        value: A finite number.
    """
    return Fraction(repr(float(value)))
