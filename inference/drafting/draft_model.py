"""Drafting a chain with a model of its own session: an independent, smaller one, or the target itself on less video."""

from __future__ import annotations

from torch import Tensor

from saccade.inference.drafting.chain import ChainDrafter
from saccade.inference.drafting.draft_session import DraftSession, SessionDrafter
from saccade.inference.state import GenerationState


class DraftModelDrafter(SessionDrafter, ChainDrafter):
    """Continues the texts with the draft model; its cache keeps what verification accepted.

    Args:
        draft_session: The draft model's session.
        length: Most drafted tokens in a round.
        threshold: Confidence below which drafting stops; 0 never stops.
    """

    def __init__(self, draft_session: DraftSession, length: int, threshold: float = 0.0) -> None:
        ChainDrafter.__init__(self, length)
        self.draft_session = draft_session
        self.threshold = threshold

    def begin(self, state: GenerationState) -> Tensor:
        """Catches up with the committed texts: the whole prompt at first, one or two tokens later."""
        return self.draft_session.catch_up(state)

    def step(self, state: GenerationState, tokens: Tensor) -> Tensor:
        """One forward of the draft model."""
        logits = self.draft_session.session.forward(tokens)[:, -1]
        self.draft_session.session.commit([[0]] * len(state.texts))
        return logits

    def thresholds(self, state: GenerationState) -> list[float]:
        """The same for every row."""
        return [self.threshold] * len(state.texts)
