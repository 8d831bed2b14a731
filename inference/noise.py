"""Noise of sampling that a counter makes: the same for every decoder, batch and device.

The largest of ``log p + g`` over a vocabulary, with independent Gumbel numbers ``g``, is a draw from ``p`` (the
Gumbel-max trick). Here ``g`` is a function of seed, row, position and token, so two models that share it choose the
same token wherever they can, and a text does not depend on how it was decoded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.common.counters import STEP, mixed, shifted

_BITS = 52  # with one more, the largest uniform number would be rounded to 1, whose noise is minus infinity


def reference_gumbel_noise(keys: Tensor, positions: Tensor, vocabulary: int) -> Tensor:
    """Standard Gumbel numbers of every token of a vocabulary.

    The uniform number below them is small where the Gumbel number is large, so that the upper tail, which decides which
    token is the largest, is as exact as float64 allows: numbers go from -3.7 to 36.8.

    Args:
        keys: ``[rows]`` long, the key of each row's noise (:meth:`saccade.inference.Sampling.keys`).
        positions: ``[rows, places]`` long, positions in the rows' texts.
        vocabulary: Number of token ids.

    Returns:
        ``[rows, places, vocabulary]`` float64, with the same bits on every device up to rounding of the logarithms.
    """
    places = mixed(keys[:, None] + positions * STEP)
    tokens = torch.arange(1, vocabulary + 1, device=keys.device)
    bits = shifted(mixed(places[..., None] + tokens * STEP), 64 - _BITS)
    uniform = bits.double().add_(0.5).mul_(2.0**-_BITS)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def gumbel_noise(keys: Tensor, positions: Tensor, vocabulary: int) -> Tensor:
    """Standard Gumbel numbers of every token of a vocabulary, with the Triton kernel on CUDA, otherwise the reference.

    Args:
        keys: ``[rows]`` long; this and the others as in :func:`reference_gumbel_noise`.
        positions: ``[rows, places]`` long.
        vocabulary: Number of token ids.

    Returns:
        ``[rows, places, vocabulary]`` float64.
    """
    if keys.device.type == "cuda":
        from saccade.inference.engine.kernels.noise import triton_gumbel_noise

        return triton_gumbel_noise(keys, positions, vocabulary)
    return reference_gumbel_noise(keys, positions, vocabulary)
