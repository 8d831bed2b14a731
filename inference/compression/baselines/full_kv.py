"""The whole cache: the reference of every compressor."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from saccade.inference.compression.compressor import CacheCompressor, Plan, static_plan
from saccade.inference.compression.observation import Observation
from saccade.inference.compression.precision import Bits


@dataclass
class FullKV(CacheCompressor):
    """Keeps every position.

    Args:
        kept_bits: Bits of the numbers (ours); 16 is the model's precision.

    Raises:
        ValueError: There is no packing of so many bits.
    """

    budget: float = field(default=1.0, init=False)
    window: int = field(default=0, init=False)
    kept_bits: Bits = 16

    def plan(self, seen: Observation) -> Plan:
        """All positions of every head."""
        kept = [[torch.arange(seen.length, device=scores.device)] * len(scores) for scores in seen.mean]
        return static_plan(kept, kept_bits=self.kept_bits)
