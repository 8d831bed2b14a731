"""Triton kernels for projections of few rows, fused with norm, bias, activation and residual sum.

With one row the time of a projection is the time to read its weights. Projections of the same input share a launch, and
RMSNorm, bias, gated activation and residual sum are computed in the same kernel, so that little else is moved. A kernel
can start and load its first weights while the previous kernel still runs; it waits before it reads an activation
(programmatic dependent launch, compute capability 9). With several rows the kernel that writes the residual stream also
normalizes it, and matrices of the same input still share a launch. A single matrix without residual sum (the output
head) and products of more than 64 rows run in cuBLAS.

The kernels are ours; their references are in :mod:`saccade.inference.engine.fused`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from saccade.inference.engine.kernels.launch import early, follow

_MOST_ROWS = 64  # maximum for our product kernel; with more rows cuBLAS is faster


@triton.jit
def _choose(
    block, weight_0, weight_1, weight_2, bias_0, bias_1, bias_2, size_0, size_1, size_2,
    GATED: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    # the matrix of a program, its bias and number of outputs, the offset of its outputs, and the program's block of it
    blocks_0, blocks_1 = tl.cdiv(size_0, OUTPUTS), tl.cdiv(size_1, OUTPUTS)
    weight, bias, size, offset, first = weight_0, bias_0, size_0, 0, block
    if not GATED:
        if block >= blocks_0 + blocks_1:
            weight, bias, size, offset, first = weight_2, bias_2, size_2, size_0 + size_1, block - blocks_0 - blocks_1
        elif block >= blocks_0:
            weight, bias, size, offset, first = weight_1, bias_1, size_1, size_0, block - blocks_0
    return weight, bias, size, offset, first


@triton.jit
def _stream(
    inputs, weight_0, weight_1, weight_2, bias_0, bias_1, bias_2, norm, residual, out,
    depth, size_0, size_1, size_2, eps,
    NORM: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, GATED: tl.constexpr, EVEN: tl.constexpr,
    OUTPUTS: tl.constexpr, DEPTH: tl.constexpr, PEEL: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    weight, bias, size, offset, first = _choose(
        tl.program_id(0), weight_0, weight_1, weight_2, bias_0, bias_1, bias_2, size_0, size_1, size_2, GATED, OUTPUTS
    )
    column = first * OUTPUTS + tl.arange(0, OUTPUTS)
    wanted = column < size
    step = tl.arange(0, DEPTH)
    place = column[:, None].to(tl.int64) * depth + step[None, :]
    # partial sums of every lane; they are added up after the last tile
    total = tl.zeros([OUTPUTS, DEPTH], tl.float32)
    gated = tl.zeros([OUTPUTS, DEPTH], tl.float32)
    square = tl.zeros([DEPTH], tl.float32)
    start = 0
    if PEEL:  # weights do not depend on the previous kernel: the first tile is loaded before that kernel has ended
        begin = wanted[:, None] & (step < depth)[None, :]
        w = tl.load(weight + place, mask=begin, other=0.0)
        if GATED:
            u = tl.load(weight_1 + place, mask=begin, other=0.0)
        follow(EARLY)
        x = tl.load(inputs + step, mask=step < depth, other=0.0)
        if NORM:
            wide = x.to(tl.float32)
            square += wide * wide
            x = (wide * tl.load(norm + step, mask=step < depth, other=0.0).to(tl.float32)).to(x.dtype)
        total += w.to(tl.float32) * x.to(tl.float32)[None, :]
        if GATED:
            gated += u.to(tl.float32) * x.to(tl.float32)[None, :]
        start = DEPTH
    else:
        follow(EARLY)
    for at in range(start, depth, DEPTH):
        here = at + step < depth
        inside = wanted[:, None]
        if not EVEN:
            inside = inside & here[None, :]
        w = tl.load(weight + place + at, mask=inside, other=0.0)
        if GATED:
            u = tl.load(weight_1 + place + at, mask=inside, other=0.0)
        x = tl.load(inputs + at + step, mask=here, other=0.0)
        if NORM:
            wide = x.to(tl.float32)
            square += wide * wide
            x = (wide * tl.load(norm + at + step, mask=here, other=0.0).to(tl.float32)).to(x.dtype)
        total += w.to(tl.float32) * x.to(tl.float32)[None, :]
        if GATED:
            gated += u.to(tl.float32) * x.to(tl.float32)[None, :]
    result, gate = tl.sum(total, 1), tl.sum(gated, 1)
    if NORM:
        shrink = tl.rsqrt(tl.sum(square, 0) / depth + eps)
        result = result * shrink
        gate = gate * shrink
    if BIAS:
        result += tl.load(bias + column, mask=wanted, other=0.0).to(tl.float32)
        if GATED:
            gate += tl.load(bias_1 + column, mask=wanted, other=0.0).to(tl.float32)
    if GATED:
        result = result * tl.sigmoid(result) * gate
    if RESIDUAL:
        result += tl.load(residual + column, mask=wanted, other=0.0).to(tl.float32)
    tl.store(out + offset + column, result.to(out.dtype.element_ty), mask=wanted)


@triton.jit
def _product(
    inputs, weight_0, weight_1, weight_2, bias_0, bias_1, bias_2, out,
    rows, depth, size_0, size_1, size_2, input_row, out_row,
    BIAS: tl.constexpr, GATED: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(1)  # part of the depth; every part writes separate sums
    part = tl.cdiv(tl.cdiv(depth, SPLITS), DEPTH) * DEPTH
    weight, bias, size, offset, first = _choose(
        tl.program_id(0), weight_0, weight_1, weight_2, bias_0, bias_1, bias_2, size_0, size_1, size_2, GATED, OUTPUTS
    )
    column = first * OUTPUTS + tl.arange(0, OUTPUTS)
    wanted = column < size
    row = tl.arange(0, ROWS)
    real = row < rows
    step = tl.arange(0, DEPTH)
    place = column[:, None].to(tl.int64) * depth + step[None, :]
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    gated = tl.zeros([ROWS, OUTPUTS], tl.float32)
    follow(EARLY)
    for at in range(split * part, tl.minimum(split * part + part, depth), DEPTH):
        here = at + step < depth
        inside = wanted[:, None]
        if not EVEN:
            inside = inside & here[None, :]
        x = tl.load(
            inputs + row[:, None] * input_row + at + step[None, :], mask=real[:, None] & here[None, :], other=0.0
        )
        w = tl.load(weight + place + at, mask=inside, other=0.0)
        if UPCAST:
            x, w = x.to(tl.float32), w.to(tl.float32)
        total += tl.dot(x, tl.trans(w), input_precision=PRECISION)
        if GATED:
            u = tl.load(weight_1 + place + at, mask=inside, other=0.0)
            if UPCAST:
                u = u.to(tl.float32)
            gated += tl.dot(x, tl.trans(u), input_precision=PRECISION)
    if BIAS:
        total += tl.load(bias + column, mask=wanted, other=0.0).to(tl.float32)[None, :]
        if GATED:
            gated += tl.load(bias_1 + column, mask=wanted, other=0.0).to(tl.float32)[None, :]
    if GATED:
        total = total * tl.sigmoid(total) * gated
    shown = real[:, None] & wanted[None, :]
    place = (split * rows + row)[:, None] * out_row + offset + column[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=shown)


@triton.jit
def _normalize(inputs, norm, out, depth, eps, input_row, LANES: tl.constexpr, EARLY: tl.constexpr):
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
        x = x * shrink * tl.load(norm + at + lane, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + row.to(tl.int64) * depth + at + lane, x.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _close(
    sums, bias, residual, norm, hidden, normalized, rows, depth, eps,
    BIAS: tl.constexpr, SPLITS: tl.constexpr, LANES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    row = tl.program_id(0)
    lane = tl.arange(0, LANES)
    inside = lane < depth
    total = tl.load(residual + row * depth + lane, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        total += tl.load(bias + lane, mask=inside, other=0.0).to(tl.float32)
    for split in range(SPLITS):
        total += tl.load(sums + (split * rows + row) * depth + lane, mask=inside, other=0.0)
    kept = total.to(hidden.dtype.element_ty)
    tl.store(hidden + row * depth + lane, kept, mask=inside)
    wide = kept.to(tl.float32)  # the norm is of the rounded sum, which the next layers read
    scale = tl.load(norm + lane, mask=inside, other=0.0).to(tl.float32)
    ready = wide * tl.rsqrt(tl.sum(wide * wide, 0) / depth + eps) * scale
    tl.store(normalized + row * depth + lane, ready.to(normalized.dtype.element_ty), mask=inside)


def _row_tile(outputs: int, depth: int, size: int, gated: bool) -> tuple[int, int, int, bool]:
    """Outputs and inputs of a program's tile for one row, its warps, and whether the first tile is loaded early.

    The fastest of those measured on an H200 in bfloat16. Loading early takes registers and is faster only for small
    matrices.
    """
    if gated or outputs >= 32768:
        block, step, warps = 4, 256, 2
    elif depth >= 8192:
        block, step, warps = 2, 2048, 2
    else:
        block, step, warps = (2, 512, 2) if outputs > depth else (2, 1024, 1)
    step = max(64, min(step * 2 // size, triton.next_power_of_2(depth) // 2))
    return block, step, warps, outputs * depth * size * (1 + gated) < 30_000_000


def _product_tile(rows: int, outputs: int, size: int, gated: bool) -> tuple[int, int, int, int]:
    """Outputs and inputs of a program's tile for several rows, its warps and stages.

    The fastest of those measured on an H200 for 8 to 26 rows of 3B, 7B and 32B models.
    """
    if size > 2:  # exact products of float32 hold several copies of their operands in shared memory
        return 32, 32, 4, 2
    if not gated:
        return (64, 128, 4, 5) if outputs >= 4096 else (16, 128, 4, 4)
    if outputs > 25_344:  # too many small tiles to run at once: the last of them would leave most of the GPU idle
        return 64, 128, 4, 3 if rows > 16 else 4
    return (64, 64, 4, 3) if outputs >= 12_288 else (32, 64, 4, 4)


def _close_tile(rows: int, outputs: int, depth: int, size: int) -> tuple[int, int, int, int, int]:
    """Outputs and inputs of a program's tile, its warps and stages, and the number of parts of the depth.

    The fastest of those measured on an H200 for 8 to 26 rows of 3B, 7B and 32B models: large tiles if one per
    multiprocessor covers the matrix, otherwise two small ones.
    """
    if size == 2 and outputs >= 2048:
        if depth < 8192:
            return 64, 64, 4, 5, 4
        if outputs > 4224:
            return 32, 256, 4, 3, 2
        return (64, 256, 4, 4 if rows <= 32 else 3, 2) if outputs >= 3072 else (32, 128, 4, 4, 4)
    block = 64 if outputs >= 2048 else 16
    step, stages = (128, 4) if size == 2 else (64, 2)
    splits = min(8, triton.next_power_of_2(max(1, 264 * block // outputs)), max(1, depth // (4 * step)))
    return block, step, 4, stages, triton.next_power_of_2(splits)


def triton_norm(inputs: Tensor, norm: Tensor, eps: float) -> Tensor:
    """RMSNorm of rows; see :func:`saccade.inference.engine.fused.rms_norm`.

    Args:
        inputs: ``[rows, depth]``, last dimension contiguous.
        norm: ``[depth]`` weights.
        eps: Epsilon of the norm.

    Returns:
        ``[rows, depth]``.
    """
    rows, depth = inputs.shape
    out = torch.empty(rows, depth, dtype=inputs.dtype, device=inputs.device)
    lanes = min(4096, triton.next_power_of_2(depth))
    _normalize[(rows,)](
        inputs, norm, out, depth, eps, inputs.stride(0), LANES=lanes, num_warps=8, **early(inputs.device)
    )
    return out


def triton_linear(
    inputs: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """Projections of one input; see :func:`saccade.inference.engine.fused.reference_linear`.

    Args:
        inputs: ``[rows, depth]``, last dimension contiguous.
        weights: One to three matrices ``[outputs, depth]``, contiguous; two of equal size when ``gated``.
        biases: One for each matrix, all ``None`` or none.
        norm: ``[depth]`` weights of an RMSNorm of the input, or ``None``.
        eps: Epsilon of the RMSNorm.
        gated: Whether the result is ``silu(first) * second``.
        residual: ``[rows, outputs]``, added to the result, or ``None``.

    Returns:
        ``[rows, outputs]``: the outputs of all matrices, concatenated, or of one when ``gated``.
    """
    rows, depth = inputs.shape
    sizes = [weight.shape[0] for weight in weights]
    outputs = sizes[0] if gated else sum(sizes)
    size, device = inputs.element_size(), inputs.device
    if rows > 1 and norm is not None:  # with one row it is faster that every program computes the norm itself
        inputs = triton_norm(inputs, norm, eps)
    if rows > 1 and (len(weights) == 1 or rows > _MOST_ROWS):
        parts = [F.linear(inputs, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
        product = F.silu(parts[0]) * parts[1] if gated else torch.cat(parts, -1) if len(parts) > 1 else parts[0]
        return product if residual is None else residual + product
    out = torch.empty(rows, outputs, dtype=inputs.dtype, device=device)
    matrices = [*weights, *[weights[0]] * (3 - len(weights))]
    vectors = [inputs if bias is None else bias for bias in (*biases, *[biases[0]] * (3 - len(biases)))]
    counted = sizes[:1] if gated else sizes
    sizes = [*sizes, 0, 0][:3]
    if rows == 1:
        block, step, warps, peel = _row_tile(outputs, depth, size, gated)
        _stream[(sum(triton.cdiv(item, block) for item in counted),)](
            inputs, *matrices, *vectors, inputs if norm is None else norm, inputs if residual is None else residual,
            out, depth, *sizes, eps,
            NORM=norm is not None, BIAS=biases[0] is not None, RESIDUAL=residual is not None, GATED=gated,
            EVEN=depth % step == 0, OUTPUTS=block, DEPTH=step, PEEL=peel, num_warps=warps, **early(device),
        )  # fmt: skip
        return out
    block, step, warps, stages = _product_tile(rows, outputs, size, gated)
    _product[(sum(triton.cdiv(item, block) for item in counted),)](
        inputs, *matrices, *vectors, out, rows, depth, *sizes, inputs.stride(0), out.stride(0),
        BIAS=biases[0] is not None, GATED=gated, EVEN=depth % step == 0,
        ROWS=max(16, triton.next_power_of_2(rows)), OUTPUTS=block, DEPTH=step,
        SPLITS=1, PRECISION="ieee" if size > 2 else "tf32", UPCAST=device.type == "cpu", num_warps=warps,
        num_stages=stages, **early(device),
    )  # fmt: skip
    return out if residual is None else residual + out


def triton_add(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, norm: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Adds a projection to the residual stream and normalizes the sum; see ``reference_add`` of the fused step.

    The depth is split over programs, because one matrix has too few outputs to use the whole GPU. A second kernel adds
    the parts and the residual stream and normalizes the sum.

    Args:
        inputs: ``[rows, depth]``, last dimension contiguous.
        weight: ``[outputs, depth]``, contiguous, at most 16384 outputs.
        bias: ``[outputs]`` or ``None``.
        residual: ``[rows, outputs]``, contiguous.
        norm: ``[outputs]`` weights of the RMSNorm of the sum.
        eps: Epsilon of the RMSNorm.

    Returns:
        The residual stream and its normalized form, ``[rows, outputs]`` each.
    """
    rows, depth = inputs.shape
    outputs, size, device = len(weight), inputs.element_size(), inputs.device
    if rows > _MOST_ROWS:
        hidden = residual + F.linear(inputs, weight, bias)
        return hidden, triton_norm(hidden, norm, eps)
    block, step, warps, stages, splits = _close_tile(rows, outputs, depth, size)
    sums = torch.empty(splits, rows, outputs, dtype=torch.float32, device=device)
    none = inputs  # passed for tensors that a kernel does not read
    _product[(triton.cdiv(outputs, block), splits)](
        inputs, weight, weight, weight, none, none, none, sums, rows, depth, outputs, 0, 0, inputs.stride(0), outputs,
        BIAS=False, GATED=False, EVEN=depth % step == 0, ROWS=max(16, triton.next_power_of_2(rows)), OUTPUTS=block,
        DEPTH=step, SPLITS=splits, PRECISION="ieee" if size > 2 else "tf32", UPCAST=device.type == "cpu",
        num_warps=warps, num_stages=stages, **early(device),
    )  # fmt: skip
    hidden, normalized = torch.empty_like(residual), torch.empty_like(residual)
    _close[(rows,)](
        sums, none if bias is None else bias, residual, norm, hidden, normalized, rows, outputs, eps,
        BIAS=bias is not None, SPLITS=splits, LANES=triton.next_power_of_2(outputs), num_warps=8, **early(device),
    )  # fmt: skip
    return hidden, normalized
