"""The state of a generation, as drafters and verifiers see it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from saccade.inference.engine.session import Session
from saccade.inference.huggingface.visual_prompts import VisualPrompt
from saccade.inference.request import Request
from saccade.inference.sampling import Sampling


@dataclass
class GenerationState:
    """The unfinished rows of a generation; every list has one entry per unfinished row.

    Args:
        session: The target's session. ``session.lengths[b]`` is ``len(texts[b]) - 1``: the target has not read the last
            token of a text yet.
        texts: Verified tokens of every row, the prompt included.
        sampling: How tokens are drawn; ``None`` is greedy.
        eos: Ids that end a row.
        keys: The key of every row's noise; empty where tokens are not drawn with noise.
        streams: The random number generator of every row; empty where tokens are not drawn by rejection sampling.
        visual: The prompts with their images or videos; ``None`` for text.
        controlled: Whether a :class:`~saccade.inference.drafting.control.DraftControl` chooses how much is drafted.
    """

    session: Session
    texts: list[list[int]]
    sampling: Sampling | None = None
    eos: frozenset[int] = frozenset()
    keys: list[int] = field(default_factory=list)
    streams: list[random.Random] = field(default_factory=list)
    visual: list[VisualPrompt] | None = None
    controlled: bool = False

    @classmethod
    def of(cls, session: Session, request: Request) -> GenerationState:
        """The state before the prompts of a request are read."""
        state = cls(session, [list(text) for text in request.prompts], request.sampling, request.eos)
        if state.sampling is not None:
            state.sampling = state.sampling.seeded()
            if state.noisy:
                state.keys = state.sampling.keys(len(state.texts))
            else:
                state.streams = state.sampling.streams(len(state.texts))
        return state

    @property
    def noisy(self) -> bool:
        """Whether tokens are drawn with noise, which draft and target share."""
        return self.sampling is not None and self.sampling.coupling == "gumbel"

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps the given rows and drops the others, also in the session.

        Args:
            rows: Indices of the rows to keep, ascending.
        """
        self.session.keep(rows)
        self.texts = [self.texts[row] for row in rows]
        self.keys = [self.keys[row] for row in rows] if self.keys else []
        self.streams = [self.streams[row] for row in rows] if self.streams else []
        self.visual = None if self.visual is None else [self.visual[row] for row in rows]
