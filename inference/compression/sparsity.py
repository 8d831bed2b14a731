"""How sparse the attention of each KV head is: three readings of HybridKV's score."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from saccade.common.decimals import as_written
from saccade.inference.compression.observation import Observation, late_rows
from saccade.inference.compression.selection import pooled, runs

_NEIGHBOURS = 5  # width of the pooling
_LATEST = 32  # keys before the observed rows that count as kept


def threshold_sparsity(seen: Observation, budget: float) -> Tensor:
    """One minus the mean share of alive keys, as in VL-Cache (arXiv 2410.23317).

    Args:
        seen: What is seen of the prompt.
        budget: Not used.

    Returns:
        ``[units]`` float32 on the CPU, in [0, 1].
    """
    return _units([1 - alive for alive in seen.alive])


def concentration(seen: Observation, budget: float) -> Tensor:
    """Share of the attention that the best ``ceil(budget * N)`` keys have; what pruning loses is at most the rest.

    Args:
        seen: What is seen of the prompt.
        budget: Share of the keys.

    Returns:
        ``[units]`` float32 on the CPU, in [0, 1].
    """
    count = math.ceil(as_written(budget) * seen.length)
    return _units([mean.topk(count, dim=-1).values.sum(-1) for mean in seen.mean])


def held_out(seen: Observation, budget: float) -> Tensor:
    """Share of the last rows' attention that the other rows would have kept: what pruning will do, tried beforehand.

    The best ``ceil(budget * N)`` keys by the other rows' pooled attention count as kept, and the latest ones: the
    observed rows and some keys before them, as a cache keeps its recent tokens. A head that moves on as the text does
    has a low share, however sparse its attention is in each row.

    Args:
        seen: What is seen of the prompt, with :attr:`Observation.late`.
        budget: Share of the keys.

    Returns:
        ``[units]`` float32 on the CPU, in [0, 1].

    Raises:
        ValueError: The last rows were not observed apart.
    """
    if len(seen.late) != len(seen.mean):
        raise ValueError("seen must have the attention of the last rows, got none: observe them (late).")
    first, end = seen.rows
    border = late_rows(seen.rows)
    count = min(seen.length, math.ceil(as_written(budget) * seen.length))
    # all layers at once: each operation waits longer to start than it takes
    mean, late = (torch.cat([part.to(layers[0].device) for part in layers]) for layers in (seen.mean, seen.late))
    other = mean
    if border > first:
        other = ((mean * (end - first) - late * (end - border)) / (border - first)).clamp(min=0)
    ranked = pooled(other, runs(seen.segments).to(mean.device), _NEIGHBOURS)
    ranked[:, max(0, first - _LATEST) :] = torch.inf
    kept = ranked.topk(min(seen.length, max(count, seen.length - first + _LATEST)), dim=-1).indices
    return _units([late.gather(1, kept).sum(-1)])


def _units(layers: list[Tensor]) -> Tensor:
    """The values of all layers, which may be on different devices, in one vector; rounding may leave [0, 1]."""
    return torch.cat([layer.float().cpu() for layer in layers]).clamp(0, 1)


SPARSITIES: dict[str, Callable[[Observation, float], Tensor]] = {
    "held_out": held_out,
    "threshold": threshold_sparsity,
    "concentration": concentration,
}
"""The readings by the names that ``HybridKV(sparsity=...)`` takes."""
