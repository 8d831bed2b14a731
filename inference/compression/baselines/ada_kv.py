"""AdaKV (arXiv 2407.11550): SnapKV with more tokens in the heads of a layer whose attention is spread."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saccade.common.checks import check_count, check_share
from saccade.inference.compression.allocation import water_fill
from saccade.inference.compression.compressor import CacheCompressor, Plan, static_plan
from saccade.inference.compression.observation import Observation
from saccade.inference.compression.selection import PoolKind, check_pool, ends, pooled, runs, window_and_best


@dataclass
class AdaKV(CacheCompressor):
    """Gives heads of a layer as many tokens as they have among the best of all heads of the layer.

    Layers have equal shares. The window is kept by every head. The rest of a layer's share goes to the highest pooled
    scores of all its heads together; how many of these a head has is its number, mixed with the mean.

    Args:
        budget: Share of the prompt that heads keep on average, the window included.
        window: Last tokens of the prompt, which are kept; the most rows that are observed.
        pool: Width of the pooling, odd.
        pool_kind: ``mean`` or ``max``.
        alpha: Part of the mean in the mixture: 0 follows the scores alone, 1 is SnapKV.

    Raises:
        ValueError: A setting outside its range.
    """

    budget: float = 0.1
    window: int = 32
    pool: int = 7
    pool_kind: PoolKind = "max"
    alpha: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("window", self.window, advice="scores are the attention of observed rows")
        check_pool(self.pool, self.pool_kind)
        check_share("alpha", self.alpha)

    def plan(self, seen: Observation) -> Plan:
        """The window and the highest scores of every head, in the numbers of the mixture."""
        return static_plan(window_and_best(seen, self._caps(seen), self.window, self.pool, self.pool_kind))

    def _caps(self, seen: Observation) -> list[int]:
        caps: list[int] = []
        for scores, shares in zip(seen.mean, seen.by_layer(self.even_caps(seen)), strict=True):
            total, heads = sum(shares), len(shares)
            window = min(self.window, total // heads)
            rest = total - heads * window
            run = runs(seen.segments, window).to(scores.device)
            _, back = ends(seen.length, 0, window, scores.device)
            ranked = pooled(scores, run, self.pool, self.pool_kind).masked_fill(back, -1).flatten()
            best = ranked.sort(descending=True, stable=True).indices[:rest]
            counts = torch.bincount(best // seen.length, minlength=heads).tolist()
            mixed = [(1 - self.alpha) * count + self.alpha * rest / heads for count in counts]
            weights = [part / max(1, rest) for part in mixed]
            caps += water_fill(total, weights, [window] * heads, [seen.length] * heads)
        return caps
