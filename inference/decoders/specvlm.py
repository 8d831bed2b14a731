"""SpecVLM: speculative decoding for video LLMs with a pruned video for the draft (arXiv 2508.16201, EMNLP 2025)."""

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
    """Drafts token trees with a pruned video and verifies them with the whole video; lossless.

    The draft keeps ``1 - prune_ratio`` of the video tokens: those with the highest attention of the target from the
    question, and evenly spaced ones of the others. One forward of the target verifies a tree, greedily or sampled.

    Args:
        draft_model: A smaller model of the target's family: a path or hub id, loaded at first use in the target's
            precision and on its device, or a loaded model. ``None`` drafts with the target itself, which reuses its
            weights and video features.
        prune_ratio: Share of the video tokens that the draft model does not read, 0 to 1.
        selector: Which video tokens the draft model keeps: ``two_stage``, ``uniform`` (needs no attention),
            ``attention``, ``random``, ``window``, ``none``, ...
            (:data:`saccade.inference.reduction.selectors.SELECTORS`), or a selector object, whose own ``prune_ratio``
            is then used.
        tree: ``default`` (25 nodes, depth 5), ``chain`` (5 nodes), or the nodes as paths of child ranks, for example
            ``[[0], [1], [0, 0]]``.
        positions: Rotary positions of the draft after pruning: ``original`` keeps those of the whole prompt (ours),
            ``compact`` renumbers the kept tokens (the authors' code).
        control: ``auto`` drafts as many tokens as pay, up to the decoder's limit and down to none; ``fixed`` always the
            limit (:class:`saccade.inference.drafting.control.DraftControl`).
        engine: How forwards of both models run: the name of a kind, or all settings
            (:class:`saccade.inference.EngineConfig`).

    Raises:
        ValueError: A setting outside its range, a draft model that cannot be loaded or is of another family, a prompt
            without a video, or a question before the video.
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
            raise ValueError(f"positions must be original or compact, got {self.positions!r}: choose one.")
        if isinstance(self.tree, str) and self.tree not in ("default", "chain"):
            raise ValueError(
                f"tree must be default, chain or a list of paths of child ranks, got {self.tree!r}: list for example "
                "[[0], [1], [0, 0]]."
            )
        if self.tree == "chain":
            self._shape = StaticTree.chain(5)
        else:
            self._shape = StaticTree() if isinstance(self.tree, str) else StaticTree.of(self.tree)

    @property
    def width(self) -> int:
        """Number of drafted nodes of the tree."""
        return len(self._shape.paths)

    @property
    def depth(self) -> int:
        """Depth of the tree; :class:`DraftControl` chooses how many of its levels are drafted."""
        return self._shape.depth

    def recording(self, model: nn.Module) -> Recording:
        """Attention on the video if the selector needs scores."""
        return Recording(attention=make_selector(self.selector, self.prune_ratio).needs_scores)

    def drafter(self, model: nn.Module, request: Request) -> Drafter:
        """Drafts trees with a session that reads the pruned video."""
        shared = self.draft_model is None
        video = pruned_video(self, model, request, self.selector, self.prune_ratio, self.positions, shared)
        draft = self.draft(model, request)
        extra = request.max_new_tokens + self.width
        return DraftTreeDrafter(DraftSession(draft, extra, request.prompts, self.pool, video), self._shape)
