"""SnapKV (arXiv 2404.14469, NeurIPS 2024): the same number of tokens in every head, by the last queries' attention."""

from __future__ import annotations

from dataclasses import dataclass

from saccade.common.checks import check_count
from saccade.inference.compression.compressor import CacheCompressor, Plan, static_plan
from saccade.inference.compression.observation import Observation
from saccade.inference.compression.precision import Bits
from saccade.inference.compression.selection import PoolKind, check_pool, window_and_best


@dataclass
class SnapKV(CacheCompressor):
    """Keeps the observed window and the tokens around which the window's attention is high.

    Scores are averaged over ``pool`` neighbours, here only inside of an image or a text.

    Args:
        budget: Share of the prompt that every head keeps, the window included.
        window: Last tokens of the prompt, which are kept; the most rows that are observed.
        pool: Width of the pooling, odd.
        pool_kind: ``mean``, as in the authors' code, or ``max``.
        kept_bits: Bits of the numbers of kept tokens (ours); 16 is the model's precision.

    Raises:
        ValueError: A setting outside its range.
    """

    budget: float = 0.1
    window: int = 32
    pool: int = 5
    pool_kind: PoolKind = "mean"
    kept_bits: Bits = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("window", self.window, advice="scores are the attention of observed rows")
        check_pool(self.pool, self.pool_kind)

    def plan(self, seen: Observation) -> Plan:
        """The window and the highest scores of every head."""
        kept = window_and_best(seen, self.even_caps(seen), self.window, self.pool, self.pool_kind)
        return static_plan(kept, kept_bits=self.kept_bits)
