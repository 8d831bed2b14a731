"""Draft & Verify: the target drafts for itself with some sub-layers skipped (arXiv 2309.08168, ACL 2024)."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from torch import nn

from saccade.common.checks import check_count, check_place, check_share, check_switch
from saccade.inference.decoder import EngineDecoder
from saccade.inference.drafting.auto_skip import AutoSkip
from saccade.inference.drafting.control import Control
from saccade.inference.drafting.drafter import Drafter, NoDraft
from saccade.inference.drafting.layer_skip import LayerSkipDrafter, ThresholdController
from saccade.inference.drafting.skip_sets import check_skip_set, read_skip_file
from saccade.inference.engine.session import Session
from saccade.inference.huggingface.sublayer_skip import SublayerSkip
from saccade.inference.request import Request
from saccade.inference.state import GenerationState
from saccade.inference.verification.draft import Draft


@dataclass
class SelfSpeculative(EngineDecoder):
    """Drafts with the target itself, with some attention and MLP sub-layers skipped.

    There is no second model and no second cache: the draft reads the target's cache, and verification overwrites what
    the draft wrote. The speed-up is at most ``1 / c``, where ``c`` is the cost of a draft forward relative to a full
    one. It depends on which sub-layers are skipped: search them with ``saccade search-layers``.

    Args:
        skip: Path of a ``skip_layers.json`` written by the search; or ``{"attention": [...], "mlp": [...]}`` with layer
            indices from 0; or ``"auto"``: one of four evenly spread sets, or none, chosen on the first prompts of a
            model. A choice takes at most five forwards of at most 128 tokens
            (:class:`saccade.inference.drafting.auto_skip.AutoSkip`); until the prompts have 33 tokens together, and if
            no set pays, nothing is drafted, and a warning says what to do. Models that were trained with sub-layer
            dropout get a set. With rejection sampling, where a text depends on its drafts, ``"auto"`` drafts nothing.
        draft_length: Maximum number of drafted tokens in a round (K of the paper).
        gamma: Initial confidence threshold of the paper: drafting stops after a token whose probability is below it. 0
            with ``adaptive=False`` always drafts K tokens. Like the six settings below it, it counts only where no
            draft control chooses the length: with ``control="fixed"``, with rejection sampling, and where ranks agree
            on their forwards.
        adaptive: Adapt the threshold to the acceptance rate, with the four settings below.
        alpha: Target acceptance rate.
        beta1: Weight of the old acceptance rate in its running mean.
        beta2: Weight of the old threshold.
        epsilon: Step of the threshold.
        carry: Start a greedy call with the final threshold of the previous greedy call, as the authors' code does; the
            running acceptance rate starts at 0. With ``False``, and when sampling, every call starts with ``gamma``.
        control: ``auto`` drafts as many tokens as pay, up to the decoder's limit and down to none; ``fixed`` always the
            limit (:class:`saccade.inference.drafting.control.DraftControl`).
        engine: How forwards run: the name of a kind, or all settings (:class:`saccade.inference.EngineConfig`).

    Raises:
        ValueError: A setting outside its range, a skip file of another model, or layers that the model lacks.
    """

    advice: ClassVar[str] = "search its sub-layers with `saccade search-layers`, or train with sub-layer dropout"

    skip: str | dict[str, list[int]] = "auto"
    draft_length: int = 12
    gamma: float = 0.6
    adaptive: bool = True
    alpha: float = 0.9
    beta1: float = 0.5
    beta2: float = 0.9
    epsilon: float = 0.01
    carry: bool = True
    _carried: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("draft_length", self.draft_length)
        for name in ("gamma", "alpha", "beta1", "beta2", "epsilon"):
            check_share(name, getattr(self, name))
        for name in ("adaptive", "carry"):
            check_switch(name, getattr(self, name))
        if not isinstance(self.skip, str):
            check_skip_set(self.skip)

    @property
    def width(self) -> int:
        """The draft length."""
        return self.draft_length

    @property
    def rollback(self) -> int:
        """The draft length: drafted tokens are committed one by one, and taken back before they are verified."""
        return self.draft_length

    def skip_set(self, model: nn.Module) -> dict[str, list[int]]:
        """The skipped layers of a model, ``{"attention": [...], "mlp": [...]}``; empty while ``"auto"`` has none.

        Raises:
            ValueError: The skip file cannot be read or is of another model.
        """
        if isinstance(self.skip, dict):
            return {kind: list(self.skip.get(kind, [])) for kind in ("attention", "mlp")}
        if self.skip == "auto":
            skip = self._auto(model).skip
            return {"attention": sorted(skip.attention), "mlp": sorted(skip.mlp)}
        return read_skip_file(self.skip, model)

    def skipped(self, model: nn.Module) -> SublayerSkip:
        """The sub-layers of the target that are skipped while drafting."""
        return self._auto(model).skip if self.skip == "auto" else SublayerSkip(model, **self.skip_set(model))

    def _auto(self, model: nn.Module) -> AutoSkip:
        """The choice for a model, which stays with the decoder; it holds the model's layers, but not the model."""
        known = vars(self).setdefault("_chosen", weakref.WeakKeyDictionary())
        if model not in known:
            known[model] = AutoSkip(model, self.draft_length)
        auto: AutoSkip = known[model]
        return auto

    def check(self, model: nn.Module | None = None) -> None:
        """Checks the settings, and that the skip file exists.

        Args:
            model: The target; ``None`` checks only what does not depend on it.

        Raises:
            ValueError: A setting cannot work; the message names it.
        """
        super().check(model)
        if isinstance(self.skip, str) and self.skip != "auto":
            check_place("skip", self.skip)

    def independent(self) -> Self:
        """A copy of which every call starts with ``gamma``, whatever was generated before."""
        copied = super().independent()
        copied.carry, copied._carried = False, []
        return copied

    def __getstate__(self) -> dict[str, Any]:
        # a copy chooses for itself: its results must not depend on what this decoder has read
        return {name: value for name, value in super().__getstate__().items() if name != "_chosen"}

    def release(self) -> None:
        """Frees graphs and buffers, and what was chosen with ``skip="auto"``."""
        super().release()
        vars(self).pop("_chosen", None)

    def check_session(self, session: Session, model: nn.Module, capacity: int) -> None:
        """Checks that a session can be used; with ``skip="auto"`` it has to be one of this decoder until it has chosen.

        Raises:
            ValueError: The session does not fit; the message says why.
        """
        super().check_session(session, model, capacity)
        if self.skip == "auto" and not self._auto(model).decided and session.skip is not self.skipped(model):
            raise ValueError(
                "session must be one of this decoder while skip='auto' has not chosen, got another: open it with"
                " decoder.session(model, capacity)."
            )

    def join(self, model: nn.Module) -> None:
        """Joins the forwards of the other ranks, those included with which they choose what to skip."""
        if self.skip == "auto":
            self._auto(model).choose(model, [], synced=True)
        super().join(model)

    def draft_control(self, model: nn.Module, request: Request, *, synced: bool = False) -> Control | None:
        """The control of the drafts' lengths, as for every decoder; none if ``skip="auto"`` has found no set."""
        if self.skip == "auto" and self._auto(model).decided and not self._auto(model).drafts:
            return None
        return super().draft_control(model, request, synced=synced)

    def drafter(self, model: nn.Module, request: Request) -> Drafter:
        """Drafts with the target's session, with one threshold for each row."""
        # a draft's length decides how many random numbers it uses, and sampled text must not depend on earlier calls
        carries = self.carry and request.sampling is None
        gamma = self._carried[-1] if carries and self._carried else self.gamma
        controllers = [
            ThresholdController(gamma, self.alpha, self.beta1, self.beta2, self.epsilon) for _ in request.prompts
        ]
        if self.skip == "auto":
            return _ChoosingDrafter(self, controllers, carries, self._auto(model), request)
        return _CarryingDrafter(self, controllers, carries)


class _CarryingDrafter(LayerSkipDrafter):
    """Stores the mean threshold of all rows on the decoder for its next call, if that call may use it."""

    def __init__(self, decoder: SelfSpeculative, controllers: list[ThresholdController], carries: bool) -> None:
        super().__init__(decoder.draft_length, controllers, decoder.adaptive)
        self._decoder, self._all, self._carries = decoder, list(controllers), carries

    def close(self) -> None:
        """Stores the mean threshold."""
        if self.adaptive and self._carries:
            self._decoder._carried[:] = [sum(c.gamma for c in self._all) / len(self._all)]


class _ChoosingDrafter(_CarryingDrafter):
    """Chooses what to skip before the prompts are read; drafts nothing while nothing is chosen."""

    def __init__(
        self,
        decoder: SelfSpeculative,
        controllers: list[ThresholdController],
        carries: bool,
        auto: AutoSkip,
        request: Request,
    ) -> None:
        super().__init__(decoder, controllers, carries)
        # texts of rejection sampling depend on their drafts, and must not depend on the prompts of earlier calls
        self._may_draft = request.sampling is None or request.sampling.coupling != "rejection"
        self._auto, self._drafts, self._made = auto, False, 0

    def prepare(self, state: GenerationState) -> None:
        """Chooses, together with the other ranks if these agree on their forwards."""
        session = state.session
        self._made = self._auto.choose(session.model, state.texts, synced=session.agreement is not None)
        self._drafts = self._may_draft and self._auto.drafts  # stays, if another call chooses meanwhile

    def draft(self, state: GenerationState, limits: Sequence[int]) -> Draft:
        """Drafts as chosen, or nothing."""
        return super().draft(state, limits) if self._drafts else NoDraft().draft(state, limits)

    @property
    def forwards(self) -> int:
        """Number of forwards of the choice."""
        return self._made

    def close(self) -> None:
        """Stores the mean threshold, if it was used."""
        if self._drafts:
            super().close()
