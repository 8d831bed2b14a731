"""Triton kernels for projections of few rows: one read of the weights, with what surrounds a projection in it.

At one row a projection is a stream of its weights through the chip. Projections of the same input share a launch,
RMSNorm comes before, bias, gated activation and residual behind, so that nothing but weights moves. A kernel starts
while the one before it still runs and loads its first weights; it waits for that one before it reads an activation
(programmatic dependent launch, compute capability 9). Several rows are a matrix product: there cuBLAS reads the weights
as fast as the memory allows, between one kernel for the norm and one for the gate. Ours; the torch functions that
define them are in :mod:`saccade.inference.engine.fused`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from saccade.inference.engine.kernels.launch import early, follow


@triton.jit
def _stream(
    inputs, weight_0, weight_1, weight_2, bias_0, bias_1, bias_2, norm, residual, out,
    depth, size_0, size_1, size_2, eps,
    NORM: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, GATED: tl.constexpr,
    OUTPUTS: tl.constexpr, DEPTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    blocks_0, blocks_1 = tl.cdiv(size_0, OUTPUTS), tl.cdiv(size_1, OUTPUTS)
    weight, bias, size, offset, first = weight_0, bias_0, size_0, 0, block
    if not GATED:
        if block >= blocks_0 + blocks_1:
            weight, bias, size, offset, first = weight_2, bias_2, size_2, size_0 + size_1, block - blocks_0 - blocks_1
        elif block >= blocks_0:
            weight, bias, size, offset, first = weight_1, bias_1, size_1, size_0, block - blocks_0
    column = first * OUTPUTS + tl.arange(0, OUTPUTS)
    wanted = column < size
    step = tl.arange(0, DEPTH)
    place = column[:, None].to(tl.int64) * depth + step[None, :]
    # sums over tiles stay apart by lane until the end; each tile of weights is under way one tile before its use
    total = tl.zeros([OUTPUTS, DEPTH], tl.float32)
    gated = tl.zeros([OUTPUTS, DEPTH], tl.float32)
    square = tl.zeros([DEPTH], tl.float32)
    inside = wanted[:, None] & (step < depth)[None, :]
    w = tl.load(weight + place, mask=inside, other=0.0)
    u = w
    if GATED:
        u = tl.load(weight_1 + place, mask=inside, other=0.0)
    follow(EARLY)
    for at in range(0, depth, DEPTH):
        here = at + step < depth
        x = tl.load(inputs + at + step, mask=here, other=0.0)
        inside = wanted[:, None] & (at + DEPTH + step < depth)[None, :]
        next_w = tl.load(weight + place + at + DEPTH, mask=inside, other=0.0)
        next_u = next_w
        if GATED:
            next_u = tl.load(weight_1 + place + at + DEPTH, mask=inside, other=0.0)
        if NORM:
            wide = x.to(tl.float32)
            square += wide * wide
            x = (wide * tl.load(norm + at + step, mask=here, other=0.0).to(tl.float32)).to(x.dtype)
        total += w.to(tl.float32) * x.to(tl.float32)[None, :]
        if GATED:
            gated += u.to(tl.float32) * x.to(tl.float32)[None, :]
        w, u = next_w, next_u
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
def _gate(packed, out, width, LANES: tl.constexpr, EARLY: tl.constexpr):
    follow(EARLY)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * LANES + tl.arange(0, LANES)
    inside = column < width
    first = tl.load(packed + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(packed + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    result = first * tl.sigmoid(first) * second
    tl.store(out + row * width + column, result.to(out.dtype.element_ty), mask=inside)


def _tile(outputs: int, depth: int, size: int, gated: bool) -> tuple[int, int, int]:
    """Outputs and inputs of a program's tile and its warps, as measured best on an H200 in bfloat16."""
    if gated:
        block, step, warps = 4, 512, 1
    elif outputs >= 32768:
        block, step, warps = 2, 256, 1
    else:
        block, step, warps = (2, 2048, 2) if depth >= 8192 else (2, 512, 2)
    return block, max(64, min(step * 2 // size, triton.next_power_of_2(depth) // 2)), warps


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
        norm: ``[depth]`` weights of an RMSNorm before, or ``None``.
        eps: Of that norm.
        gated: Whether the result is ``silu(first) * second``.
        residual: ``[rows, outputs]``, added to the result, or ``None``.

    Returns:
        ``[rows, outputs]``: those of all matrices side by side, or of one when ``gated``.
    """
    one = len(inputs) == 1
    return (_one_row if one else _several_rows)(inputs, weights, biases, norm, eps, gated, residual)


def _one_row(
    inputs: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    norm: Tensor | None,
    eps: float,
    gated: bool,
    residual: Tensor | None,
) -> Tensor:
    depth = inputs.shape[1]
    sizes = [weight.shape[0] for weight in weights]
    outputs = sizes[0] if gated else sum(sizes)
    out = torch.empty(1, outputs, dtype=inputs.dtype, device=inputs.device)
    matrices = [*weights, *[weights[0]] * (3 - len(weights))]
    vectors = [inputs if bias is None else bias for bias in (*biases, *[biases[0]] * (3 - len(biases)))]
    block, step, warps = _tile(outputs, depth, inputs.element_size(), gated)
    counted = sizes[:1] if gated else sizes
    sizes = [*sizes, 0, 0][:3]
    _stream[(sum(triton.cdiv(item, block) for item in counted),)](
        inputs, *matrices, *vectors, inputs if norm is None else norm, inputs if residual is None else residual, out,
        depth, *sizes, eps,
        NORM=norm is not None, BIAS=biases[0] is not None, RESIDUAL=residual is not None, GATED=gated,
        OUTPUTS=block, DEPTH=step, num_warps=warps, **early(inputs.device),
    )  # fmt: skip
    return out


def _several_rows(
    inputs: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    norm: Tensor | None,
    eps: float,
    gated: bool,
    residual: Tensor | None,
) -> Tensor:
    rows, depth = inputs.shape
    device = inputs.device
    if norm is not None:
        normalized = torch.empty(rows, depth, dtype=inputs.dtype, device=device)
        lanes = min(4096, triton.next_power_of_2(depth))
        _normalize[(rows,)](
            inputs, norm, normalized, depth, eps, inputs.stride(0), LANES=lanes, num_warps=8, **early(device)
        )
        inputs = normalized
    packed = torch.empty(rows, sum(len(weight) for weight in weights), dtype=inputs.dtype, device=device)
    parts = packed.split([len(weight) for weight in weights], 1)
    for part, weight, bias in zip(parts, weights, biases, strict=True):
        if bias is not None:
            torch.addmm(bias, inputs, weight.T, out=part)
        elif residual is not None and len(weights) == 1:
            torch.addmm(residual, inputs, weight.T, out=part)
        else:
            torch.mm(inputs, weight.T, out=part)
    if gated:
        width = len(weights[0])
        out = torch.empty(rows, width, dtype=inputs.dtype, device=device)
        _gate[(rows, triton.cdiv(width, 1024))](packed, out, width, LANES=1024, num_warps=4, **early(device))
        packed = out
    added = residual is not None and not gated and len(weights) == 1 and biases[0] is None
    return packed if residual is None or added else residual + packed


@triton.jit
def _rotate(
    packed, cos, sin, query_norm, key_norm, lengths, query, keys, values,
    nodes, heads, kv_heads, eps, packed_row, angle_row, query_b, query_h, query_n, cache_b, cache_h, cache_s,
    NORM: tl.constexpr, HALF: tl.constexpr, LANES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    token, head = tl.program_id(0), tl.program_id(1)
    b, node = token // nodes, token % nodes
    lane = tl.arange(0, LANES)
    real = lane < HALF
    source = packed + token.to(tl.int64) * packed_row + head * (2 * HALF)
    low = tl.load(source + lane, mask=real, other=0.0).to(tl.float32)
    high = tl.load(source + HALF + lane, mask=real, other=0.0).to(tl.float32)
    slot = tl.load(lengths + b).to(tl.int64) + node
    if head < heads + kv_heads:
        if NORM:
            shrink = tl.rsqrt((tl.sum(low * low, 0) + tl.sum(high * high, 0)) / (2 * HALF) + eps)
            scale = query_norm
            if head >= heads:
                scale = key_norm
            low = low * shrink * tl.load(scale + lane, mask=real, other=0.0).to(tl.float32)
            high = high * shrink * tl.load(scale + HALF + lane, mask=real, other=0.0).to(tl.float32)
        turn = token.to(tl.int64) * angle_row
        cos_low = tl.load(cos + turn + lane, mask=real, other=0.0).to(tl.float32)
        cos_high = tl.load(cos + turn + HALF + lane, mask=real, other=0.0).to(tl.float32)
        sin_low = tl.load(sin + turn + lane, mask=real, other=0.0).to(tl.float32)
        sin_high = tl.load(sin + turn + HALF + lane, mask=real, other=0.0).to(tl.float32)
        turned = low * cos_low - high * sin_low
        high = high * cos_high + low * sin_high
        low = turned
    if head < heads:
        target = query + b.to(tl.int64) * query_b + head * query_h + node * query_n
    elif head < heads + kv_heads:
        target = keys + b.to(tl.int64) * cache_b + (head - heads).to(tl.int64) * cache_h + slot * cache_s
    else:
        target = values + b.to(tl.int64) * cache_b + (head - heads - kv_heads).to(tl.int64) * cache_h + slot * cache_s
    tl.store(target + lane, low.to(query.dtype.element_ty), mask=real)
    tl.store(target + HALF + lane, high.to(query.dtype.element_ty), mask=real)


def triton_rotate(
    packed: Tensor,
    cos: Tensor,
    sin: Tensor,
    lengths: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    norms: tuple[Tensor, Tensor] | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Turns queries and keys, writes keys and values; see :func:`saccade.inference.engine.fused.reference_rotate`.

    Args:
        packed: ``[batch * nodes, (heads + 2 * kv_heads) * head_dim]``, last dimension contiguous.
        cos: ``[batch, nodes, head_dim]``, contiguous.
        sin: Like ``cos``.
        lengths: ``[batch]``: the slot that node 0 is written to.
        keys: ``[batch, kv_heads, slots, head_dim]``; written.
        values: Like ``keys``, of the same layout.
        norms: RMSNorm weights ``[head_dim]`` of queries and keys, or ``None``.
        eps: Of these norms.

    Returns:
        Queries ``[batch, heads, nodes, head_dim]``.
    """
    batch, nodes, head_dim = cos.shape
    kv_heads = keys.shape[1]
    heads = packed.shape[1] // head_dim - 2 * kv_heads
    query = torch.empty(batch, heads, nodes, head_dim, dtype=packed.dtype, device=packed.device)
    scales = (packed, packed) if norms is None else norms
    _rotate[(batch * nodes, heads + 2 * kv_heads)](
        packed, cos, sin, *scales, lengths, query, keys, values, nodes, heads, kv_heads, eps, packed.stride(0),
        cos.stride(1), *query.stride()[:3], *keys.stride()[:3], NORM=norms is not None, HALF=head_dim // 2,
        LANES=triton.next_power_of_2(head_dim // 2), num_warps=1, **early(packed.device),
    )  # fmt: skip
    return query
