"""PyramidKV (arXiv 2406.02069): SnapKV with more tokens in the first layers than in the last."""

from __future__ import annotations

from dataclasses import dataclass

from saccade.common.checks import check_count, check_number
from saccade.inference.compression.allocation import split_evenly, water_fill
from saccade.inference.compression.compressor import CacheCompressor, Plan, static_plan
from saccade.inference.compression.observation import Observation
from saccade.inference.compression.selection import PoolKind, check_pool, window_and_best


@dataclass
class PyramidKV(CacheCompressor):
    """Keeps what SnapKV would keep, in numbers that fall linearly from the first layer to the last.

    Beside the window, the last layer keeps ``1 / beta`` of the mean over the layers, and the first layer as much more
    than the mean as the last one less. Where that is more than the prompt, the line is flatter.

    Args:
        budget: Share of the prompt that heads keep on average, the window included.
        window: Last tokens of the prompt, which are kept; the most rows that are observed.
        pool: Width of the pooling, odd.
        pool_kind: ``mean`` or ``max``.
        beta: How steep the line is, at least 1; 1 is SnapKV.

    Raises:
        ValueError: A setting outside its range.
    """

    budget: float = 0.1
    window: int = 32
    pool: int = 5
    pool_kind: PoolKind = "mean"
    beta: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("window", self.window, advice="scores are the attention of observed rows")
        check_pool(self.pool, self.pool_kind)
        check_number("beta", self.beta)
        if not self.beta >= 1:
            raise ValueError(f"beta must be at least 1, got {self.beta}: 1 gives all layers the same.")

    def plan(self, seen: Observation) -> Plan:
        """The window and the highest scores of every head, fewer in later layers."""
        return static_plan(window_and_best(seen, self._caps(seen), self.window, self.pool, self.pool_kind))

    def _caps(self, seen: Observation) -> list[int]:
        total, layers = self.total(seen), len(seen.heads)
        window = min(self.window, total // seen.units)
        mean = total / seen.units - window
        least = mean / self.beta
        most = 2 * mean - least
        if most > seen.length - window:
            most = seen.length - window
            least = 2 * mean - most
        step = (most - least) / max(1, layers - 1)
        weights = [heads * (most - layer * step) for layer, heads in enumerate(seen.heads)]
        low, high = ([heads * size for heads in seen.heads] for size in (window, seen.length))
        shares = water_fill(total, [weight / max(1, total) for weight in weights], low, high)
        return [cap for share, heads in zip(shares, seen.heads, strict=True) for cap in split_evenly(share, heads)]
