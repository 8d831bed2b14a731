"""LOOK-M (arXiv 2406.18139, Findings of EMNLP 2024): text before images, and deleted tokens merged into kept ones."""

from __future__ import annotations

from dataclasses import dataclass

from saccade.common.checks import check_count, check_share, check_switch
from saccade.inference.compression.compressor import CacheCompressor, Plan, static_plan
from saccade.inference.compression.merging import Merging
from saccade.inference.compression.observation import Observation
from saccade.inference.compression.selection import best_positions, ends


@dataclass
class LookM(CacheCompressor):
    """Keeps recent tokens, then text, then visual tokens by their attention.

    The authors add up the attention of all rows of the prompt; here it is that of the observed rows. Their code keeps
    all text, also above the budget; here text that does not fit is ranked by its attention.

    Args:
        budget: Share of the prompt that every head keeps.
        window: Most observed rows.
        recent_share: Part of a head's share that goes to the last tokens.
        merge: Average what is deleted into what is kept, text and visual tokens alike
            (:class:`saccade.inference.compression.merging.Merging`).

    Raises:
        ValueError: A setting outside its range.
    """

    budget: float = 0.2
    window: int = 64
    recent_share: float = 0.5
    merge: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("window", self.window, advice="scores are the attention of observed rows")
        check_share("recent_share", self.recent_share)
        check_switch("merge", self.merge)

    def plan(self, seen: Observation) -> Plan:
        """Recent tokens, text, and the visual tokens with the most attention."""
        caps = seen.by_layer(self.even_caps(seen))
        recent = int(min(map(min, caps)) * self.recent_share)
        kept = []
        for scores, layer_caps in zip(seen.mean, caps, strict=True):
            _, back = ends(seen.length, 0, recent, scores.device)
            classes = (~seen.visual.to(scores.device)).long().masked_fill(back, 2)
            kept.append(best_positions(scores, classes, layer_caps))
        return static_plan(kept, Merging() if self.merge else None)
