"""What a session records besides logits: attention on visual tokens, and hidden states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

QUERIES_AT_A_TIME = 64  # limits memory: attention of 64 queries x 28 heads x 16k keys takes 115 MB
_ACTIVE: ContextVar[tuple[Recorder, ...]] = ContextVar("saccade_recorders", default=())


@dataclass(frozen=True)
class Recording:
    """What a session records.

    Args:
        attention: Whether to record, during the prefill, how much the text after the visual tokens attends to each of
            them.
        layer: Decoder layer whose output is recorded at every forward, counted from 0, or from the end where negative;
            ``"norm"`` records the output of the final norm, ``None`` nothing.
    """

    attention: bool = False
    layer: int | str | None = None


class Recorder(ABC):
    """Sees the queries and keys of every layer while prompts are read."""

    start: int = 0
    """Position in the prompts of the first token of the running forward."""

    @contextmanager
    def recording(self, start: int) -> Iterator[None]:
        """Context in which this recorder sees every layer.

        Args:
            start: Position in the prompts of the first token of the forward.
        """
        self.start = start
        token = _ACTIVE.set((*_ACTIVE.get(), self))
        try:
            yield
        finally:
            _ACTIVE.reset(token)

    @abstractmethod
    def add(self, query: Tensor, key: Tensor, scaling: float | None) -> None:
        """Takes one layer.

        Args:
            query: ``[batch, heads, tokens, head_dim]``, with rotary embeddings applied.
            key: ``[batch, kv_heads, slots, head_dim]`` of all tokens so far.
            scaling: Factor of the scores; ``None`` is ``head_dim ** -0.5``.
        """


class AttentionRecorder(Recorder):
    """Computes the mean attention on each visual token, over all heads, layers and text tokens after the last of them.

    This is the score of SpecVLM's verifier guidance (arXiv 2508.16201). It is accumulated in float32 during the
    prefill, from the queries of the final text only, so the attention of the whole prompt is never in memory.

    Args:
        visual: For every row the positions ``[n]`` of its visual tokens, ascending.
        lengths: Length of every prompt.
    """

    def __init__(self, visual: Sequence[Tensor], lengths: Sequence[int]) -> None:
        self.visual = list(visual)
        self.lengths = list(lengths)
        self.tails = [
            int(places[-1]) + 1 if len(places) else length for places, length in zip(visual, lengths, strict=True)
        ]
        self.sums = [torch.zeros(len(places), dtype=torch.float32, device=places.device) for places in visual]
        self.counts = [0] * len(self.visual)

    def add(self, query: Tensor, key: Tensor, scaling: float | None) -> None:
        """Adds the attention of one layer.

        Args:
            query: ``[batch, heads, tokens, head_dim]``, with rotary embeddings applied.
            key: ``[batch, kv_heads, slots, head_dim]`` of all tokens so far.
            scaling: Factor of the scores; ``None`` is ``head_dim ** -0.5``.
        """
        _, heads, tokens, head_dim = query.shape
        kv_heads = key.shape[1]
        scale = head_dim**-0.5 if scaling is None else scaling
        for row, places in enumerate(self.visual):
            first, end = max(self.tails[row], self.start), min(self.lengths[row], self.start + tokens)
            for at in range(first, end, QUERIES_AT_A_TIME):
                until = min(end, at + QUERIES_AT_A_TIME)
                queries = query[row, :, at - self.start : until - self.start].float()
                queries = queries.reshape(kv_heads, heads // kv_heads, until - at, head_dim)
                scores = torch.einsum("kgqd,ksd->kgqs", queries, key[row, :, :until].float()) * scale
                order = torch.arange(at, until, device=key.device)[:, None]
                future = torch.arange(until, device=key.device) > order
                weights = scores.masked_fill(future, float("-inf")).softmax(-1)
                self.sums[row] += weights[..., places].sum((0, 1, 2))
                self.counts[row] += heads * (until - at)

    def scores(self) -> list[Tensor]:
        """Mean attention ``[n]`` float32 of every row; each sums to at most 1."""
        return [total / max(1, count) for total, count in zip(self.sums, self.counts, strict=True)]


def active_recorders() -> tuple[Recorder, ...]:
    """The recorders that see the running forward."""
    return _ACTIVE.get()


@dataclass
class Recorded:
    """What a session has recorded; lists have one entry per row.

    Args:
        scores: Attention ``[n]`` on each visual token of the prompt.
        visual_states: Hidden states ``[n, hidden]`` of the visual tokens.
        states: Hidden states ``[batch, nodes, hidden]`` of the last forward.
    """

    scores: list[Tensor] = field(default_factory=list)
    visual_states: list[Tensor] = field(default_factory=list)
    states: Tensor | None = None

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps the given rows and drops the others."""
        if self.scores:
            self.scores = [self.scores[row] for row in rows]
        if self.visual_states:
            self.visual_states = [self.visual_states[row] for row in rows]
        self.states = None
