"""Retrieval of chunks: what stands for a chunk, which are wanted, and which have to be fetched.

The functions are plain torch code without a synchronisation with the host and with shapes that do not depend on values,
except :func:`chunk_bounds`, which is called once for a prompt. So they can run inside of a captured graph.
"""

from __future__ import annotations

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


def pinned_chunks(kept: Tensor, bounds: Tensor) -> Tensor:
    """Which chunks are pins of a dynamic head: they are on the device already and must not be fetched.

    Args:
        kept: ``[kept]`` int64, ascending: the head's pins.
        bounds: ``[chunks + 1]`` int64.

    Returns:
        ``[chunks]`` bool on the device of ``kept``.
    """
    held = torch.zeros(int(bounds[-1]), dtype=torch.bool, device=kept.device)
    held[kept] = True
    return held[bounds[:-1].to(kept.device)]


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
    place = bounds[:-1, None] + torch.arange(chunk, device=bounds.device)
    # a short chunk is filled up with its last key, so that every chunk is as long
    last = bounds[1:, None] - 1
    filled = keys[..., torch.minimum(place, last), :]
    if kind == "minmax":
        return torch.stack([filled.amin(-2), filled.amax(-2)], dim=-3)
    filled = filled.masked_fill_((place > last)[..., None], 0)
    return (filled.sum(-2, dtype=torch.float) / bounds.diff()[:, None]).to(keys.dtype)


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
