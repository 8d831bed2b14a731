"""How the last tokens of a prompt attend to all of it: what a compressor decides from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_PIECE = 1 << 23  # attention weights at once: 32 MiB in float32, and about three tensors of this size at a time


@dataclass(frozen=True)
class Observation:
    """What is seen of one prompt during its prefill.

    A unit is one KV head of one layer. Query heads that share a KV head are never told apart.

    Args:
        mean: For each layer ``[kv_heads, N]`` float32: attention of the observed rows on each key, the mean over the
            rows and over the query heads of a KV head. ``[kv_heads, 0]`` where nothing was observed.
        alive: For each layer ``[kv_heads]`` float32: share of the keys that a row sees whose attention is at least 1 %
            (:attr:`saccade.inference.compression.compressor.CacheCompressor.alive_share`) of the row's largest, the
            mean over the same rows and heads.
        visual: ``[N]`` bool: visual tokens.
        segments: ``[N]`` int64: number of the image or frame of a visual token, -1 for text.
        rows: First observed query position, and one past the last.
        late: For each layer ``[kv_heads, N]`` float32: as ``mean``, of the last quarter of the rows alone
            (:func:`late_rows`). Empty where nothing was observed.
    """

    mean: list[Tensor]
    alive: list[Tensor]
    visual: Tensor
    segments: Tensor
    rows: tuple[int, int]
    late: list[Tensor] = field(default_factory=list)

    @classmethod
    def unobserved(
        cls, heads: Sequence[int], visual: Tensor, segments: Tensor, device: torch.device | str | None = None
    ) -> Observation:
        """The observation for compressors with ``window = 0``: it knows the sizes only.

        Args:
            heads: KV heads of each layer.
            visual: As above.
            segments: As above.
            device: Where the keys are; that of ``visual`` by default.
        """
        device = visual.device if device is None else device
        mean = [torch.zeros(count, 0, device=device) for count in heads]
        alive = [torch.zeros(count, device=device) for count in heads]
        return cls(mean, alive, visual, segments, (len(visual), len(visual)))

    @property
    def length(self) -> int:
        """Tokens of the prompt, N."""
        return len(self.visual)

    @property
    def heads(self) -> list[int]:
        """KV heads of each layer."""
        return [len(scores) for scores in self.mean]

    @property
    def units(self) -> int:
        """KV heads of all layers."""
        return sum(self.heads)

    def by_layer(self, values: Sequence[T]) -> list[list[T]]:
        """Values of all units, split by layer."""
        ends = torch.tensor(self.heads).cumsum(0).tolist()
        return [list(values[end - count : end]) for count, end in zip(self.heads, ends, strict=True)]


def observed_rows(length: int, visual: Tensor, window: int) -> tuple[int, int]:
    """Chooses the query positions that are observed: the question behind the last visual token.

    These are the last ``window`` tokens behind the last visual token, or as many as there are. If the prompt ends with
    a visual token, they are the last tokens of the last run of text. Without visual tokens, and without text, they are
    the last tokens of the prompt.

    Args:
        length: Tokens of the prompt.
        visual: ``[length]`` bool.
        window: Most rows; 0 observes none.

    Returns:
        The first position, and one past the last; all positions between them are of one kind.
    """
    places = visual.nonzero()[:, 0].tolist() if bool(visual.any()) else []
    end, start = length, 0
    if places and len(places) < length:
        if places[-1] == length - 1:
            end = int((~visual).nonzero()[-1, 0]) + 1
        start = max((place + 1 for place in places if place < end), default=0)
    return max(start, end - window), end


def late_rows(rows: tuple[int, int]) -> int:
    """The first of the last quarter of observed rows, which show what the others did not.

    Args:
        rows: First observed position, and one past the last.
    """
    first, end = rows
    return end - max(1, (end - first) // 4)


def attention_scores(
    query: Tensor, keys: Tensor, first: int, scaling: float, alive_share: float = 0.01, late: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes how some rows attend to all keys: exact causal softmax in float32.

    Rows are worked on in pieces, so that the weights of all rows, heads and keys are never held at once.

    Args:
        query: ``[heads, rows, D]`` of the positions ``first .. first + rows - 1``, rotated by their positions.
        keys: ``[kv_heads, n, D]``, rotated; a row sees those up to its own position.
        first: Position of the first row.
        scaling: Factor of the logits.
        alive_share: A key is alive if it has at least this share of the row's largest weight.
        late: Last rows whose mean weights are wanted apart too, at most all.

    Returns:
        ``[kv_heads, n]`` float32: mean weight of each key over the rows and the query heads of a KV head,
        ``[kv_heads]`` float32: mean share of alive keys among those that a row sees, and ``[kv_heads, n]`` float32: the
        mean weight over the ``late`` last rows, ``[kv_heads, 0]`` without such rows.

    Raises:
        ValueError: Query heads that do not divide into groups, or no row.
    """
    heads, rows, width = query.shape
    kv_heads, n, _ = keys.shape
    if heads % kv_heads or not rows:
        raise ValueError(
            f"query must have rows and a multiple of {kv_heads} heads, got shape {tuple(query.shape)}: pass all query "
            "heads of the layer."
        )
    group = heads // kv_heads
    grouped = query.view(kv_heads, group, rows, width)
    position = torch.arange(first, first + rows, device=query.device)
    place = torch.arange(n, device=query.device)
    mean = torch.zeros(kv_heads, n, device=query.device)
    alive = torch.zeros(kv_heads, device=query.device)
    last = torch.zeros(kv_heads, n if late else 0, device=query.device)
    many_heads = max(1, min(kv_heads, _PIECE // (group * rows * n)))
    many_rows = max(1, min(rows, _PIECE // (group * n)))
    for head in range(0, kv_heads, many_heads):
        some = slice(head, head + many_heads)
        transposed = keys[some].float().transpose(1, 2)
        for row in range(0, rows, many_rows):
            here = position[row : row + many_rows]
            asked = grouped[some, :, row : row + many_rows].float()
            logits = (asked.flatten(1, 2) @ transposed).mul_(scaling).unflatten(1, asked.shape[1:3])
            weights = logits.masked_fill_(place > here[:, None], -torch.inf).softmax(-1)
            mean[some] += weights.sum((1, 2))
            if late:
                last[some] += weights[:, :, max(0, rows - late - row) :].sum((1, 2))
            living = (weights >= alive_share * weights.amax(-1, keepdim=True)).sum(-1)
            alive[some] += (living / (here + 1)).sum((1, 2))
    return mean / (group * rows), alive / (group * rows), last / (group * max(1, late))
