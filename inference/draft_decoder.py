"""What decoders with a draft model have in common: it is loaded once, checked, and freed on request."""

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
    """A decoder with the setting ``draft_model``: a path or hub id, a loaded model, or ``None``, the target itself."""

    draft_model: str | PreTrainedModel | None = None
    _loaded: dict[str, nn.Module] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draft_model is not None:
            check_model("draft_model", self.draft_model)

    def draft(self, model: nn.Module, request: Request) -> nn.Module:
        """The draft model for a request; loaded at the first use in the target's precision and on its device.

        Raises:
            ValueError: It cannot be loaded, or does not fit the target.
        """
        return model if self.draft_model is None else draft_for(self.draft_model, model, request, self._loaded)

    def check(self, model: nn.Module | None = None) -> None:
        """Refuses a path to a draft model that leads nowhere, and what the base refuses.

        Raises:
            ValueError: Names what stands in the way.
        """
        super().check(model)
        if isinstance(self.draft_model, str):
            check_place("draft_model", self.draft_model)

    def independent(self) -> Self:
        """A copy with the same settings, which loads a draft of its own."""
        twin = super().independent()
        twin._loaded = {}
        return twin

    def release(self) -> None:
        """Frees graphs, buffers and the draft model that was loaded by path."""
        super().release()
        self._loaded.clear()
