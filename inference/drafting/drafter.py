"""The contract of everything that proposes tokens, and the proposer that proposes none."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from saccade.inference.engine.session import Session
from saccade.inference.huggingface.visual_prompts import VisualPrompt
from saccade.inference.sampling import Sampling
from saccade.inference.verification.draft import Draft, Verdict


@dataclass
class Run:
    """What a drafter and a verification rule see of a generation in progress; one entry for each unfinished row.

    Args:
        session: The target's session. ``session.lengths[b]`` is ``len(texts[b]) - 1``: the last token of a text has
            not been read yet.
        texts: Committed tokens of every row, the prompt included.
        sampling: How tokens are drawn; ``None`` is greedy.
        streams: Random numbers of every row.
        eos: Ids that end a row.
        visual: The prompts with their images or videos; ``None`` for text.
        memory: What a relaxed rule remembers of every row; empty without one.
    """

    session: Session
    texts: list[list[int]]
    sampling: Sampling | None
    streams: list[random.Random]
    eos: frozenset[int] = frozenset()
    visual: list[VisualPrompt] | None = None
    memory: list[Any] = field(default_factory=list)

    def keep(self, rows: Sequence[int]) -> None:
        """Drops finished rows."""
        self.session.keep(rows)
        self.texts = [self.texts[row] for row in rows]
        self.streams = [self.streams[row] for row in rows]
        self.memory = [self.memory[row] for row in rows] if self.memory else []
        self.visual = None if self.visual is None else [self.visual[row] for row in rows]


class Drafter(ABC):
    """Proposes tokens for the rounds of one generation; a subclass writes ``draft`` and keeps its state on itself."""

    @abstractmethod
    def draft(self, run: Run, limits: Sequence[int]) -> Draft:
        """Proposes up to ``limits[b]`` tokens behind the text of every row.

        Args:
            run: The generation. A drafter may run the target's session, but leaves its lengths as they were.
            limits: Most tokens that a row can use before its length limit, at least 0.

        Returns:
            The proposals; a row may get fewer than its limit, or none.
        """

    def observe(self, run: Run, draft: Draft, verdicts: Sequence[Verdict]) -> None:  # noqa: B027
        """Learns what became of the last draft; called after the accepted tokens are in ``run.texts``."""

    def keep(self, rows: Sequence[int]) -> None:  # noqa: B027
        """Drops the state of finished rows."""

    def close(self) -> None:  # noqa: B027
        """Gives back what the drafter holds; called also after an error."""

    @property
    def forwards(self) -> int:
        """Forward calls of a model of the drafter's own."""
        return 0

    @property
    def cache_bytes(self) -> int:
        """Size of key-value buffers of the drafter's own."""
        return 0

    @property
    def prefill_seconds(self) -> float:
        """Time until a model of the drafter's own has read the prompts."""
        return 0.0


class NoDraft(Drafter):
    """Proposes nothing: every round is one token of the target's own."""

    def draft(self, run: Run, limits: Sequence[int]) -> Draft:
        """No columns for every row."""
        tokens = torch.empty(len(run.texts), 0, dtype=torch.long, device=run.session.device)
        return Draft(tokens, [0] * len(run.texts))
