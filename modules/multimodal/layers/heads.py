"""Validator of the number of attention heads."""

from __future__ import annotations

from saccade.common.checks import check_count


def check_heads(heads: int, width: int) -> None:
    """Validate that the features of a position can be split into attention heads.

    Args:
        heads: Number of attention heads.
        width: Features of a position.

    Raises:
        ValueError: `heads` is not a positive divisor of `width`.
    """
    check_count("heads", heads)
    if width % heads:
        raise ValueError(f"heads must divide width, got {heads} with width={width}: change one of them.")
