"""Assisted decoding: a smaller model drafts, the target verifies (speculative decoding in its first form)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from saccade.inference import compat
from saccade.inference.decoder import Decoder
from saccade.inference.drafting.draft_model import DraftModelDrafter
from saccade.inference.drafting.drafter import Drafter
from saccade.inference.engine.settings import Engine, EngineKind
from saccade.inference.request import Request


@dataclass
class AssistedDecoding(Decoder):
    """Speculative decoding with an independent draft model of the same vocabulary (arXiv 2211.17192, 2302.01318).

    Args:
        draft_model: The draft: a path or hub id, loaded at the first use in the target's precision and on its device,
            or a loaded model.
        draft_length: Most drafted tokens in a round.
        confidence_threshold: Drafting stops behind a token whose probability is below this; 0 never stops early.
        engine: How forwards of both models run: a kind's name, or all settings (:class:`saccade.inference.Engine`).

    Raises:
        ValueError: A setting outside its range, a draft that cannot be loaded, or of another vocabulary.
    """

    draft_model: str | PreTrainedModel
    draft_length: int = 5
    confidence_threshold: float = 0.4
    engine: Engine | EngineKind = "auto"
    _loaded: dict[str, nn.Module] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        Engine.of(self.engine)  # refuses wrong settings
        if self.draft_length < 1:
            raise ValueError(f"draft_length must be at least 1, got {self.draft_length}.")
        if not 0 <= self.confidence_threshold <= 1:
            raise ValueError(f"confidence_threshold must be between 0 and 1, got {self.confidence_threshold}.")

    @property
    def width(self) -> int:
        """The draft length."""
        return self.draft_length

    def drafter(self, model: nn.Module, request: Request) -> Drafter:
        """Drafts with the small model, on a cache of its own."""
        draft = self._draft(model)
        theirs, ours = compat.text_config(draft).vocab_size, compat.text_config(model).vocab_size
        if theirs != ours:
            raise ValueError(
                f"the draft's vocabulary has {theirs} ids, the target's {ours}: use a draft with the same tokenizer."
            )
        context = getattr(compat.text_config(draft), "max_position_embeddings", None)
        needed = request.positions
        if context is not None and needed > context:
            raise ValueError(
                f"prompt and new tokens need {needed} positions, the draft model has {context}: lower max_new_tokens "
                "or use a draft with a longer context."
            )
        return DraftModelDrafter(draft, self.draft_length, needed + self.width, self.confidence_threshold, self.floor)

    def _draft(self, model: nn.Module) -> nn.Module:
        if not isinstance(self.draft_model, str):
            return self.draft_model
        device, dtype = compat.device_of(model), compat.precision_of(model)
        key = f"{device} {dtype}"
        if key not in self._loaded:
            try:
                draft: nn.Module = AutoModelForCausalLM.from_pretrained(self.draft_model, dtype=dtype)
            except (OSError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"draft_model {self.draft_model!r} cannot be loaded: {reason}") from None
            self._loaded[key] = draft.eval().to(device)
        return self._loaded[key]
