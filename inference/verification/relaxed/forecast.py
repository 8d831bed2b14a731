"""How many drafted tokens stand if mismatches are independent: reads reported numbers and predicts one's own."""

from __future__ import annotations

from saccade.common.checks import check_share


def expected_accepted(mismatch: float, length: int, relaxation: float = 0.0) -> float:
    """Mean accepted tokens of a chain, ``sum over i of (1 - (1 - relaxation) * mismatch) ** i``, bonus token excluded.

    A drafted token differs from the target's choice with probability ``mismatch``, independently; a mismatch stands
    with probability ``relaxation``. The published lengths of LVSpec and of random relaxation follow it within 3 %
    (ours: it is how they were read, not a claim of the papers).

    Args:
        mismatch: Probability of a mismatch, in [0, 1].
        length: Drafted tokens of a round, at least 0.
        relaxation: Share of mismatches that stand, in [0, 1].

    Raises:
        ValueError: A setting outside its range.
    """
    check_share("mismatch", mismatch)
    check_share("relaxation", relaxation)
    if length < 0:
        raise ValueError(f"length must be 0 or more, got {length}: give the drafted tokens of a round.")
    keep = 1 - (1 - relaxation) * mismatch
    return sum(keep**place for place in range(1, length + 1))


def mismatch_rate(accepted: float, length: int) -> float:
    """The probability of a mismatch that explains a measured length under strict verification.

    Args:
        accepted: Mean accepted tokens of a round, bonus token excluded, in [0, length].
        length: Drafted tokens of a round, at least 1.

    Returns:
        The rate at which :func:`expected_accepted` gives ``accepted``, to about 1e-12.

    Raises:
        ValueError: A length below 1, or a mean outside its range.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}: give the drafted tokens of a round.")
    if not 0 <= accepted <= length:
        raise ValueError(
            f"accepted must be between 0 and length ({length}), got {accepted}: leave the bonus token out."
        )
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if expected_accepted(middle, length) > accepted:
            low = middle
        else:
            high = middle
    return (low + high) / 2
