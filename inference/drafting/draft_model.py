"""Drafting with an independent, smaller model on a session of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from saccade.inference.drafting.chain import ChainDrafter
from saccade.inference.drafting.drafter import Run
from saccade.inference.engine.graphs import Floor
from saccade.inference.engine.session import Session


class DraftModelDrafter(ChainDrafter):
    """Continues the texts with the draft model; its cache keeps what verification accepted.

    Args:
        model: The draft model, on the target's device and with its vocabulary.
        length: Most drafted tokens in a round.
        capacity: Slots of every row of its cache.
        threshold: Confidence below which drafting stops; 0 never stops.
        floor: Engines that are kept from call to call; ``None`` runs eagerly.
    """

    def __init__(
        self, model: nn.Module, length: int, capacity: int, threshold: float, floor: Floor | None = None
    ) -> None:
        super().__init__(length)
        self.session = Session(model, capacity, floor=floor)
        self.threshold = threshold
        self._open = False

    def begin(self, run: Run) -> Tensor:
        """Catches up with the committed texts: the whole prompt at first, one or two tokens later."""
        session = self.session
        if not self._open:
            session.__enter__()
            self._open = True
            return session.prefill(run.texts)
        session.truncate([len(text) - 1 for text in run.texts])
        pending = [text[length:] for text, length in zip(run.texts, session.lengths, strict=True)]
        longest = max(len(tokens) for tokens in pending)
        padded = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in pending], device=session.device)
        logits = session.forward(padded)
        session.commit([range(len(tokens)) for tokens in pending])
        return logits[torch.arange(len(pending)), [len(tokens) - 1 for tokens in pending]]

    def step(self, run: Run, tokens: Tensor) -> Tensor:
        """One forward of the draft model."""
        logits = self.session.forward(tokens)[:, -1]
        self.session.commit([[0]] * len(run.texts))
        return logits

    def thresholds(self, run: Run) -> list[float]:
        """The same for every row."""
        return [self.threshold] * len(run.texts)

    def keep(self, rows: Sequence[int]) -> None:
        """Drops finished rows from the draft's cache."""
        if self._open:
            self.session.keep(rows)

    def close(self) -> None:
        """Gives the draft model back as it was."""
        if self._open:
            self.session.__exit__(None, None, None)
            self._open = False

    @property
    def forwards(self) -> int:
        """Forward calls of the draft model, its prefill included."""
        return self.session.target_forwards

    @property
    def cache_bytes(self) -> int:
        """Size of the draft's buffers."""
        return self.session.storage.bytes
