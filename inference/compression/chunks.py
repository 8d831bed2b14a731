"""Retrieval of chunks: what stands for a chunk, which are wanted, and which have to be fetched.

The functions are plain torch code without a synchronisation with the host and with shapes that do not depend on values,
except :func:`chunk_bounds`, which is called once for a prompt. So they can run inside of a captured graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from saccade.inference.compression.selection import runs


def chunk_bounds(segments: Tensor, chunk: int, cuts: tuple[int, ...] = ()) -> Tensor:
    """Divides a prompt into chunks of at most ``chunk`` tokens that do not cross a border.

    Args:
        segments: ``[N]`` int64: number of the image or frame, -1 for text; borders are where it changes.
        chunk: Most tokens of a chunk.
        cuts: Further positions at which a chunk must begin, as where pins begin and end.

    Returns:
        ``[chunks + 1]`` int64 on the CPU, ascending from 0 to N.
    """
    length = len(segments)
    place = torch.arange(length)
    run = runs(segments.cpu())
    begins = torch.zeros(length, dtype=torch.bool)
    begins[1:] = run[1:] != run[:-1]
    begins[[0, *(cut for cut in cuts if 0 < cut < length)] if length else []] = True
    start = torch.where(begins, place, 0).cummax(0).values if length else place
    return torch.cat([place[(place - start) % chunk == 0], torch.tensor([length])])


@dataclass(frozen=True)
class RowChunks:
    """The chunks of a prompt, each filled up to the same width with its last token.

    Args:
        begins: ``[chunks]`` int64: first position of each.
        places: ``[chunks, chunk]`` int64: the positions of its tokens.
        held: ``[chunks, chunk]`` bool: which of them are not there to fill it up.
    """

    begins: Tensor
    places: Tensor
    held: Tensor

    @classmethod
    def of(cls, bounds: Tensor, chunk: int) -> RowChunks:
        """From where chunks begin.

        Args:
            bounds: ``[chunks + 1]`` int64, ascending from 0 to the prompt's length.
            chunk: Most tokens of a chunk.
        """
        place = bounds[:-1, None] + torch.arange(chunk, device=bounds.device)
        end = bounds[1:, None]
        return cls(bounds[:-1], torch.minimum(place, end - 1), place < end)


def pinned_chunks(kept: Sequence[Tensor], begins: Tensor, length: int) -> Tensor:
    """Which chunks are pins of dynamic heads: they are on the device already and must not be fetched.

    Args:
        kept: For each head ``[kept]`` int64: its pins.
        begins: ``[chunks]`` int64, on the same device: first position of each chunk.
        length: Tokens of the prompt.

    Returns:
        ``[heads, chunks]`` bool.
    """
    held = torch.zeros(len(kept) * length, dtype=torch.bool, device=begins.device)
    held.index_fill_(0, torch.cat([own.to(begins.device) + head * length for head, own in enumerate(kept)]), True)
    return held.view(len(kept), length)[:, begins]


def representatives(keys: Tensor, bounds: Tensor, chunk: int, kind: Literal["mean", "minmax"] = "mean") -> Tensor:
    """What stands for the keys of each chunk.

    Args:
        keys: ``[..., n, D]``.
        bounds: ``[chunks + 1]`` int64 on the same device, ascending from 0 to n.
        chunk: Most tokens of a chunk.
        kind: ``mean`` is the mean key; ``minmax`` the smallest and the largest value in each dimension (Quest, arXiv
            2406.10774), from which an upper bound of every product follows.

    Returns:
        ``[..., chunks, D]``, or ``[..., 2, chunks, D]`` with the smallest first, in the type of the keys.
    """
    own = RowChunks.of(bounds, chunk)
    return summarised(keys[..., own.places, :], own.held, kind)


def summarised(chunks: Tensor, held: Tensor, kind: Literal["mean", "minmax"]) -> Tensor:
    """The representatives of chunks whose keys lie side by side, as :func:`representatives` gives them.

    Args:
        chunks: ``[..., chunks, chunk, D]``; a short one is filled up with its last key (:class:`RowChunks`).
        held: ``[chunks, chunk]`` bool.
        kind: See :func:`representatives`.
    """
    if kind == "minmax":
        return torch.stack([chunks.amin(-2), chunks.amax(-2)], dim=-3)
    filled = chunks.masked_fill(~held[..., None], 0)
    return (filled.sum(-2, dtype=torch.float) / held.sum(-1, keepdim=True)).to(chunks.dtype)


def chunk_scores(query: Tensor, representative: Tensor) -> Tensor:
    """How much queries want each chunk: the largest product over the queries of a KV head.

    With ``minmax`` representatives it is at least the product of each query with each key of the chunk.

    Args:
        query: ``[..., G, D]``: the query heads of a KV head; those of several tokens may lie side by side.
        representative: ``[..., chunks, D]`` (mean) or ``[..., 2, chunks, D]`` (minmax).

    Returns:
        ``[..., chunks]``.
    """
    if representative.ndim == query.ndim:
        return (query @ representative.transpose(-1, -2)).amax(-2)
    low, high = representative.transpose(-1, -2).unbind(-3)
    # a dimension's largest product is with the largest value where the query is positive, else with the smallest
    return (query.clamp(min=0) @ high + query.clamp(max=0) @ low).amax(-2)


def top_chunks(scores: Tensor, count: int, blocked: Tensor | None = None) -> Tensor:
    """The chunks with the highest scores.

    Args:
        scores: ``[..., chunks]``.
        count: How many, at most those that are not blocked.
        blocked: ``[..., chunks]`` bool: chunks that are not to be taken, as pins.

    Returns:
        ``[..., count]`` int64, the best first.
    """
    if blocked is not None:
        scores = scores.masked_fill(blocked, -torch.inf)
    return scores.topk(count, dim=-1).indices


def replace_slots(slots: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Gives wanted chunks a slot each; those that have one keep it, so that only new ones are fetched.

    A new chunk goes into a slot whose chunk is not wanted: an empty one first, then the first.

    Args:
        slots: ``[..., k]`` int64: the chunk in each slot, -1 for none.
        wanted: ``[..., w]`` int64, ``w <= k``: chunks, each once; -1 for none.

    Returns:
        ``[..., k]`` int64, the new chunk of each slot, and ``[..., k]`` bool, slots whose chunk has to be fetched.
    """
    k = slots.shape[-1]
    same = (slots[..., :, None] == wanted[..., None, :]) & (wanted >= 0)[..., None, :]
    missing = (wanted >= 0) & ~same.any(-2)
    order = (slots < 0).long().masked_fill(same.any(-1), -1)
    victims = order.sort(dim=-1, descending=True, stable=True).indices
    turn = (missing.cumsum(-1) - 1).clamp(min=0)
    target = victims.gather(-1, turn).masked_fill(~missing, k)  # one more column takes what is not missing
    padded = torch.cat([slots, slots[..., :1]], dim=-1)
    new = padded.scatter(-1, target, wanted)[..., :k]
    fetch = torch.zeros_like(padded, dtype=torch.bool).scatter_(-1, target, True)[..., :k]
    return new, fetch
