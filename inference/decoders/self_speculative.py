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
    """Drafts with the target itself, with some attention and MLP sub-layers skipped.

    There is no second model and no second cache: the draft reads the target's cache, and verification overwrites what
    the draft wrote. The speed-up is at most ``1 / c``, where ``c`` is the cost of a draft forward relative to a full
    one. It depends on which sub-layers are skipped: search them with ``saccade search-layers``.

    Args:
        skip: Path of a ``skip_layers.json`` written by the search; or ``{"attention": [...], "mlp": [...]}`` with layer
            indices from 0; or ``"auto"``: 45 % of the sub-layers between the first and the last layer, evenly spread,
            for models that were trained with sub-layer dropout.
        draft_length: Maximum number of drafted tokens in a round (K of the paper).
        gamma: Initial confidence threshold: drafting stops after a token whose probability is below it. 0 with
            ``adaptive=False`` always drafts K tokens.
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
        """The skipped layers of a model, ``{"attention": [...], "mlp": [...]}``.

        Raises:
            ValueError: The skip file cannot be read or is of another model.
        """
        if isinstance(self.skip, dict):
            return {kind: list(self.skip.get(kind, [])) for kind in ("attention", "mlp")}
        if self.skip == "auto":
            return spread_skip_set(len(decoder_layers(model)))
        return read_skip_file(self.skip, model)

    def skipped(self, model: nn.Module) -> SublayerSkip:
        """The sub-layers of the target that are skipped while drafting."""
        return SublayerSkip(model, **self.skip_set(model))

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

    def drafter(self, model: nn.Module, request: Request) -> Drafter:
        """Drafts with the target's session, with one threshold for each row."""
        # a draft's length decides how many random numbers it uses, and sampled text must not depend on earlier calls
        carries = self.carry and request.sampling is None
        gamma = self._carried[-1] if carries and self._carried else self.gamma
        controllers = [
            ThresholdController(gamma, self.alpha, self.beta1, self.beta2, self.epsilon) for _ in request.prompts
        ]
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
