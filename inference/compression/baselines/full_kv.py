"""The whole cache: the reference of every compressor."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from saccade.inference.compression.compressor import CacheCompressor, Plan, static_plan
from saccade.inference.compression.observation import Observation


@dataclass
class FullKV(CacheCompressor):
    """Keeps every position."""

    budget: float = field(default=1.0, init=False)
    window: int = field(default=0, init=False)

    def plan(self, seen: Observation) -> Plan:
        """All positions of every head."""
        return static_plan([[torch.arange(seen.length, device=scores.device)] * len(scores) for scores in seen.mean])
