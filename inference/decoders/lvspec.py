"""LVSpec: relaxed speculative decoding of video LLMs, strict where it matters (arXiv 2604.05650, ACL 2026)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from saccade.common.checks import check_count, check_model
from saccade.inference.decoder import Decoder
from saccade.inference.drafting.draft_model import DraftModelDrafter
from saccade.inference.drafting.draft_session import DraftSession
from saccade.inference.drafting.drafter import Drafter, Run
from saccade.inference.drafting.loading import draft_for
from saccade.inference.engine.config import EngineConfig, EngineKind
from saccade.inference.engine.observation import Observation
from saccade.inference.huggingface.models import text_config
from saccade.inference.huggingface.vision import special_token_ids
from saccade.inference.huggingface.visual_prompts import PositionRule
from saccade.inference.reduction.draft_prompt import pruned_video
from saccade.inference.reduction.selector import VideoSelector
from saccade.inference.reduction.selectors import make_selector
from saccade.inference.request import Request
from saccade.inference.verification.draft import Draft, Verdict
from saccade.inference.verification.greedy import greedy_choices, verify_greedy
from saccade.inference.verification.relaxed import (
    Judged,
    RelaxedRule,
    VisualRelaxation,
    directions,
    standing,
    top_entropy,
    visual_relevance,
)

ScoredAt = Literal["judge", "draft", "max"]
_LOOKS_BACK = 64  # emitted tokens that a rule is shown


@dataclass
class LVSpec(Decoder):
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
        rule: Which tokens stand: :class:`saccade.inference.verification.relaxed.VisualRelaxation` (the default, LVSpec's own),
            ``RandomRelaxation``, ``FLy``, ``FLyPlus`` or ``Strict``.
        neighbours: Video tokens whose cosines are averaged, the most similar ones (N of the paper).
        layer: Decoder layer whose states are compared, from 0, negative from the end, before the final norm;
            ``norm`` is the last one's behind it.
        score_at: Whose state says how visual a place is: ``judge``, the state whose logits decide the token (ours);
            ``draft``, that of the drafted token itself; ``max``, the larger of both.
        prune_ratio: Share of the video tokens that the draft does not read, 0 to 1.
        selector: Which tokens it keeps, as in :class:`saccade.inference.SpecVLM`.
        positions: Rotary positions of the draft after pruning, as there.
        engine: How forwards of both models run: a kind's name, or all settings (:class:`saccade.inference.EngineConfig`).

    Raises:
        ValueError: A setting outside its range, a draft that cannot be loaded or is of another family, a prompt
            without a video, or a temperature: the rules are for greedy decoding.
    """

    lossless: ClassVar[bool] = False

    draft_model: str | PreTrainedModel | None = None
    draft_length: int = 10
    rule: RelaxedRule | None = None
    neighbours: int = 10
    layer: int | str = -1
    score_at: ScoredAt = "judge"
    prune_ratio: float = 0.9
    selector: VideoSelector | str = "uniform"
    positions: PositionRule = "original"
    engine: EngineConfig | EngineKind = "auto"
    _loaded: dict[str, nn.Module] = field(default_factory=dict, init=False, repr=False, compare=False)
    _rule: RelaxedRule = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        EngineConfig.of(self.engine)  # refuses wrong settings
        if self.draft_model is not None:
            check_model("draft_model", self.draft_model)
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

    def observation(self, model: nn.Module) -> Observation:
        """States of video tokens and of judged ones where the rule looks at them, attention where the selector does."""
        layers = text_config(model).num_hidden_layers
        if isinstance(self.layer, int) and not -layers <= self.layer < layers:
            raise ValueError(
                f"layer is {self.layer}, but the model has {layers} layers: count from 0, or from the end."
            )
        attention = make_selector(self.selector, self.prune_ratio).needs_scores
        return Observation(attention, self.layer if self._rule.needs_relevance else None)

    def drafter(self, model: nn.Module, request: Request) -> Drafter:
        """Drafts chains on a session over the pruned prompt."""
        shared = self.draft_model is None
        video = pruned_video(self, model, request, self.selector, self.prune_ratio, self.positions, shared)
        draft = model if self.draft_model is None else draft_for(self.draft_model, model, request, self._loaded)
        extra = request.max_new_tokens + self.width
        return DraftModelDrafter(DraftSession(draft, extra, request.prompts, self.floor, video), self.draft_length)

    def verify(self, logits: Tensor, draft: Draft, run: Run) -> list[Verdict]:
        """Judges by the relaxed rule; the first token, behind the prompt, is the target's own.

        Raises:
            ValueError: Sampling was asked for, or the logits hold NaN.
        """
        if run.sampling is not None:
            raise ValueError(f"{type(self).__name__} decodes greedily: leave sampling out, or pass do_sample=False.")
        if not run.memory:
            guarded = run.eos | special_token_ids(run.session.model)
            noted = run.session.noted
            noted.visual_states = [directions(states) for states in noted.visual_states]  # once for all rounds
            run.memory = [(self._rule.begin(row, guarded), len(text)) for row, text in enumerate(run.texts)]
            return verify_greedy(logits, draft)
        choices = greedy_choices(logits)
        extra = self._evidence(logits, draft, run)
        verdicts = []
        for row, count in enumerate(draft.counts):
            known = {name: values[row][:count] for name, values in extra.items()}
            state, prompt = run.memory[row]
            recent = run.texts[row][prompt:][-_LOOKS_BACK:]
            judged = Judged(draft.ids[row][:count], choices[row][: count + 1], recent=recent, **known)
            ruling = self._rule.judge(judged, state)
            path = list(range(ruling.accepted + 1))
            verdicts.append(Verdict(path, choices[row][ruling.accepted], ruling.log))
        return verdicts

    def _evidence(self, logits: Tensor, draft: Draft, run: Run) -> dict[str, Any]:
        """What the rule asks for, ``[batch][drafted]`` each."""
        found: dict[str, Any] = {}
        if self._rule.needs_relevance:
            found["relevance"] = self._relevance(run, draft.tokens.shape[1]).tolist()
        if self._rule.needs_entropies:
            found["entropies"] = top_entropy(logits[:, :-1]).tolist()
        if self._rule.needs_standing:
            ranks, ratios = standing(logits[:, :-1], draft.tokens)
            found["ranks"], found["ratios"] = ranks.tolist(), ratios.tolist()
        return found

    def _relevance(self, run: Run, drafted: int) -> Tensor:
        """``[batch, drafted]``: how visual every drafted place is."""
        states, visual = run.session.noted.states, run.session.noted.visual_states
        if states is None:
            raise RuntimeError("the session has noted no states: LVSpec.observation asks for them.")
        rows = []
        for row, seen in enumerate(visual):
            scores = visual_relevance(states[row], seen, self.neighbours, unit=True)
            judge, own = scores[:drafted], scores[1 : drafted + 1]
            rows.append({"judge": judge, "draft": own}.get(self.score_at, torch.maximum(judge, own)))
        return torch.stack(rows)
