"""Which positions a head keeps: by priority class, then by score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.common.checks import check_choice, check_count
from saccade.inference.compression.observation import Observation

PoolKind = Literal["mean", "max"]


def check_pool(width: int, kind: str = "mean") -> None:
    """Refuses a pooling whose width is no odd whole number, or of an unknown kind.

    Raises:
        ValueError: It is one of these.
    """
    check_count("pool", width)
    if width % 2 == 0:
        raise ValueError(f"pool must be odd, got {width}: add or subtract 1.")
    check_choice("pool_kind", kind, get_args(PoolKind))


def runs(segments: Tensor, last: int = 0) -> Tensor:
    """Numbers the runs of equal neighbours: two texts with an image between them are two runs.

    Args:
        segments: ``[N]``.
        last: Last tokens that begin a new run in any case, as those of a window that is kept whole.

    Returns:
        ``[N]`` int64, from 0.
    """
    changed = segments[1:] != segments[:-1]
    if 0 < last < len(segments):
        changed[-last] = True
    return F.pad(changed.long().cumsum(0), (min(1, len(segments)), 0))


def pooled(scores: Tensor, run: Tensor, width: int, kind: PoolKind = "mean") -> Tensor:
    """Pools scores over neighbours of the same run, so that nothing leaks from one image into another.

    Args:
        scores: ``[heads, N]``, not negative.
        run: ``[N]``, from :func:`runs`.
        width: Positions of the window, odd; at the ends of a run only those inside of it count.
        kind: Mean or largest score of the window.

    Returns:
        ``[heads, N]``.
    """
    total, count = scores.clone(), torch.ones_like(run)
    for step in range(1, width // 2 + 1):
        same = run[step:] == run[:-step]
        left, right = scores[:, :-step] * same, scores[:, step:] * same
        if kind == "max":
            total[:, step:] = total[:, step:].maximum(left)
            total[:, :-step] = total[:, :-step].maximum(right)
        else:
            total[:, step:] += left
            total[:, :-step] += right
            count[step:] += same
            count[:-step] += same
    return total if kind == "max" else total / count


def ends(length: int, first: int, last: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """Masks ``[length]`` of the first tokens (sinks) and of the last tokens (the local window)."""
    place = torch.arange(length, device=device)
    return place < first, place >= length - last


def text_prior(visual: Tensor, sinks: int, recent: int) -> Tensor:
    """Priority classes in which text comes before visual tokens: sinks 4, local window 3, other text 2, visual 0.

    A prompt without visual tokens has no prior: all that is neither a sink nor recent is of one class.

    Args:
        visual: ``[N]`` bool.
        sinks: First tokens that are kept before all others.
        recent: Last tokens that are kept next.

    Returns:
        ``[N]`` int64.
    """
    front, back = ends(len(visual), sinks, recent, visual.device)
    classes = (~visual).long() * 2
    return classes.masked_fill(back, 3).masked_fill(front, 4)


def visual_sinks(scores: Tensor, segments: Tensor) -> Tensor:
    """The visual token of each image or frame that has the highest score; of equal ones the first.

    Args:
        scores: ``[heads, N]``.
        segments: ``[N]`` int64, -1 for text.

    Returns:
        ``[heads, N]`` bool.
    """
    count = int(segments.max()) + 1 if len(segments) else 0
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    group = torch.where(segments < 0, count, segments).expand(len(scores), -1)  # text is one more group
    top = scores.new_full((len(scores), count + 1), -1.0).scatter_reduce(1, group, scores, "amax")
    best = (scores == top.gather(1, group)) & (segments >= 0)
    # of equal scores the first: the smallest position of each group
    place = torch.where(best, torch.arange(scores.shape[1], device=scores.device), scores.shape[1])
    first = place.new_full(top.shape, scores.shape[1]).scatter_reduce(1, group, place, "amin")
    return best & (place == first.gather(1, group))


def best_positions(scores: Tensor, classes: Tensor, caps: Sequence[int]) -> list[Tensor]:
    """The positions that each head keeps: the highest class first, then the highest score, then the earliest.

    Args:
        scores: ``[heads, N]`` float32, not negative.
        classes: ``[N]`` or ``[heads, N]`` int64.
        caps: How many each head keeps, at most N.

    Returns:
        For each head ``[cap]`` int64, ascending, on the device of the scores.
    """
    # one stable sort for class and score: the bits of floats that are not negative are ordered as the floats are
    order = ((classes << 32) + (scores + 0.0).view(torch.int32)).sort(dim=-1, descending=True, stable=True).indices
    return kept_by_order(order, caps)


def kept_by_order(order: Tensor, caps: Sequence[int]) -> list[Tensor]:
    """The first positions of an order of each head, ascending.

    Args:
        order: ``[heads, N]`` int64: all positions, those to keep first.
        caps: How many each head keeps.

    Returns:
        For each head ``[cap]`` int64 on the device of the order.
    """
    kept = torch.arange(order.shape[1], device=order.device) < torch.tensor(caps, device=order.device)[:, None]
    mask = torch.zeros_like(kept).scatter_(1, order, kept)
    return list(mask.nonzero()[:, 1].split(list(caps)))


def window_and_best(
    seen: Observation, caps: Sequence[int], window: int, pool: int, kind: PoolKind = "mean"
) -> list[list[Tensor]]:
    """The rule of SnapKV: the last tokens, and those of the others with the highest pooled scores.

    Args:
        seen: What is seen of the prompt.
        caps: Entries of each head, layer after layer; of fewer than ``window`` the window itself is cut by score.
        window: Last tokens that are kept.
        pool: Width of the pooling.
        kind: Kind of the pooling.

    Returns:
        For each layer and head the kept positions.
    """
    run = runs(seen.segments, window)
    kept = []
    for scores, layer_caps in zip(seen.mean, seen.by_layer(caps), strict=True):
        _, back = ends(seen.length, 0, window, scores.device)
        kept.append(best_positions(pooled(scores, run.to(scores.device), pool, kind), back.long(), layer_caps))
    return kept
