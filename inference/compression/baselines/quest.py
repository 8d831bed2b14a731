"""Quest (arXiv 2406.10774, ICML 2024): nothing is deleted, and a step reads the chunks that its query wants."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from saccade.common.checks import check_choice, check_count
from saccade.inference.compression.allocation import check_enough, split_evenly
from saccade.inference.compression.chunks import chunk_bounds
from saccade.inference.compression.compressor import CacheCompressor, Plan
from saccade.inference.compression.observation import Observation
from saccade.inference.compression.precision import Bits


@dataclass
class Quest(CacheCompressor):
    """Holds in every head the chunks whose upper bound of the attention is the highest.

    The budget is what a step reads. The authors keep the whole cache on the GPU and read all of it in the first two
    layers; here it is on the host, all layers are alike, and chunks end where images do.

    Args:
        budget: Share of the prompt that every head reads in a step.
        chunk: Most tokens of a chunk.
        representative: ``minmax``, as the authors, or ``mean``.
        host_bits: Bits of the numbers of chunks in host memory; 16 is the model's precision.

    Raises:
        ValueError: A setting outside its range.
    """

    budget: float = 0.1
    chunk: int = 16
    representative: Literal["mean", "minmax"] = "minmax"
    host_bits: Bits = 16
    window: int = field(default=0, init=False)

    dynamic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("chunk", self.chunk)
        check_choice("representative", self.representative, ("mean", "minmax"))

    def plan(self, seen: Observation) -> Plan:
        """The same number of chunks for every head, but for the rest of the division."""
        bounds = chunk_bounds(seen.segments, self.chunk)
        chunks = len(bounds) - 1
        if self.budget < 1:
            check_enough(self.budget, seen.units * self.chunk, seen.units, seen.length, "lower chunk")
        slots = seen.by_layer(split_evenly(self.total(seen) // self.chunk, seen.units))
        whole = [[self.budget == 1 or count >= chunks for count in layer] for layer in slots]
        kept = [
            [torch.arange(seen.length if full else 0, device=scores.device) for full in layer]
            for scores, layer in zip(seen.mean, whole, strict=True)
        ]
        held = [
            [0 if full else count for full, count in zip(*layer, strict=True)]
            for layer in zip(whole, slots, strict=True)
        ]
        if not any(map(any, held)):
            return Plan(kept, held)
        return Plan(kept, held, self.chunk, bounds, self.representative, host_bits=self.host_bits)
