"""The Triton kernel that makes the noise of sampling.

The kernel is ours; its reference is :func:`saccade.inference.noise.reference_gumbel_noise`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saccade.common import counters
from saccade.inference.engine.kernels.launch import early, follow

_STEP = tl.constexpr(counters.STEP % 2**64)
_FIRST = tl.constexpr(counters.FIRST % 2**64)
_SECOND = tl.constexpr(counters.SECOND % 2**64)
_BLOCK = 1024


@triton.jit
def _mixed(numbers):
    numbers = (numbers ^ (numbers >> 30)) * _FIRST
    numbers = (numbers ^ (numbers >> 27)) * _SECOND
    return numbers ^ (numbers >> 31)


@triton.jit
def _gumbel(seeds, positions, noise, nodes, vocabulary, LANES: tl.constexpr, EARLY: tl.constexpr):
    follow(EARLY)
    place = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * LANES + tl.arange(0, LANES)
    lanes = tl.zeros([LANES], tl.int64)  # the same key and position for every token
    key = tl.load(seeds + place // nodes + lanes).to(tl.uint64)
    position = tl.load(positions + place + lanes).to(tl.uint64)
    start = _mixed(key + position * _STEP)
    bits = _mixed(start + (token + 1).to(tl.uint64) * _STEP) >> 12
    uniform = (bits.to(tl.float64) + 0.5) * 2.220446049250313e-16  # 2 ** -52
    rest = 1.0 - uniform
    lost = tl.where(rest == 1.0, 1.0, 1.0 - rest)  # what the subtraction has kept of the uniform number
    waiting = tl.where(rest == 1.0, uniform, -tl.log(rest) * (uniform / lost))
    tl.store(noise + place * vocabulary + token, -tl.log(waiting), mask=token < vocabulary)


def triton_gumbel_noise(keys: Tensor, positions: Tensor, vocabulary: int) -> Tensor:
    """The Triton form of :func:`saccade.inference.noise.reference_gumbel_noise`, with the same arguments."""
    rows, nodes = positions.shape
    noise = torch.empty(rows, nodes, vocabulary, dtype=torch.float64, device=keys.device)
    grid = (rows * nodes, triton.cdiv(vocabulary, _BLOCK))
    given = (keys.contiguous(), positions.contiguous(), noise, nodes, vocabulary)
    _gumbel[grid](*given, LANES=_BLOCK, num_warps=4, **early(keys.device))
    return noise
