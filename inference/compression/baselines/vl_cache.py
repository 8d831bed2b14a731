"""VL-Cache (arXiv 2410.23317, ICLR 2025): layers share by the sparsity of the attention behind the images."""

from __future__ import annotations

from dataclasses import dataclass

from saccade.common.checks import check_count, check_share
from saccade.inference.compression.allocation import split_evenly, water_fill
from saccade.inference.compression.compressor import CacheCompressor, Plan, static_plan
from saccade.inference.compression.observation import Observation
from saccade.inference.compression.selection import best_positions, ends

_LEAST = 0.01  # share of the prompt that every layer keeps at the least


@dataclass
class VLCache(CacheCompressor):
    """Gives layers with dense attention more, and keeps what the text behind the images attends to.

    The share of a layer is in proportion to its mean share of alive keys. All heads of a layer keep the same number.

    Args:
        budget: Share of the prompt that heads keep on average.
        window: Most observed rows: the last text tokens behind the last visual token.
        alive_share: A key is alive if it has at least this share of its row's largest attention.
        recent_share: Part of a head's share that goes to the last tokens.

    Raises:
        ValueError: A setting outside its range.
    """

    budget: float = 0.1
    window: int = 64
    alive_share: float = 0.01
    recent_share: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("window", self.window, advice="scores are the attention of observed rows")
        check_share("recent_share", self.recent_share)

    def plan(self, seen: Observation) -> Plan:
        """Recent tokens and those with the most attention, in numbers by layer."""
        kept = []
        for scores, share in zip(seen.mean, self._shares(seen), strict=True):
            caps = split_evenly(share, len(scores))
            _, back = ends(seen.length, 0, int(min(caps) * self.recent_share), scores.device)
            kept.append(best_positions(scores, back.long(), caps))
        return static_plan(kept)

    def _shares(self, seen: Observation) -> list[int]:
        """Entries of each layer: in proportion to its alive keys, between 1 % of its entries and all of them."""
        sizes = [heads * seen.length for heads in seen.heads]
        low = [int(min(_LEAST, self.budget) * size) for size in sizes]
        dense = [float(alive.sum()) for alive in seen.alive]  # the mean, times the heads that share
        weights = [part / (sum(dense) or 1) for part in dense]
        raised: set[int] = set()  # layers that get the least
        while True:
            limits = [(low[at], low[at]) if at in raised else (0, size) for at, size in enumerate(sizes)]
            shares = water_fill(self.total(seen), weights, *map(list, zip(*limits, strict=True)))
            short = {at for at, share in enumerate(shares) if share < low[at]}
            if not short:
                return shares
            raised |= short
