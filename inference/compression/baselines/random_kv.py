"""Random positions: what a method must be better than."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from saccade.common.counters import STEP, key_of, mixed
from saccade.inference.compression.compressor import CacheCompressor, Plan, static_plan
from saccade.inference.compression.observation import Observation
from saccade.inference.compression.selection import kept_by_order


@dataclass
class RandomKV(CacheCompressor):
    """Keeps random positions in every head; all sets of the same size are equally likely.

    The sets are a function of the seed, the layer, the head and the prompt's length: not of device or batch.

    Args:
        budget: Share of the prompt that every head keeps.
        seed: Seed.

    Raises:
        ValueError: A budget outside (0, 1].
    """

    budget: float = 0.1
    seed: int = 0
    window: int = field(default=0, init=False)

    def plan(self, seen: Observation) -> Plan:
        """Random positions, as many in every head."""
        kept = []
        for layer, caps in enumerate(seen.by_layer(self.even_caps(seen))):
            device = seen.mean[layer].device
            keys = [key_of("random_kv", self.seed, layer, head) for head in range(len(caps))]
            counters = torch.tensor(keys, device=device)[:, None] + torch.arange(seen.length, device=device) * STEP
            kept.append(kept_by_order(mixed(counters).argsort(dim=-1), caps))
        return static_plan(kept)
