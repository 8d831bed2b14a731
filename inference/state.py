"""What drafters and verifiers see of a generation in progress."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from saccade.inference.engine.session import Session
from saccade.inference.huggingface.visual_prompts import VisualPrompt
from saccade.inference.sampling import Sampling


@dataclass
class GenerationState:
    """The unfinished rows of a generation; every list has one entry for each of them.

    Args:
        session: The target's session. ``session.lengths[b]`` is ``len(texts[b]) - 1``: the last token of a text has
            not been read yet.
        texts: Verified tokens of every row, the prompt included.
        sampling: How tokens are drawn; ``None`` is greedy.
        streams: Random numbers of every row.
        eos: Ids that end a row.
        visual: The prompts with their images or videos; ``None`` for text.
    """

    session: Session
    texts: list[list[int]]
    sampling: Sampling | None
    streams: list[random.Random]
    eos: frozenset[int] = frozenset()
    visual: list[VisualPrompt] | None = None

    def keep(self, rows: Sequence[int]) -> None:
        """Drops finished rows, of the session too."""
        self.session.keep(rows)
        self.texts = [self.texts[row] for row in rows]
        self.streams = [self.streams[row] for row in rows]
        self.visual = None if self.visual is None else [self.visual[row] for row in rows]
