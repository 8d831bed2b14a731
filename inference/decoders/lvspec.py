"""LVSpec: relaxed speculative decoding of video LLMs, strict where it matters (arXiv 2604.05650, ACL 2026)."""

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
from saccade.inference.verification.relaxed import (
    RelaxedRule,
    VisualRelaxation,
)
from saccade.inference.verification.relaxed.verifier import RelaxedVerifier, ScoredAt
from saccade.inference.verification.verifier import Verifier


@dataclass
class LVSpec(DraftModelDecoder):
    """Lets drafted tokens stand that differ from the target's choice where the text is not about what is seen.

    Not lossless. How visual a place is, is measured by the target itself: the cosine of its hidden state to the most
    similar states of the video's tokens, which the prefill has made. ``stats.relaxed`` counts the emitted tokens that
    are not the target's own choice, ``GenerationOutput.audit`` says why each stands. The relaxed rules that LVSpec is
    compared with take its place through ``rule``. What the paper leaves open (its code is not public) is a setting; the
    defaults are ours.

    Args:
        draft_model: A smaller model of the target's family: a path or hub id, loaded at the first use in the target's
            precision and on its device, or a loaded model. ``None``: the target drafts for itself on the pruned video.
        draft_length: Drafted tokens of a round, a chain.
        rule: Which tokens are accepted: :class:`saccade.inference.verification.relaxed.VisualRelaxation` (the default,
            LVSpec's own), ``RandomRelaxation``, ``FLy``, ``FLyPlus`` or ``Strict``.
        neighbours: Video tokens whose cosines are averaged, the most similar ones (N of the paper).
        layer: Decoder layer whose states are compared, from 0, negative from the end, before the final norm;
            ``norm`` is the last one's behind it.
        score_at: Whose state says how visual a place is: ``judge``, the state whose logits decide the token (ours);
            ``draft``, that of the drafted token itself; ``max``, the larger of both.
        prune_ratio: Share of the video tokens that the draft does not read, 0 to 1.
        selector: Which tokens it keeps, as in :class:`saccade.inference.SpecVLM`.
        positions: Rotary positions of the draft after pruning, as there.
        engine: How forwards of both models run: the name of a kind, or all settings
            (:class:`saccade.inference.EngineConfig`).

    Raises:
        ValueError: A setting outside its range, a draft that cannot be loaded or is of another family, a prompt
            without a video, or a temperature: the rules are for greedy decoding.
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
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {getattr(self, name)!r}.")
        if isinstance(self.layer, str) and self.layer != "norm":
            raise ValueError(f"layer must be an index or norm, got {self.layer!r}.")
        if self.rule is not None and not isinstance(self.rule, RelaxedRule):
            raise ValueError(f"rule must be a rule of saccade.inference.verification.relaxed, got {self.rule!r}.")
        self._rule = VisualRelaxation() if self.rule is None else self.rule

    @property
    def width(self) -> int:
        """The draft length."""
        return self.draft_length

    def recording(self, model: nn.Module) -> Recording:
        """States of video tokens and of judged ones where the rule looks at them, attention where the selector does."""
        layers = text_config(model).num_hidden_layers
        if isinstance(self.layer, int) and not -layers <= self.layer < layers:
            raise ValueError(
                f"layer is {self.layer}, but the model has {layers} layers: count from 0, or from the end."
            )
        attention = make_selector(self.selector, self.prune_ratio).needs_scores
        return Recording(attention, self.layer if self._rule.needs_relevance else None)

    def drafter(self, model: nn.Module, request: Request) -> Drafter:
        """Drafts chains on a session over the pruned prompt."""
        shared = self.draft_model is None
        video = pruned_video(self, model, request, self.selector, self.prune_ratio, self.positions, shared)
        draft = self.draft(model, request)
        extra = request.max_new_tokens + self.width
        return DraftModelDrafter(DraftSession(draft, extra, request.prompts, self.pool, video), self.draft_length)

    def verifier(self, model: nn.Module, request: Request) -> Verifier:
        """Judges by the relaxed rule.

        Raises:
            ValueError: Sampling was asked for.
        """
        if request.sampling is not None:
            raise ValueError(f"{type(self).__name__} decodes greedily: leave temperature and sampling out.")
        return RelaxedVerifier(self._rule, self.neighbours, self.score_at)
