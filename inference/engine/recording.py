"""What a session notes of a model beside its logits: attention on visual tokens, and hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

QUERIES_AT_A_TIME = 64  # rows of attention that are held at once: 64 x 28 heads x 16k keys are 115 MB
_ACTIVE: ContextVar[AttentionRecorder | None] = ContextVar("saccade_visual_attention", default=None)


@dataclass(frozen=True)
class Recording:
    """What a session shall note.

    Args:
        attention: How much the text behind the visual tokens attends to each of them, while prompts are read.
        layer: Decoder layer whose output is noted at every forward, counted from 0, negative from the end (before the
            final norm), or ``"norm"``, the last one's behind the final norm; ``None`` notes none.
    """

    attention: bool = False
    layer: int | str | None = None


class AttentionRecorder:
    """Mean attention on each visual token, of all heads and layers and of all queries behind the last one.

    The score of SpecVLM's verifier guidance (arXiv 2508.16201), added up in float32 while the prompt is read once: the
    queries of the text tail are few, and no map of the whole prompt is ever there.

    Args:
        visual: For every row ``[n]`` the places of its visual tokens, ascending.
        lengths: Of the prompts.
    """

    def __init__(self, visual: Sequence[Tensor], lengths: Sequence[int]) -> None:
        self.visual = list(visual)
        self.lengths = list(lengths)
        self.tails = [
            int(places[-1]) + 1 if len(places) else length for places, length in zip(visual, lengths, strict=True)
        ]
        self.sums = [torch.zeros(len(places), dtype=torch.float32, device=places.device) for places in visual]
        self.counts = [0] * len(self.visual)
        self.start = 0

    @contextmanager
    def recording(self, start: int) -> Iterator[None]:
        """Within this context every attention of the model's layers is added.

        Args:
            start: Place in the prompts of the forward's first token.
        """
        self.start = start
        token = _ACTIVE.set(self)
        try:
            yield
        finally:
            _ACTIVE.reset(token)

    def add(self, query: Tensor, key: Tensor, scaling: float | None) -> None:
        """Adds one layer's attention.

        Args:
            query: ``[batch, heads, tokens, head_dim]`` with positions turned in.
            key: ``[batch, kv_heads, slots, head_dim]`` of all tokens so far.
            scaling: Factor on the scores; ``None`` is ``head_dim ** -0.5``.
        """
        _, heads, tokens, head_dim = query.shape
        kv_heads = key.shape[1]
        scale = head_dim**-0.5 if scaling is None else scaling
        for row, places in enumerate(self.visual):
            first, end = max(self.tails[row], self.start), min(self.lengths[row], self.start + tokens)
            for at in range(first, end, QUERIES_AT_A_TIME):
                until = min(end, at + QUERIES_AT_A_TIME)
                asked = query[row, :, at - self.start : until - self.start].float()
                asked = asked.reshape(kv_heads, heads // kv_heads, until - at, head_dim)
                scores = torch.einsum("kgqd,ksd->kgqs", asked, key[row, :, :until].float()) * scale
                order = torch.arange(at, until, device=key.device)[:, None]
                hidden = torch.arange(until, device=key.device) > order
                weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
                self.sums[row] += weights[..., places].sum((0, 1, 2))
                self.counts[row] += heads * (until - at)

    def scores(self) -> list[Tensor]:
        """``[n]`` float32 for every row; each sums to at most 1."""
        return [total / max(1, count) for total, count in zip(self.sums, self.counts, strict=True)]


def active_recorder() -> AttentionRecorder | None:
    """Who wants to see the attention that is computed now."""
    return _ACTIVE.get()


@dataclass
class Recorded:
    """What a session has noted; one entry for each row.

    Args:
        scores: ``[n]`` attention on each visual token of a row's prompt.
        visual_states: ``[n, hidden]`` states of its visual tokens.
        states: ``[batch, nodes, hidden]`` of the last forward.
    """

    scores: list[Tensor] = field(default_factory=list)
    visual_states: list[Tensor] = field(default_factory=list)
    states: Tensor | None = None

    def keep(self, rows: Sequence[int]) -> None:
        """Drops finished rows."""
        if self.scores:
            self.scores = [self.scores[row] for row in rows]
        if self.visual_states:
            self.visual_states = [self.visual_states[row] for row in rows]
        self.states = None
