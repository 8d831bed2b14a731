"""The Triton kernel that applies rotary embeddings to queries and keys and writes keys and values into the cache.

The kernel is ours; its reference is :func:`saccade.inference.engine.fused.reference.reference_rotate`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saccade.inference.engine.fused.reference import Norm, Units
from saccade.inference.engine.kernels.launch import early, follow


@triton.jit
def _rotate(
    packed, cos, sin, query_norm, key_norm, lengths, shifts, ends, query, keys, values,
    nodes, heads, kv_heads, eps, packed_row, angle_row, query_b, query_h, query_n,
    cache_b, cache_h, cache_s,
    NORM: tl.constexpr, SHIFT: tl.constexpr, FLAT: tl.constexpr, HALF: tl.constexpr, LANES: tl.constexpr,
    EARLY: tl.constexpr,
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
            low = low * shrink * (tl.load(scale + lane, mask=real, other=0.0).to(tl.float32) + SHIFT)
            high = high * shrink * (tl.load(scale + HALF + lane, mask=real, other=0.0).to(tl.float32) + SHIFT)
        turn = token.to(tl.int64) * angle_row
        cos_low = tl.load(cos + turn + lane, mask=real, other=0.0).to(tl.float32)
        cos_high = tl.load(cos + turn + HALF + lane, mask=real, other=0.0).to(tl.float32)
        sin_low = tl.load(sin + turn + lane, mask=real, other=0.0).to(tl.float32)
        sin_high = tl.load(sin + turn + HALF + lane, mask=real, other=0.0).to(tl.float32)
        turned = low * cos_low - high * sin_low
        high = high * cos_high + low * sin_high
        low = turned
    kv = (head - heads) % kv_heads
    if FLAT and head >= heads:
        moved = slot + tl.load(shifts + b * kv_heads + kv).to(tl.int64)
        slot = tl.where(slot < tl.load(ends), moved, tl.load(ends + 1) + node)
    if head < heads:
        target = query + b.to(tl.int64) * query_b + head * query_h + node * query_n
    elif head < heads + kv_heads:
        target = keys + b.to(tl.int64) * cache_b + kv.to(tl.int64) * cache_h + slot * cache_s
    else:
        target = values + b.to(tl.int64) * cache_b + kv.to(tl.int64) * cache_h + slot * cache_s
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
    norms: tuple[Norm, Norm] | None = None,
    units: Units | None = None,
) -> Tensor:
    """Rotates queries and keys, writes keys and values; see ``reference_rotate`` of the fused step.

    Args:
        packed: ``[batch * nodes, (heads + 2 * kv_heads) * head_dim]``, last dimension contiguous.
        cos: ``[batch, nodes, head_dim]``, contiguous.
        sin: Like ``cos``.
        lengths: ``[batch]``: the slot that node 0 is written to.
        keys: ``[batch, kv_heads, slots, head_dim]``, or ``[slots, head_dim]`` with ``units``; written.
        values: Like ``keys``, with the same strides.
        norms: Of every head of the queries and of the keys, with equal epsilon and shift, or ``None``.
        units: Where KV heads lie in a flat buffer, or ``None``.

    Returns:
        Queries ``[batch, heads, nodes, head_dim]``.
    """
    batch, nodes, head_dim = cos.shape
    kv_heads = keys.shape[1] if units is None else units.shifts.shape[1]
    heads = packed.shape[1] // head_dim - 2 * kv_heads
    query = torch.empty(batch, heads, nodes, head_dim, dtype=packed.dtype, device=packed.device)
    scales = (packed, packed) if norms is None else (norms[0].weight, norms[1].weight)
    eps, shift = (0.0, 0.0) if norms is None else (norms[0].eps, norms[0].shift)
    shifts, ends = (lengths, lengths) if units is None else (units.shifts.contiguous(), units.ends)
    strides = keys.stride()[:3] if units is None else (0, 0, keys.stride(0))
    _rotate[(batch * nodes, heads + 2 * kv_heads)](
        packed, cos, sin, *scales, lengths, shifts, ends, query, keys, values, nodes, heads, kv_heads, eps,
        packed.stride(0), cos.stride(1), *query.stride()[:3], *strides, NORM=norms is not None, SHIFT=shift,
        FLAT=units is not None, HALF=head_dim // 2, LANES=triton.next_power_of_2(head_dim // 2), num_warps=1,
        **early(packed.device),
    )  # fmt: skip
    return query
