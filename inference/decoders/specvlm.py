"""SpecVLM: speculative decoding of video LLMs whose draft reads a tenth of the video (arXiv 2508.16201, EMNLP 2025)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

from torch import nn

from saccade.inference.draft_decoder import DraftModelDecoder
from saccade.inference.drafting.draft_session import DraftSession
from saccade.inference.drafting.draft_tree import DraftTreeDrafter
from saccade.inference.drafting.drafter import Drafter
from saccade.inference.drafting.static_trees import StaticTree
from saccade.inference.engine.recording import Recording
from saccade.inference.huggingface.visual_prompts import PositionRule
from saccade.inference.reduction.draft_prompt import pruned_video
from saccade.inference.reduction.selector import VideoSelector
from saccade.inference.reduction.selectors import make_selector
from saccade.inference.request import Request


@dataclass
class SpecVLM(DraftModelDecoder):
    """Drafts a token tree from a pruned video and verifies it on the whole one; output is the target's own.

    The draft keeps ``1 - prune_ratio`` of the video tokens: those that the target attended to while it read the
    question, filled up evenly over the rest. One forward of the target verifies the tree, at any temperature.

    Args:
        draft_model: A smaller model of the target's family: a path or hub id, loaded at the first use in the target's
            precision and on its device, or a loaded model. ``None``: the target drafts for itself, with the same
            weights and the video features it has already made.
        prune_ratio: Share of the video tokens that the draft does not read, 0 to 1.
        selector: Which tokens it keeps: ``two_stage``, ``uniform`` (needs no attention), ``attention``, ``random``,
            ``window``, ``none``, ... (:data:`saccade.inference.reduction.selectors.SELECTORS`), or a selector
            with settings of its own, whose ratio then counts.
        tree: ``default`` (25 nodes, 5 deep), ``chain`` (5 nodes), or the nodes as paths of child ranks, for example
            ``[[0], [1], [0, 0]]``.
        positions: Rotary positions of the draft after pruning: ``original`` keeps those of the whole prompt (ours),
            ``compact`` counts what is left (the authors' code).
        engine: How forwards of both models run: the name of a kind, or all settings
            (:class:`saccade.inference.EngineConfig`).

    Raises:
        ValueError: A setting outside its range, a draft that cannot be loaded or is of another family, a prompt
            without a video, or a question that stands before it.
    """

    prune_ratio: float = 0.9
    selector: VideoSelector | str = "two_stage"
    tree: str | list[list[int]] = "default"
    positions: PositionRule = "original"
    _shape: StaticTree = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        make_selector(self.selector, self.prune_ratio)
        if self.positions not in get_args(PositionRule):
            raise ValueError(f"positions must be original or compact, got {self.positions!r}.")
        if isinstance(self.tree, str) and self.tree not in ("default", "chain"):
            raise ValueError(f"tree must be default, chain or a list of paths of child ranks, got {self.tree!r}.")
        if self.tree == "chain":
            self._shape = StaticTree.chain(5)
        else:
            self._shape = StaticTree() if isinstance(self.tree, str) else StaticTree.of(self.tree)

    @property
    def width(self) -> int:
        """Nodes of the tree."""
        return len(self._shape.paths)

    def recording(self, model: nn.Module) -> Recording:
        """The attention on the video, where the selector looks at it."""
        return Recording(attention=make_selector(self.selector, self.prune_ratio).needs_scores)

    def drafter(self, model: nn.Module, request: Request) -> Drafter:
        """Drafts trees on a session over the pruned prompt."""
        shared = self.draft_model is None
        video = pruned_video(self, model, request, self.selector, self.prune_ratio, self.positions, shared)
        draft = self.draft(model, request)
        extra = request.max_new_tokens + self.width
        return DraftTreeDrafter(DraftSession(draft, extra, request.prompts, self.pool, video), self._shape)
