"""Drafting chains with a session of its own: of a smaller model, or of the target with a pruned video."""

from __future__ import annotations

from torch import Tensor

from saccade.inference.drafting.chain import ChainDrafter
from saccade.inference.drafting.draft_session import DraftSession, SessionDrafter
from saccade.inference.state import GenerationState


class DraftModelDrafter(SessionDrafter, ChainDrafter):
    """Continues the texts with the draft model; accepted tokens stay in its cache.

    Args:
        draft_session: The draft model's session.
        length: Maximum number of drafted tokens in a round.
        threshold: Confidence below which drafting stops; 0 never stops early.
    """

    def __init__(self, draft_session: DraftSession, length: int, threshold: float = 0.0) -> None:
        ChainDrafter.__init__(self, length)
        self.draft_session = draft_session
        self.threshold = threshold

    def begin(self, state: GenerationState) -> Tensor:
        """Reads the committed tokens that are not in the draft's cache: the prompt at first, later one or two."""
        return self.draft_session.catch_up(state)

    def step(self, state: GenerationState, tokens: Tensor) -> Tensor:
        """Runs one forward of the draft model."""
        logits = self.draft_session.fitted(self.draft_session.session.forward(tokens)[:, -1], state)
        self.draft_session.session.commit([[0]] * len(state.texts))
        return logits

    def thresholds(self, state: GenerationState) -> list[float]:
        """The same for every row."""
        return [self.threshold] * len(state.texts)
