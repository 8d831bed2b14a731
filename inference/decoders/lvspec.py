"""LVSpec: relaxed speculative decoding for video LLMs (arXiv 2604.05650, ACL 2026)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, get_args

from torch import nn

from saccade.common.checks import check_count
from saccade.inference.draft_decoder import DraftModelDecoder
from saccade.inference.drafting.draft_model import DraftModelDrafter
from saccade.inference.drafting.draft_session import DraftSession
from saccade.inference.drafting.drafter import Drafter
from saccade.inference.engine.recording import Recording
from saccade.inference.huggingface.models import text_config
from saccade.inference.huggingface.visual_prompts import PositionRule
from saccade.inference.reduction.draft_prompt import pruned_video
from saccade.inference.reduction.selector import VideoSelector
from saccade.inference.reduction.selectors import make_selector
from saccade.inference.request import Request
from saccade.inference.verification.relaxed import RelaxedRule, VisualRelaxation
from saccade.inference.verification.relaxed.verifier import RelaxedVerifier, ScoredAt
from saccade.inference.verification.verifier import Verifier


@dataclass
class LVSpec(DraftModelDecoder):
    """Accepts drafted tokens that differ from the target's choice where the text does not depend on the video.

    Not lossless; greedy decoding only. The visual relevance of a token is the cosine between a hidden state of the
    target and its most similar states at the video tokens. ``stats.relaxed`` counts the emitted tokens that differ from
    the target's choice, and ``GenerationOutput.audit`` gives the reason for each. ``rule`` replaces LVSpec's rule by
    one of those that it is compared with. The paper's code is not public: what the paper does not specify is a setting,
    with our defaults.

    Args:
        draft_model: A smaller model of the target's family: a path or hub id, loaded at first use in the target's
            precision and on its device, or a loaded model. ``None`` drafts with the target itself on the pruned video.
        draft_length: Maximum number of drafted tokens in a round; they form a chain.
        rule: Which tokens are accepted: :class:`saccade.inference.verification.relaxed.VisualRelaxation` (the default,
            LVSpec's rule), ``RandomRelaxation``, ``FLy``, ``FLyPlus`` or ``Strict``.
        neighbours: Number of most similar video tokens whose cosines are averaged (N of the paper).
        layer: Decoder layer whose output states are compared, counted from 0, or from the end where negative;
            ``norm`` compares the output of the final norm.
        score_at: Which state gives the relevance of a token: ``judge``, the state whose logits verify the token (ours);
            ``draft``, the state of the drafted token; ``max``, the larger of both relevances.
        prune_ratio: Share of the video tokens that the draft model does not read, 0 to 1.
        selector: Which video tokens the draft model keeps, as in :class:`saccade.inference.SpecVLM`.
        positions: Rotary positions of the draft after pruning, as in :class:`saccade.inference.SpecVLM`.
        control: Without effect: this decoder has a relaxed rule, with which a text would depend on the clock.
        engine: How forwards of both models run: the name of a kind, or all settings
            (:class:`saccade.inference.EngineConfig`).

    Raises:
        ValueError: A setting outside its range, a draft model that cannot be loaded or is of another family, a prompt
            without a video, or ``sampling``.
    """

    lossless: ClassVar[bool] = False

    draft_length: int = 10
    rule: RelaxedRule | None = None
    neighbours: int = 10
    layer: int | str = -1
    score_at: ScoredAt = "judge"
    prune_ratio: float = 0.9
    selector: VideoSelector | str = "uniform"
    positions: PositionRule = "original"
    _rule: RelaxedRule = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        make_selector(self.selector, self.prune_ratio)
        for name in ("draft_length", "neighbours"):
            check_count(name, getattr(self, name))
        for name, choices in (("score_at", ScoredAt), ("positions", PositionRule)):
            if getattr(self, name) not in get_args(choices):
                given = getattr(self, name)
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {given!r}: choose one.")
        if isinstance(self.layer, str) and self.layer != "norm":
            raise ValueError(f"layer must be an index or norm, got {self.layer!r}: use -1 for the last layer.")
        if self.rule is not None and not isinstance(self.rule, RelaxedRule):
            raise ValueError(
                f"rule must be a rule of saccade.inference.verification.relaxed, got {self.rule!r}: use for example "
                "VisualRelaxation()."
            )
        self._rule = VisualRelaxation() if self.rule is None else self.rule

    @property
    def width(self) -> int:
        """The draft length."""
        return self.draft_length

    def recording(self, model: nn.Module) -> Recording:
        """Hidden states if the rule needs relevance, and attention on the video if the selector needs scores."""
        layers = text_config(model).num_hidden_layers
        if isinstance(self.layer, int) and not -layers <= self.layer < layers:
            raise ValueError(
                f"layer must be between {-layers} and {layers - 1} for a model of {layers} layers, got {self.layer}: "
                "count from 0, or from the end with negative numbers."
            )
        attention = make_selector(self.selector, self.prune_ratio).needs_scores
        return Recording(attention, self.layer if self._rule.needs_relevance else None)

    def drafter(self, model: nn.Module, request: Request) -> Drafter:
        """Drafts chains with a session that reads the pruned video."""
        shared = self.draft_model is None
        video = pruned_video(self, model, request, self.selector, self.prune_ratio, self.positions, shared)
        draft = self.draft(model, request)
        extra = request.max_new_tokens + self.width
        return DraftModelDrafter(DraftSession(draft, extra, request.prompts, self.pool, video), self.draft_length)

    def verifier(self, model: nn.Module, request: Request) -> Verifier:
        """Verifies with the relaxed rule.

        Raises:
            ValueError: ``sampling`` is set.
        """
        if request.sampling is not None:
            raise ValueError(
                f"sampling must be None for {type(self).__name__}, got {request.sampling}: its rules are for greedy "
                "decoding, so leave sampling out and pass do_sample=False."
            )
        return RelaxedVerifier(self._rule, self.neighbours, self.score_at)
