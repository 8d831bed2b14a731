"""Base of decoders with a draft model: loads the model once, checks it, and frees it on request."""

# no postponed annotations: see decoder.py
from dataclasses import dataclass, field
from typing import Self

from torch import nn
from transformers import PreTrainedModel

from saccade.common.checks import check_model, check_place
from saccade.inference.decoder import EngineDecoder
from saccade.inference.drafting.loading import draft_for
from saccade.inference.request import Request


@dataclass
class DraftModelDecoder(EngineDecoder):
    """A decoder with the setting ``draft_model``: a path or hub id, a loaded model, or ``None`` for the target."""

    draft_model: str | PreTrainedModel | None = None
    _loaded: dict[str, nn.Module] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draft_model is not None:
            check_model("draft_model", self.draft_model)

    def draft(self, model: nn.Module, request: Request) -> nn.Module:
        """The draft model for a request; loaded at first use, in the target's precision and on its device.

        Raises:
            ValueError: It cannot be loaded, or does not fit the target.
        """
        return model if self.draft_model is None else draft_for(self.draft_model, model, request, self._loaded)

    def check(self, model: nn.Module | None = None) -> None:
        """Checks the settings, and that the path of the draft model exists.

        Args:
            model: The target; ``None`` checks only what does not depend on it.

        Raises:
            ValueError: A setting cannot work; the message names it.
        """
        super().check(model)
        if isinstance(self.draft_model, str):
            check_place("draft_model", self.draft_model)

    def independent(self) -> Self:
        """A copy with the same settings that loads its own draft model."""
        copied = super().independent()
        copied._loaded = {}
        return copied

    def release(self) -> None:
        """Frees graphs, buffers and a draft model that was loaded from a path."""
        super().release()
        self._loaded.clear()
