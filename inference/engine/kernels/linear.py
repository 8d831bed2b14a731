"""Triton kernels for projections of few rows: one read of the weights, with what surrounds a projection in it.

At one to a few tens of rows a projection is a stream of its weights through the chip. Projections of the same input
share a launch, RMSNorm comes before, bias, gated activation and residual behind, so that nothing but weights moves.
Ours; the torch functions that define them are in :mod:`saccade.inference.engine.fused`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _stream(
    inputs, weight_0, weight_1, weight_2, bias_0, bias_1, bias_2, norm, residual, out,
    rows, depth, size_0, size_1, size_2, eps, input_row, residual_row, out_row,
    NORM: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, GATED: tl.constexpr, EVEN: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
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
    row = tl.arange(0, ROWS)
    real = row < rows
    step = tl.arange(0, DEPTH)
    place = column[:, None].to(tl.int64) * depth + step[None, :]
    if ROWS == 1:  # products are summed up over the tiles of a program and over its lanes once, at the end
        total = tl.zeros([OUTPUTS, DEPTH], tl.float32)
        gated = tl.zeros([OUTPUTS, DEPTH], tl.float32)
    else:
        total = tl.zeros([ROWS, OUTPUTS], tl.float32)
        gated = tl.zeros([ROWS, OUTPUTS], tl.float32)
    square = tl.zeros([ROWS, DEPTH], tl.float32)  # NORM comes with a single row only
    for at in range(0, depth, DEPTH):
        reach = (at + step) < depth
        inside = wanted[:, None]
        if not EVEN:
            inside = inside & reach[None, :]
        w = tl.load(weight + place + at, mask=inside, other=0.0)
        if GATED:
            u = tl.load(weight_1 + place + at, mask=inside, other=0.0)
        x = tl.load(
            inputs + row[:, None] * input_row + at + step[None, :], mask=real[:, None] & reach[None, :], other=0.0
        )
        if NORM:
            wide = x.to(tl.float32)
            square += wide * wide
            scale = tl.load(norm + at + step, mask=reach, other=0.0).to(tl.float32)
            x = (wide * scale[None, :]).to(x.dtype)
        if ROWS == 1:
            total += w.to(tl.float32) * x.to(tl.float32)
            if GATED:
                gated += u.to(tl.float32) * x.to(tl.float32)
        else:
            if UPCAST:
                x, w = x.to(tl.float32), w.to(tl.float32)
            total += tl.dot(x, tl.trans(w), input_precision=PRECISION)
            if GATED:
                if UPCAST:
                    u = u.to(tl.float32)
                gated += tl.dot(x, tl.trans(u), input_precision=PRECISION)
    if ROWS == 1:
        total = tl.sum(total, 1)[None, :]
        gated = tl.sum(gated, 1)[None, :]
    if NORM:
        shrink = tl.rsqrt(tl.sum(square, 1) / depth + eps)
        total = total * shrink[:, None]
        gated = gated * shrink[:, None]
    if BIAS:
        total += tl.load(bias + column, mask=wanted, other=0.0).to(tl.float32)[None, :]
        if GATED:
            gated += tl.load(bias_1 + column, mask=wanted, other=0.0).to(tl.float32)[None, :]
    if GATED:
        total = total * tl.sigmoid(total) * gated
    shown = real[:, None] & wanted[None, :]
    if RESIDUAL:
        total += tl.load(residual + row[:, None] * residual_row + column[None, :], mask=shown, other=0.0).to(tl.float32)
    tl.store(out + row[:, None] * out_row + offset + column[None, :], total.to(out.dtype.element_ty), mask=shown)


@triton.jit
def _normalize(inputs, norm, out, depth, eps, input_row, LANES: tl.constexpr):
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


def _normalized(inputs: Tensor, norm: Tensor, eps: float) -> Tensor:
    rows, depth = inputs.shape
    out = torch.empty(rows, depth, dtype=inputs.dtype, device=inputs.device)
    lanes = min(4096, triton.next_power_of_2(depth))
    _normalize[(rows,)](inputs, norm, out, depth, eps, inputs.stride(0), LANES=lanes, num_warps=8)
    return out


def _blocks(rows: int, outputs: int, depth: int, size: int, gated: bool) -> tuple[int, int, int, int]:
    """Outputs and inputs of a program's tile, its warps and stages, as measured best on an H200 in bfloat16."""
    if rows == 1:
        if gated:
            block, step, warps = 4, 512, 1
        elif outputs >= 32768:
            block, step, warps = 2, 256, 1
        else:
            block, step, warps = (2, 2048, 2) if depth >= 8192 else (2, 512, 2)
        return block, max(64, min(step * 2 // size, triton.next_power_of_2(depth) // 2)), warps, 3
    return (16 if outputs < 8192 else 32), 256 // size, 4, 4


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
        inputs: ``[rows, depth]``, at most 64 rows, last dimension contiguous.
        weights: One to three matrices ``[outputs, depth]``, contiguous; two of equal size when ``gated``.
        biases: One for each matrix, all ``None`` or none.
        norm: ``[depth]`` weights of an RMSNorm before, or ``None``.
        eps: Of that norm.
        gated: Whether the result is ``silu(first) * second``.
        residual: ``[rows, outputs]``, added to the result, or ``None``.

    Returns:
        ``[rows, outputs]``: those of all matrices side by side, or of one when ``gated``.
    """
    if len(inputs) > 1 and norm is not None:  # with one row every program repeats the norm, which is cheaper there
        inputs, norm = _normalized(inputs, norm, eps), None
    if len(inputs) > 1 and len(weights) == 1:  # cuBLAS streams a single matrix through as fast as the memory allows
        bias = biases[0]
        if residual is None or bias is not None:
            product = F.linear(inputs, weights[0], bias)
            return product if residual is None else residual + product
        return torch.addmm(residual, inputs, weights[0].T)
    rows, depth = inputs.shape
    sizes = [weight.shape[0] for weight in weights]
    outputs = sizes[0] if gated else sum(sizes)
    out = torch.empty(rows, outputs, dtype=inputs.dtype, device=inputs.device)
    matrices = [*weights, *[weights[0]] * (3 - len(weights))]
    vectors = [inputs if bias is None else bias for bias in (*biases, *[biases[0]] * (3 - len(biases)))]
    sizes = [*sizes, 0, 0][:3]
    size = inputs.element_size()
    block, step, warps, stages = _blocks(rows, outputs, depth, size, gated)
    counted = sizes[:1] if gated else sizes
    _stream[(sum(triton.cdiv(item, block) for item in counted),)](
        inputs, *matrices, *vectors, inputs if norm is None else norm, inputs if residual is None else residual, out,
        rows, depth, *sizes, eps, inputs.stride(0), 0 if residual is None else residual.stride(0), out.stride(0),
        NORM=norm is not None, BIAS=biases[0] is not None, RESIDUAL=residual is not None, GATED=gated,
        EVEN=depth % step == 0, ROWS=1 if rows == 1 else max(16, triton.next_power_of_2(rows)), OUTPUTS=block,
        DEPTH=step, PRECISION="ieee" if size > 2 else "tf32", UPCAST=inputs.device.type == "cpu", num_warps=warps,
        num_stages=stages,
    )  # fmt: skip
    return out


@triton.jit
def _rotate(
    packed, cos, sin, query_norm, key_norm, lengths, query, keys, values,
    nodes, heads, kv_heads, eps, packed_row, angle_row, query_b, query_h, query_n, cache_b, cache_h, cache_s,
    NORM: tl.constexpr, HALF: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
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
        LANES=triton.next_power_of_2(head_dim // 2), num_warps=1,
    )  # fmt: skip
    return query
