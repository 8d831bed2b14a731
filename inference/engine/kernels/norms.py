"""Triton kernels that normalize the residual stream, and that add the parts of a projection to it first.

The kernels are ours; their references are in :mod:`saccade.inference.engine.fused.reference`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saccade.inference.engine.fused.reference import Norm
from saccade.inference.engine.kernels.launch import early, follow


@triton.jit
def _normalize(inputs, norm, out, depth, eps, input_row, SHIFT: tl.constexpr, LANES: tl.constexpr, EARLY: tl.constexpr):
    follow(EARLY)
    row = tl.program_id(0)
    lane = tl.arange(0, LANES)
    source = inputs + row.to(tl.int64) * input_row
    square = tl.zeros([LANES], tl.float32)
    for at in range(0, depth, LANES):
        x = tl.load(source + at + lane, mask=at + lane < depth, other=0.0).to(tl.float32)
        square += x * x
    shrink = tl.rsqrt(tl.sum(square, 0) / depth + eps)
    for at in range(0, depth, LANES):
        inside = at + lane < depth
        x = tl.load(source + at + lane, mask=inside, other=0.0).to(tl.float32)
        x = x * shrink * (tl.load(norm + at + lane, mask=inside, other=0.0).to(tl.float32) + SHIFT)
        tl.store(out + row.to(tl.int64) * depth + at + lane, x.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _close(
    sums, bias, residual, norm, after, hidden, normalized, rows, depth, eps, after_eps, factor,
    BIAS: tl.constexpr, SHIFT: tl.constexpr, AFTER: tl.constexpr, AFTER_SHIFT: tl.constexpr, SPLITS: tl.constexpr,
    LANES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    row = tl.program_id(0)
    lane = tl.arange(0, LANES)
    inside = lane < depth
    total = tl.zeros([LANES], tl.float32)
    if BIAS:
        total += tl.load(bias + lane, mask=inside, other=0.0).to(tl.float32)
    for split in range(SPLITS):
        total += tl.load(sums + (split * rows + row) * depth + lane, mask=inside, other=0.0)
    if AFTER:
        weight = tl.load(after + lane, mask=inside, other=0.0).to(tl.float32) + AFTER_SHIFT
        total = total * tl.rsqrt(tl.sum(total * total, 0) / depth + after_eps) * weight
    total = total * factor + tl.load(residual + row * depth + lane, mask=inside, other=0.0).to(tl.float32)
    kept = total.to(hidden.dtype.element_ty)
    tl.store(hidden + row * depth + lane, kept, mask=inside)
    wide = kept.to(tl.float32)  # the norm is of the rounded sum, which the next layers read
    scale = tl.load(norm + lane, mask=inside, other=0.0).to(tl.float32) + SHIFT
    ready = wide * tl.rsqrt(tl.sum(wide * wide, 0) / depth + eps) * scale
    tl.store(normalized + row * depth + lane, ready.to(normalized.dtype.element_ty), mask=inside)


def triton_norm(inputs: Tensor, norm: Norm) -> Tensor:
    """RMSNorm of rows; see :func:`saccade.inference.engine.fused.reference.rms_norm`.

    Args:
        inputs: ``[rows, depth]``, last dimension contiguous.
        norm: Weights ``[depth]``, epsilon and shift.

    Returns:
        ``[rows, depth]``.
    """
    rows, depth = inputs.shape
    out = torch.empty(rows, depth, dtype=inputs.dtype, device=inputs.device)
    lanes = min(4096, triton.next_power_of_2(depth))
    _normalize[(rows,)](
        inputs, norm.weight, out, depth, norm.eps, inputs.stride(0), SHIFT=norm.shift, LANES=lanes, num_warps=8,
        **early(inputs.device),
    )  # fmt: skip
    return out


def triton_close(
    sums: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    norm: Norm,
    after: Norm | None = None,
    factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Adds parts of a projection to the residual stream and normalizes the sum.

    Args:
        sums: ``[parts, rows, outputs]`` in float32, contiguous.
        bias: ``[outputs]`` or ``None``.
        residual: ``[rows, outputs]``, contiguous, at most 16384 outputs.
        norm: Of the sum.
        after: Norm of the projection itself, before it is added; ``None`` for none.
        factor: Of what is added.

    Returns:
        The residual stream and its normalized form, ``[rows, outputs]`` each.
    """
    parts, rows, outputs = sums.shape
    hidden, normalized = torch.empty_like(residual), torch.empty_like(residual)
    _close[(rows,)](
        sums, sums if bias is None else bias, residual, norm.weight, sums if after is None else after.weight, hidden,
        normalized, rows, outputs, norm.eps, 0.0 if after is None else after.eps, factor,
        BIAS=bias is not None, SHIFT=norm.shift, AFTER=after is not None,
        AFTER_SHIFT=0.0 if after is None else after.shift, SPLITS=parts, LANES=triton.next_power_of_2(outputs),
        num_warps=8, **early(sums.device),
    )  # fmt: skip
    return hidden, normalized
