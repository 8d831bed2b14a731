"""Combinations of settings in which every two values meet, without all the others of the cross product."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any


def pairs(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Rows of values, one from each axis: every value of an axis is together with every value of every other axis.

    Most mistakes need one or two settings to show. For axes of 6, 5 and 3 values there are 30 rows instead of 90.

    Args:
        axes: The values of each setting; two settings or more.
    """
    rows = list(product(*(range(len(axis)) for axis in axes)))
    met = {row: set(combinations(enumerate(row), 2)) for row in rows}
    left, chosen = set().union(*met.values()), []
    while left:
        best = max(rows, key=lambda row: len(met[row] & left))  # the first of equally good ones
        left -= met[best]
        chosen.append(best)
    return [tuple(axis[place] for axis, place in zip(axes, row, strict=True)) for row in sorted(chosen)]
