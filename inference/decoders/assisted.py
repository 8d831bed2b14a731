"""Assisted decoding: a smaller model drafts and the target verifies, the original form of speculative decoding."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel

from saccade.common.checks import check_count, check_model, check_share
from saccade.inference.draft_decoder import DraftModelDecoder
from saccade.inference.drafting.draft_model import DraftModelDrafter
from saccade.inference.drafting.draft_session import DraftSession
from saccade.inference.drafting.drafter import Drafter
from saccade.inference.request import Request


@dataclass
class AssistedDecoding(DraftModelDecoder):
    """Speculative decoding with an independent draft model of the same vocabulary (arXiv 2211.17192, 2302.01318).

    Args:
        draft_model: The draft model: a path or hub id, loaded at first use in the target's precision and on its device,
            or a loaded model.
        draft_length: Maximum number of drafted tokens in a round.
        confidence_threshold: Without a draft control, drafting stops after a token whose probability is below this; 0
            never stops early. With ``control="auto"`` the control chooses the length.
        control: ``auto`` drafts as many tokens as pay, up to the decoder's limit and down to none; ``fixed`` always the
            limit (:class:`saccade.inference.drafting.control.DraftControl`).
        engine: How forwards of both models run: the name of a kind, or all settings
            (:class:`saccade.inference.EngineConfig`).

    Raises:
        ValueError: A setting outside its range, or a draft model that cannot be loaded or has another vocabulary.
    """

    draft_model: str | PreTrainedModel = field()  # required: the base has a default
    draft_length: int = 5
    confidence_threshold: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_model("draft_model", self.draft_model)  # the base allows None
        check_count("draft_length", self.draft_length)
        check_share("confidence_threshold", self.confidence_threshold)

    @property
    def width(self) -> int:
        """The draft length."""
        return self.draft_length

    def drafter(self, model: nn.Module, request: Request) -> Drafter:
        """Drafts chains with the draft model, which has its own cache."""
        draft = self.draft(model, request)
        extra = request.max_new_tokens + self.width
        draft_session = DraftSession(draft, extra, request.prompts, self.pool, rollback=self.draft_length)
        return DraftModelDrafter(draft_session, self.draft_length, self.confidence_threshold)
