"""How a budget is divided: whole numbers only, and their sums are exact."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from saccade.common.decimals import as_written

_GRAIN = 1 << 24  # weights are rounded to multiples of 1 / _GRAIN, so that shares are ratios of whole numbers


class BudgetTooSmallError(ValueError):
    """A budget with which a method cannot work on a prompt.

    Args:
        message: What is wrong, and what to do.
        smallest: The smallest budget that is enough.
    """

    def __init__(self, message: str, smallest: float) -> None:
        super().__init__(message)
        self.smallest = smallest


def total_budget(budget: float, units: int, length: int) -> int:
    """Entries of the cache that may be kept: ``floor(budget * units * length)``, with the decimals as written.

    Args:
        budget: Share that is kept, in (0, 1].
        units: KV heads of all layers.
        length: Tokens of the prompt.
    """
    return int(as_written(budget) * units * length)


def check_enough(budget: float, needed: int, units: int, length: int, advice: str) -> None:
    """Refuses a budget of fewer than ``needed`` entries.

    Args:
        budget: The budget.
        needed: Least entries that the method needs.
        units: KV heads that share the budget.
        length: Tokens of the prompt.
        advice: What else to do than raising the budget.

    Raises:
        BudgetTooSmallError: The budget is too small; the message says which is the smallest.
    """
    if total_budget(budget, units, length) < needed:
        smallest = -(-needed * 10_000 // (units * length)) / 10_000
        raise BudgetTooSmallError(
            f"budget must be at least {smallest} for a prompt of {length} tokens, got {budget}: raise it, or {advice}.",
            smallest,
        )


def split_evenly(total: int, parts: int) -> list[int]:
    """Divides a total into parts that differ by at most one; the first ones are the larger."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def water_fill(total: int, weights: Sequence[float], low: Sequence[int], high: Sequence[int]) -> list[int]:
    """Divides a total in proportion to weights, between limits; the sum is exact.

    Every part gets its lower limit and a share of the rest in proportion to its weight. What is more than an upper
    limit goes to the others, in proportion again. Shares are rounded by the largest remainder; of equal ones the
    earlier part is rounded up.

    Args:
        total: The sum, from ``sum(low)`` to ``sum(high)``.
        weights: Not negative; where all that are left are 0, they count as equal.
        low: Lower limits.
        high: Upper limits.

    Raises:
        ValueError: A total outside of the limits' sums.
    """
    if not sum(low) <= total <= sum(high):
        raise ValueError(f"total must be between {sum(low)} and {sum(high)}, got {total}: change total or limits.")
    whole = [round(weight * _GRAIN) for weight in weights]
    parts, rest = list(low), total - sum(low)
    active = [part for part in range(len(parts)) if high[part] > low[part]]
    while rest and active:
        mass = sum(whole[part] for part in active)
        factor = {part: whole[part] if mass else 1 for part in active}
        mass = mass or len(active)
        full = [part for part in active if rest * factor[part] >= (high[part] - low[part]) * mass]
        if not full:
            shares = {part: divmod(rest * factor[part], mass) for part in active}
            spare = rest - sum(share for share, _ in shares.values())
            up = set(sorted(active, key=lambda part: (-shares[part][1], part))[:spare])
            for part in active:
                parts[part] += shares[part][0] + (part in up)
            break
        for part in full:
            parts[part] = high[part]
            rest -= high[part] - low[part]
        active = [part for part in active if part not in set(full)]
    return parts


def allocate(
    static: Sequence[bool],
    weights: Sequence[float],
    *,
    budget: float,
    length: int,
    ratio: float,
    chunk: int,
    least_static: int,
    least_dynamic: int,
) -> list[int]:
    """Divides a budget between static and dynamic heads, then among the heads of each kind.

    With d dynamic and s static heads, the dynamic ones get ``B d / (d + ratio s)`` together, and each of them the same
    whole number of chunks. The others share the rest by their weights. What static heads that keep everything leave
    over goes back to the dynamic ones, so that nothing is lost with ``budget = 1``.

    Args:
        static: Kind of each head.
        weights: Weight of each head; those of dynamic heads are not used.
        budget: Share of the entries that is kept.
        length: Tokens of the prompt.
        ratio: How many times as much a static head gets on average (r).
        chunk: Tokens of a chunk.
        least_static: Least entries of a static head.
        least_dynamic: Least entries of a dynamic head; rounded up to whole chunks.

    Returns:
        Entries of each head, at most ``length``. Those of dynamic heads are multiples of ``chunk``, or ``length``. The
        sum is the budget, or less by what does not divide into chunks if there is no static head with room.

    Raises:
        BudgetTooSmallError: The budget is less than the least entries of all heads.
    """
    dynamic = len(static) - sum(static)
    floor = min(length, least_static)
    least = min(length, -(-least_dynamic // chunk) * chunk)
    needed = dynamic * least + sum(static) * floor
    check_enough(budget, needed, len(static), length, "lower sinks, recent or chunk")
    total = total_budget(budget, len(static), length)
    cap = 0
    if dynamic:
        share = int(Fraction(total * dynamic) / (dynamic + as_written(ratio) * sum(static)))
        share = max(dynamic * least, min(share, total - sum(static) * floor))
        cap = _whole_chunks(share // dynamic, least, chunk, length)
    rest = total - dynamic * cap
    room = min(rest, sum(static) * length)
    if dynamic:
        cap = _whole_chunks(cap + (rest - room) // dynamic, cap, chunk, length)
    chosen = [weight for weight, kind in zip(weights, static, strict=True) if kind]
    filled = iter(water_fill(room, chosen, [floor] * len(chosen), [length] * len(chosen)))
    return [next(filled) if kind else cap for kind in static]


def _whole_chunks(entries: int, least: int, chunk: int, length: int) -> int:
    """Entries rounded down to whole chunks, at least ``least``; the prompt's length if they are that many."""
    return length if entries >= length else max(least, entries // chunk * chunk)
