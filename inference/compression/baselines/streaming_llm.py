"""StreamingLLM (arXiv 2309.17453, ICLR 2024): the first tokens and the last ones."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from saccade.common.checks import check_count
from saccade.inference.compression.compressor import CacheCompressor, Plan, static_plan
from saccade.inference.compression.observation import Observation


@dataclass
class StreamingLLM(CacheCompressor):
    """Keeps sinks and the end of the prompt; positions stay those of the prompt.

    Args:
        budget: Share of the prompt that every head keeps.
        sinks: First tokens that are kept.

    Raises:
        ValueError: A setting outside its range.
    """

    budget: float = 0.1
    sinks: int = 4
    window: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("sinks", self.sinks, least=0)

    def plan(self, seen: Observation) -> Plan:
        """The first tokens, and as many of the last as the share has room for."""
        kept = []
        for scores, caps in zip(seen.mean, seen.by_layer(self.even_caps(seen)), strict=True):
            place = torch.arange(seen.length, device=scores.device)
            first = [min(self.sinks, cap) for cap in caps]
            kept.append(
                [
                    torch.cat([place[:sinks], place[seen.length - cap + sinks :]])
                    for sinks, cap in zip(first, caps, strict=True)
                ]
            )
        return static_plan(kept)
