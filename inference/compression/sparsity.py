"""How sparse the attention of each KV head is: two readings of HybridKV's score."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from saccade.common.decimals import as_written
from saccade.inference.compression.observation import Observation


def threshold_sparsity(seen: Observation, budget: float) -> Tensor:
    """One minus the mean share of alive keys, as in VL-Cache (arXiv 2410.23317): the default.

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


def _units(layers: list[Tensor]) -> Tensor:
    """The values of all layers, which may be on different devices, in one vector; rounding may leave [0, 1]."""
    return torch.cat([layer.float().cpu() for layer in layers]).clamp(0, 1)


SPARSITIES: dict[str, Callable[[Observation, float], Tensor]] = {
    "threshold": threshold_sparsity,
    "concentration": concentration,
}
"""The readings by the names that ``HybridKV(sparsity=...)`` takes."""
