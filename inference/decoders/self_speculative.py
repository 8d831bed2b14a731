"""Draft & Verify: the target drafts for itself with some sub-layers skipped (arXiv 2309.08168, ACL 2024)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from torch import nn

from saccade.common.checks import check_count, check_place, check_share, check_switch
from saccade.inference.decoder import EngineDecoder
from saccade.inference.drafting.drafter import Drafter
from saccade.inference.drafting.layer_skip import LayerSkipDrafter, ThresholdController
from saccade.inference.drafting.skip_sets import check_skip_set, read_skip_file, spread_skip_set
from saccade.inference.huggingface.sublayer_skip import SublayerSkip, decoder_layers
from saccade.inference.request import Request


@dataclass
class SelfSpeculative(EngineDecoder):
    """Drafts with the target's own weights, attention and MLP sub-layers skipped independently of each other.

    No second model and no second copy of the prompt: the draft reads the target's cache, and the verification
    overwrites what the draft wrote. Speed is bounded by ``1 / c``, where ``c`` is the cost of a draft forward relative
    to a full one, so the choice of the skipped sub-layers decides: search them with ``saccade search-layers``.

    Args:
        skip: Path of a ``skip_layers.json`` written by the search; or ``{"attention": [...], "mlp": [...]}``, layer
            indices from 0; or ``"auto"``, 45 % of the sub-layers between the first and the last layer, evenly spread,
            for models that were trained with sub-layer dropout.
        draft_length: Most drafted tokens in a round (K of the paper).
        gamma: Initial confidence below which drafting stops; 0 with ``adaptive=False`` always drafts K tokens.
        adaptive: Adapt gamma to the acceptance (below).
        alpha: Acceptance that the threshold aims at.
        beta1: Weight of the old acceptance in its running mean.
        beta2: Weight of the old threshold.
        epsilon: Step of the threshold.
        carry: Begin a greedy call with the threshold that the last greedy call ended with, as the authors' code does;
            the running acceptance starts at 0. False, and always when sampling: every call begins with ``gamma``.
        engine: How forwards run: the name of a kind, or all settings (:class:`saccade.inference.EngineConfig`).

    Raises:
        ValueError: A setting outside its range, a skip file of another model, or layers that the model lacks.
    """

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

    def skip_set(self, model: nn.Module) -> dict[str, list[int]]:
        """The skipped layers for this model, ``{"attention": [...], "mlp": [...]}``."""
        if isinstance(self.skip, dict):
            return {kind: list(self.skip.get(kind, [])) for kind in ("attention", "mlp")}
        if self.skip == "auto":
            return spread_skip_set(len(decoder_layers(model)))
        return read_skip_file(self.skip, model)

    def skipped(self, model: nn.Module) -> SublayerSkip:
        """The switch that turns the target into its own draft."""
        return SublayerSkip(model, **self.skip_set(model))

    def check(self, model: nn.Module | None = None) -> None:
        """Refuses a skip file that is not there, and what the base refuses.

        Raises:
            ValueError: Names what stands in the way.
        """
        super().check(model)
        if isinstance(self.skip, str) and self.skip != "auto":
            check_place("skip", self.skip)

    def independent(self) -> Self:
        """A copy whose calls begin with ``gamma``, whatever was generated before."""
        twin = super().independent()
        twin.carry, twin._carried = False, []
        return twin

    def drafter(self, model: nn.Module, request: Request) -> Drafter:
        """Drafts on the target's session, with one threshold for each row."""
        # how many random numbers a draft takes depends on its length: sampled text must not depend on earlier calls
        carries = self.carry and request.sampling is None
        gamma = self._carried[-1] if carries and self._carried else self.gamma
        controllers = [
            ThresholdController(gamma, self.alpha, self.beta1, self.beta2, self.epsilon) for _ in request.prompts
        ]
        return _CarryingDrafter(self, controllers, carries)


class _CarryingDrafter(LayerSkipDrafter):
    """Leaves the mean of the rows' thresholds with the decoder for its next call, where that may use it."""

    def __init__(self, decoder: SelfSpeculative, controllers: list[ThresholdController], carries: bool) -> None:
        super().__init__(decoder.draft_length, controllers, decoder.adaptive)
        self._decoder, self._all, self._carries = decoder, list(controllers), carries

    def close(self) -> None:
        """Hands the thresholds over."""
        if self.adaptive and self._carries:
            self._decoder._carried[:] = [sum(c.gamma for c in self._all) / len(self._all)]
