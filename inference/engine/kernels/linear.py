"""Triton kernels for projections of few rows, fused with norm, bias, activation and residual sum.

With one row the time of a projection is the time to read its weights. Projections of the same input share a launch, and
RMSNorm, bias, gated activation and residual sum are computed in the same kernel, so that little else is moved. A kernel
can start and load its first weights while the previous kernel still runs; it waits before it reads an activation
(programmatic dependent launch, compute capability 9). With several rows the kernel that writes the residual stream also
normalizes it, and matrices of the same input still share a launch. A single matrix without residual sum (the output
head) and products of more than 64 rows run in cuBLAS. What an adapter adds is computed in the same kernel from its
inner values (:mod:`saccade.inference.engine.kernels.adapters`).

The kernels are ours; their references are in :mod:`saccade.inference.engine.fused.reference`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from saccade.inference.engine.fused.reference import LowRank, Norm, activate, project
from saccade.inference.engine.kernels.adapters import Adapters, lift
from saccade.inference.engine.kernels.launch import early, follow
from saccade.inference.engine.kernels.norms import triton_close, triton_norm

GATES = {None: 0, "silu": 1, "gelu": 2}
"""The activations of gates, by name, as numbers for kernels."""
_MOST_ROWS = 64  # maximum for our product kernel; with more rows cuBLAS is faster


@triton.jit
def activated(gate, GATED: tl.constexpr):  # noqa: ANN201
    """SiLU, or GELU with tanh: ``(1 + tanh(x)) / 2`` is ``sigmoid(2 x)``."""
    if GATED == 1:
        gate = gate * tl.sigmoid(gate)
    else:
        gate = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    return gate


@triton.jit
def _choose(
    block, weight_0, weight_1, weight_2, bias_0, bias_1, bias_2, size_0, size_1, size_2,
    GATED: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    # the matrix of a program, its bias and number of outputs, the offset of its outputs, the program's block of it, and
    # the matrix's number
    blocks_0, blocks_1 = tl.cdiv(size_0, OUTPUTS), tl.cdiv(size_1, OUTPUTS)
    weight, bias, size, offset, first, which = weight_0, bias_0, size_0, 0, block, 0
    if not GATED:
        if block >= blocks_0 + blocks_1:
            weight, bias, size, offset, which = weight_2, bias_2, size_2, size_0 + size_1, 2
            first = block - blocks_0 - blocks_1
        elif block >= blocks_0:
            weight, bias, size, offset, which = weight_1, bias_1, size_1, size_0, 1
            first = block - blocks_0
    return weight, bias, size, offset, first, which


@triton.jit
def _stream(
    inputs, weight_0, weight_1, weight_2, bias_0, bias_1, bias_2, norm, residual, out,
    low, up_0, up_1, up_2, depth, size_0, size_1, size_2, rank_0, rank_1, rank_2, scale_0, scale_1, scale_2,
    eps, factor,
    NORM: tl.constexpr, SHIFT: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, GATED: tl.constexpr,
    EVEN: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr, PEEL: tl.constexpr, RANK: tl.constexpr,
    PARTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    weight, bias, size, offset, first, which = _choose(
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
            x = (wide * (tl.load(norm + step, mask=step < depth, other=0.0).to(tl.float32) + SHIFT)).to(x.dtype)
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
            x = (wide * (tl.load(norm + at + step, mask=here, other=0.0).to(tl.float32) + SHIFT)).to(x.dtype)
        total += w.to(tl.float32) * x.to(tl.float32)[None, :]
        if GATED:
            gated += u.to(tl.float32) * x.to(tl.float32)[None, :]
    result, gate = tl.sum(total, 1), tl.sum(gated, 1)
    if RANK:  # the inner values are of inputs that lack the norm's factor, as the sums do
        one = tl.zeros([1], tl.int32)
        inner, lifts = lift(
            which, low, up_0, up_1, up_2, rank_0, rank_1, rank_2, scale_0, scale_1, scale_2, 1, one, column, wanted,
            RANK, PARTS,
        )  # fmt: skip
        result += tl.sum(inner * lifts, 1)
        if GATED:
            inner, lifts = lift(
                1, low, up_0, up_1, up_2, rank_0, rank_1, rank_2, scale_0, scale_1, scale_2, 1, one, column, wanted,
                RANK, PARTS,
            )  # fmt: skip
            gate += tl.sum(inner * lifts, 1)
    if NORM:
        shrink = tl.rsqrt(tl.sum(square, 0) / depth + eps)
        result = result * shrink
        gate = gate * shrink
    if BIAS:
        result += tl.load(bias + column, mask=wanted, other=0.0).to(tl.float32)
        if GATED:
            gate += tl.load(bias_1 + column, mask=wanted, other=0.0).to(tl.float32)
    if GATED:
        result = activated(result, GATED) * gate
    if RESIDUAL:
        result = result * factor + tl.load(residual + column, mask=wanted, other=0.0).to(tl.float32)
    tl.store(out + offset + column, result.to(out.dtype.element_ty), mask=wanted)


@triton.jit
def _product(
    inputs, weight_0, weight_1, weight_2, bias_0, bias_1, bias_2, out,
    low, up_0, up_1, up_2, rows, depth, size_0, size_1, size_2, rank_0, rank_1, rank_2, scale_0, scale_1, scale_2,
    input_row, out_row,
    BIAS: tl.constexpr, GATED: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, RANK: tl.constexpr,
    PARTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(1)  # part of the depth; every part writes separate sums
    part = tl.cdiv(tl.cdiv(depth, SPLITS), DEPTH) * DEPTH
    weight, bias, size, offset, first, which = _choose(
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
    if RANK:  # noqa: SIM102 - known to the compiler, unlike the next condition
        if split == 0:
            inner, lifts = lift(
                which, low, up_0, up_1, up_2, rank_0, rank_1, rank_2, scale_0, scale_1, scale_2, rows, row, column,
                wanted, RANK, PARTS,
            )  # fmt: skip
            total += tl.dot(inner, tl.trans(lifts), input_precision=PRECISION)
            if GATED:
                inner, lifts = lift(
                    1, low, up_0, up_1, up_2, rank_0, rank_1, rank_2, scale_0, scale_1, scale_2, rows, row, column,
                    wanted, RANK, PARTS,
                )  # fmt: skip
                gated += tl.dot(inner, tl.trans(lifts), input_precision=PRECISION)
    if GATED:
        total = activated(total, GATED) * gated
    shown = real[:, None] & wanted[None, :]
    place = (split * rows + row)[:, None] * out_row + offset + column[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=shown)


def _row_tile(outputs: int, depth: int, size: int, gated: bool, adapted: bool = False) -> tuple[int, int, int, bool]:
    """Outputs and inputs of a program's tile for one row, its warps, and whether the first tile is loaded early.

    The fastest of those measured on an H200 in bfloat16, over models of 0.5B to 32B. Loading early takes registers and
    is slower only for large gated matrices and output heads. With an adapter every program reads its inner values, so
    that more outputs share them.
    """
    if outputs <= 512:  # a router: few programs, which read their whole row at once
        step = min(4096 * 2 // size, triton.next_power_of_2(depth))
        return 1, max(64, step), 8 if step * size > 4096 else 4, True
    peel = True
    if gated or outputs >= 32768:
        block, step, warps = 4, 256, 2
        peel = outputs * depth * size * (1 + gated) < 30_000_000
    elif adapted:
        step, warps = (2048, 2) if depth >= 8192 else (512, 2) if outputs > depth else (1024, 1)
        block = 2
        peel = outputs * depth * size < 30_000_000
    elif outputs > depth:
        block, step, warps = 8 if depth == 4096 else 4, 512, 4
    elif depth < 4096:
        block, step, warps = 1, 512, 2
    else:
        block, step, warps = 1, 1024 if outputs >= 2048 else 2048, 4
    step = max(64, min(step * 2 // size, triton.next_power_of_2(depth) // 2))
    return block, step, warps, peel


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


def _one_row(
    inputs: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    out: Tensor,
    adapters: Sequence[LowRank | None],
    norm: Norm | None = None,
    gated: str | None = None,
    residual: Tensor | None = None,
    factor: float = 1.0,
) -> None:
    depth, size = inputs.shape[1], weights[0].element_size()
    sizes, matrices, vectors = _three(inputs, weights, biases)
    added = Adapters.of(inputs, adapters, size > 2, norm)
    block, step, warps, peel = _row_tile(out.shape[-1], depth, size, bool(gated), added.lanes > 0)
    _stream[(sum(triton.cdiv(item, block) for item in (sizes[:1] if gated else sizes)),)](
        inputs, *matrices, *vectors, inputs if norm is None else norm.weight, inputs if residual is None else residual,
        out, added.low, *added.ups, depth, *sizes, *added.ranks, *added.scales, 0.0 if norm is None else norm.eps,
        factor,
        NORM=norm is not None, SHIFT=0.0 if norm is None else norm.shift, BIAS=biases[0] is not None,
        RESIDUAL=residual is not None, GATED=GATES[gated], EVEN=depth % step == 0, OUTPUTS=block, DEPTH=step, PEEL=peel,
        RANK=added.lanes, PARTS=added.parts, num_warps=warps, **early(inputs.device),
    )  # fmt: skip


def _three(
    inputs: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> tuple[list[int], list[Tensor], list[Tensor]]:
    """Sizes, matrices and biases of three matrices; those that are missing have no outputs."""
    sizes = [*(weight.shape[0] for weight in weights), 0, 0][:3]
    matrices = [*weights, weights[0], weights[0]][:3]
    vectors = [inputs if bias is None else bias for bias in (*biases, biases[0], biases[0])][:3]
    return sizes, matrices, vectors


def triton_linear(
    inputs: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    norm: Norm | None = None,
    gated: str | None = None,
    residual: Tensor | None = None,
    factor: float = 1.0,
    adapters: Sequence[LowRank | None] | None = None,
) -> Tensor:
    """Projections of one input; see :func:`saccade.inference.engine.fused.reference.reference_linear`.

    Args:
        inputs: ``[rows, depth]``, last dimension contiguous.
        weights: One to three matrices ``[outputs, depth]``, contiguous; two of equal size when ``gated``.
        biases: One for each matrix, all ``None`` or none.
        norm: Of the input, or ``None``.
        gated: Activation of the first matrix's outputs, which then multiply the second's; ``None`` for no gate.
        residual: ``[rows, outputs]``, to which ``factor`` times the result is added, or ``None``.
        factor: Of the result where there is a residual.
        adapters: One for each matrix, or ``None``; contiguous.

    Returns:
        ``[rows, outputs]``: the outputs of all matrices, concatenated, or of one when ``gated``; as precise as the
        matrices.
    """
    rows, depth = inputs.shape
    sizes, matrices, vectors = _three(inputs, weights, biases)
    outputs = sizes[0] if gated else sum(sizes)
    device, dtype = inputs.device, weights[0].dtype
    extra = [None] * len(weights) if adapters is None else adapters
    if rows > 1 and norm is not None:  # with one row it is faster that every program computes the norm itself
        inputs = triton_norm(inputs, norm)
    plain = len(weights) == 1 and extra[0] is None
    if rows > 1 and (plain or rows > _MOST_ROWS):
        parts = [project(inputs, *each) for each in zip(weights, biases, extra, strict=True)]
        product = (
            activate(parts[0], gated) * parts[1] if gated else torch.cat(parts, -1) if len(parts) > 1 else parts[0]
        )
        return _added(product, residual, factor)
    out = torch.empty(rows, outputs, dtype=dtype, device=device)
    if rows == 1:
        _one_row(inputs, weights, biases, out, extra, norm, gated, residual, factor)
        return out
    size = weights[0].element_size()
    block, step, warps, stages = _product_tile(rows, outputs, size, bool(gated))
    added = Adapters.of(inputs, extra, size > 2)
    _product[(sum(triton.cdiv(item, block) for item in (sizes[:1] if gated else sizes)),)](
        inputs, *matrices, *vectors, out, added.low, *added.ups, rows, depth, *sizes, *added.ranks, *added.scales,
        inputs.stride(0), out.stride(0),
        BIAS=biases[0] is not None, GATED=GATES[gated], EVEN=depth % step == 0,
        ROWS=max(16, triton.next_power_of_2(rows)), OUTPUTS=block, DEPTH=step, SPLITS=1,
        PRECISION="ieee" if size > 2 else "tf32", UPCAST=device.type == "cpu",
        RANK=added.lanes, PARTS=added.parts, num_warps=warps, num_stages=stages, **early(device),
    )  # fmt: skip
    return _added(out, residual, factor)


def _added(product: Tensor, residual: Tensor | None, factor: float) -> Tensor:
    if residual is None:
        return product
    return residual + product if factor == 1 else torch.add(residual, product, alpha=factor)


def triton_add(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    norm: Norm,
    *,
    after: Norm | None = None,
    factor: float = 1.0,
    adapter: LowRank | None = None,
) -> tuple[Tensor, Tensor]:
    """Adds a projection to the residual stream and normalizes the sum; see ``reference_add`` of the fused step.

    With several rows the depth is split over programs, because one matrix has too few outputs to use the whole GPU. A
    second kernel adds the parts and the residual stream and normalizes the sum.

    Args:
        inputs: ``[rows, depth]``, last dimension contiguous.
        weight: ``[outputs, depth]``, contiguous, at most 16384 outputs.
        bias: ``[outputs]`` or ``None``.
        residual: ``[rows, outputs]``, contiguous.
        norm: Of the sum.
        after: Norm of the projection itself, before it is added; ``None`` for none.
        factor: Of what is added.
        adapter: Of the matrix.

    Returns:
        The residual stream and its normalized form, ``[rows, outputs]`` each.
    """
    rows, depth = inputs.shape
    outputs, size, device = len(weight), inputs.element_size(), inputs.device
    if rows > _MOST_ROWS:
        return triton_close(project(inputs, weight, bias, adapter).float()[None], None, residual, norm, after, factor)
    if rows == 1:
        sums = torch.empty(1, 1, outputs, dtype=torch.float32, device=device)
        _one_row(inputs, [weight], [None], sums, [adapter])
        return triton_close(sums, bias, residual, norm, after, factor)
    block, step, warps, stages, splits = _close_tile(rows, outputs, depth, size)
    sums = torch.empty(splits, rows, outputs, dtype=torch.float32, device=device)
    added = Adapters.of(inputs, [adapter], size > 2)
    none = inputs  # passed for tensors that a kernel does not read
    _product[(triton.cdiv(outputs, block), splits)](
        inputs, weight, weight, weight, none, none, none, sums, added.low, *added.ups, rows, depth, outputs, 0, 0,
        *added.ranks, *added.scales, inputs.stride(0), outputs,
        BIAS=False, GATED=0, EVEN=depth % step == 0, ROWS=max(16, triton.next_power_of_2(rows)), OUTPUTS=block,
        DEPTH=step, SPLITS=splits, PRECISION="ieee" if size > 2 else "tf32", UPCAST=device.type == "cpu",
        RANK=added.lanes, PARTS=added.parts, num_warps=warps, num_stages=stages, **early(device),
    )  # fmt: skip
    return triton_close(sums, bias, residual, norm, after, factor)
