"""Drafting a chain with a model of its own session: an independent, smaller one, or the target itself on less video."""

from __future__ import annotations

from torch import Tensor

from saccade.inference.drafting.chain import ChainDrafter
from saccade.inference.drafting.draft_session import DraftSession, SessionDrafter
from saccade.inference.drafting.drafter import Run


class DraftModelDrafter(SessionDrafter, ChainDrafter):
    """Continues the texts with the draft model; its cache keeps what verification accepted.

    Args:
        follower: The draft model's session.
        length: Most drafted tokens in a round.
        threshold: Confidence below which drafting stops; 0 never stops.
    """

    def __init__(self, follower: DraftSession, length: int, threshold: float = 0.0) -> None:
        ChainDrafter.__init__(self, length)
        self.follower = follower
        self.threshold = threshold

    def begin(self, run: Run) -> Tensor:
        """Catches up with the committed texts: the whole prompt at first, one or two tokens later."""
        return self.follower.catch_up(run)

    def step(self, run: Run, tokens: Tensor) -> Tensor:
        """One forward of the draft model."""
        logits = self.follower.fitted(self.follower.session.forward(tokens)[:, -1], run)
        self.follower.session.commit([[0]] * len(run.texts))
        return logits

    def thresholds(self, run: Run) -> list[float]:
        """The same for every row."""
        return [self.threshold] * len(run.texts)
