"""The Triton kernel of decode attention: split over the cache, with one read of the keys for a group of query heads.

Flash-decoding (Dao et al., 2023), extended for speculative decoding: lengths and starts are on the device and may
differ between KV heads, and ancestor bits define what the nodes of a tree see. Several programs read parts of the slots
of one KV head, so that a single row uses the whole GPU; a second kernel combines their results. With a window, only its
slots are read. What a model does not have (a window, a cap, sinks) is not in its kernels. The kernels are ours.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from saccade.inference.compression.precision import GROUP, ranges_bytes
from saccade.inference.engine.compressed.kept import Groups
from saccade.inference.engine.kernels.launch import early, follow

_MAX_SPLITS = 64
_MIN_SLOTS = 64  # minimum size of a split: one tile


@triton.jit
def _fold(
    q, bits, oldest, best, total, mixed, keys, values, seen_base, slot, key_s, value_s, column, head_dim, length, high,
    scale, cap, EDGE: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr, PADDED: tl.constexpr,
    HOLES: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Adds a tile of slots to the running softmax of every query row. With EDGE, masks what a row does not see."""
    reach = (slot < high)[:, None] & (column < head_dim)[None, :]
    key_place = keys + slot[:, None].to(tl.int64) * key_s + column[None, :]
    value_place = values + slot[:, None].to(tl.int64) * value_s + column[None, :]
    if EDGE or PADDED:
        k = tl.load(key_place, mask=reach, other=0.0)
        v = tl.load(value_place, mask=reach, other=0.0)
    else:
        k = tl.load(key_place)
        v = tl.load(value_place)
    if UPCAST:
        k = k.to(tl.float32)
        v = v.to(tl.float32)
    if CAP:
        raw = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        # tanh by the exponential; 1.44... is the logarithm of e to base 2
        score = cap * (1.0 - 2.0 / (tl.exp2(raw / cap * 2.8853900817779268) + 1.0)) * 1.4426950408889634
    else:
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * 1.4426950408889634)
    if EDGE:
        own = slot - length
        shift = tl.minimum(tl.maximum(own, 0), 63).to(tl.int64)
        ancestor = ((bits[:, None] >> shift[None, :]) & 1) == 1
        seen = (slot < high)[None, :] & ((own < 0)[None, :] | ancestor)
        if WINDOW:
            seen = seen & (slot[None, :] >= oldest[:, None])
        score = tl.where(seen, score, float("-inf"))
    if HOLES:
        held = tl.load(seen_base + slot, mask=slot < high, other=0) != 0
        score = tl.where(held[None, :], score, float("-inf"))
    top = tl.maximum(best, tl.max(score, 1))
    anchor = tl.where(top == float("-inf"), 0.0, top)  # -inf for a row that has not seen any slot yet
    weight = tl.exp2(score - anchor[:, None])
    fade = tl.exp2(best - anchor)
    total = total * fade + tl.sum(weight, 1)
    mixed = mixed * fade[:, None] + tl.dot(weight.to(v.dtype), v, input_precision=PRECISION)
    return top, total, mixed


@triton.jit
def _unpacked(
    place, token, column, kind: tl.constexpr, BY_TOKEN: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
    HEAD: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """A packed group of keys or values, ``[tokens, head_dim]``, in the model's precision."""
    each: tl.constexpr = HEAD * BITS // 8  # bytes of a token
    wide = column < HEAD
    step = tl.load(place + STEPS + token[:, None] * each + (column % each)[None, :], mask=wide[None, :], other=0)
    if BITS == 4:
        step = (step >> tl.where(column < each, 0, 4).to(tl.uint8)[None, :]) & 15
    ranges = tl.multiple_of(place.to(tl.pointer_type(kind)), 16)
    if BY_TOKEN:
        scale = tl.load(ranges + token)[:, None]
        low = tl.load(ranges + GROUP + token)[:, None]
    else:
        scale = tl.load(ranges + column, mask=wide, other=0.0)[None, :]
        low = tl.load(ranges + HEAD + column, mask=wide, other=0.0)[None, :]
    return (low.to(tl.float32) + step.to(tl.float32) * scale.to(tl.float32)).to(kind)


@triton.jit
def _fold_packed(
    q, best, total, mixed, key_place, value_place, column, scale, kind: tl.constexpr, BITS: tl.constexpr,
    GROUP: tl.constexpr, HEAD: tl.constexpr, KEY_STEPS: tl.constexpr, VALUE_STEPS: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Adds a packed group, which every query row sees, to the running softmax."""
    token = tl.arange(0, GROUP)
    k = _unpacked(key_place, token, column, kind, False, BITS, GROUP, HEAD, KEY_STEPS)
    v = _unpacked(value_place, token, column, kind, True, BITS, GROUP, HEAD, VALUE_STEPS)
    if UPCAST:
        k = k.to(tl.float32)
        v = v.to(tl.float32)
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * 1.4426950408889634)
    top = tl.maximum(best, tl.max(score, 1))
    weight = tl.exp2(score - top[:, None])
    fade = tl.exp2(best - top)
    total = total * fade + tl.sum(weight, 1)
    mixed = mixed * fade[:, None] + tl.dot(weight.to(v.dtype), v, input_precision=PRECISION)
    return top, total, mixed


@triton.jit
def _attend(
    query, keys, values, lengths, starts, bases, seen, ancestors, depths, sums, logs, packed_keys, packed_values,
    group_first, group_counts, scale, cap, window,
    query_b, query_h, query_n, key_b, key_h, key_s, value_b, value_h, value_s,
    length_b, length_h, kv_heads, nodes, span, groups, head_dim,
    HAS_STARTS: tl.constexpr, FLAT: tl.constexpr, HOLES: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr,
    SPLITS: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr,
    KEY_STEPS: tl.constexpr, KEY_ROW: tl.constexpr, VALUE_STEPS: tl.constexpr, VALUE_ROW: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    split = tl.program_id(0)
    pair = tl.program_id(1)
    b, h = pair // kv_heads, pair % kv_heads
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)  # group-major: the nodes of a query head are adjacent
    real = row < groups * nodes
    node = row % nodes
    head = h * groups + row // nodes
    column = tl.arange(0, WIDTH)
    wide = column < head_dim
    place = query + b.to(tl.int64) * query_b + head[:, None] * query_h + node[:, None] * query_n + column[None, :]
    q = tl.load(place, mask=real[:, None] & wide[None, :], other=0.0)
    if UPCAST:
        q = q.to(tl.float32)
    bits = tl.load(ancestors + node, mask=real, other=0)
    length = tl.load(lengths + b * length_b + h * length_h).to(tl.int32)
    start = length * 0
    if HAS_STARTS:
        start = tl.load(starts + b * length_b + h * length_h).to(tl.int32)
    oldest = node  # of no effect without a window
    if WINDOW:
        # what lies before the window of the root lies before those of all nodes
        start = tl.maximum(start, length - window + 1)
        oldest = length + tl.load(depths + node, mask=real, other=0).to(tl.int32) - window + 1
    stop = length + span
    part = tl.cdiv(tl.cdiv(stop - start, SPLITS), SLOTS) * SLOTS
    low = start + split * part
    high = tl.minimum(low + part, stop)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, WIDTH], tl.float32)
    key_base = keys + b.to(tl.int64) * key_b + h.to(tl.int64) * key_h
    value_base = values + b.to(tl.int64) * value_b + h.to(tl.int64) * value_h
    seen_base = seen
    if FLAT:  # units of one flat buffer
        base = tl.load(bases + b * length_b + h * length_h).to(tl.int64)
        key_base = keys + base * key_s
        value_base = values + base * value_s
        seen_base = seen + base
    if BITS < 16:
        whole = tl.load(group_counts + b * length_b + h * length_h).to(tl.int32)
        share = tl.cdiv(whole, SPLITS)
        begin = tl.load(group_first + b * length_b + h * length_h)
        for group in range(split * share, tl.minimum(split * share + share, whole)):
            best, total, mixed = _fold_packed(
                q, best, total, mixed, packed_keys + (begin + group) * KEY_ROW,
                packed_values + (begin + group) * VALUE_ROW, column, scale, query.dtype.element_ty, BITS=BITS,
                GROUP=GROUP, HEAD=HEAD, KEY_STEPS=KEY_STEPS, VALUE_STEPS=VALUE_STEPS, PRECISION=PRECISION,
                UPCAST=UPCAST,
            )  # fmt: skip
    # first whole tiles of the cache, without the mask of the tree, which would take longer than the products
    edge = low + tl.maximum(tl.minimum(high, length) - low, 0) // SLOTS * SLOTS
    inner = low
    if WINDOW:
        # before them the tiles in which the windows of the nodes begin
        inner = tl.minimum(low + tl.cdiv(tl.maximum(start + nodes - low, 0), SLOTS) * SLOTS, edge)
        for first in range(low, inner, SLOTS):
            best, total, mixed = _fold(
                q, bits, oldest, best, total, mixed, key_base, value_base, seen_base, first + tl.arange(0, SLOTS),
                key_s, value_s, column, head_dim, length, high, scale, cap, EDGE=True, WINDOW=True, CAP=CAP,
                PADDED=PADDED, HOLES=HOLES, PRECISION=PRECISION, UPCAST=UPCAST,
            )  # fmt: skip
    for first in range(inner, edge, SLOTS):
        best, total, mixed = _fold(
            q, bits, oldest, best, total, mixed, key_base, value_base, seen_base, first + tl.arange(0, SLOTS), key_s,
            value_s, column, head_dim, length, high, scale, cap, EDGE=False, WINDOW=WINDOW, CAP=CAP, PADDED=PADDED,
            HOLES=HOLES, PRECISION=PRECISION, UPCAST=UPCAST,
        )  # fmt: skip
    for first in range(edge, high, SLOTS):
        best, total, mixed = _fold(
            q, bits, oldest, best, total, mixed, key_base, value_base, seen_base, first + tl.arange(0, SLOTS), key_s,
            value_s, column, head_dim, length, high, scale, cap, EDGE=True, WINDOW=WINDOW, CAP=CAP, PADDED=PADDED,
            HOLES=HOLES, PRECISION=PRECISION, UPCAST=UPCAST,
        )  # fmt: skip
    anchor = tl.where(best == float("-inf"), 0.0, best)
    at = ((pair * SPLITS + split) * groups * nodes + row).to(tl.int64)
    tl.store(
        logs + at, tl.where(total > 0, anchor + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf")), mask=real
    )
    shown = mixed / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(sums + at[:, None] * WIDTH + column[None, :], shown, mask=real[:, None])


@triton.jit
def _join(
    sums, logs, sinks, out, kv_heads, nodes, groups, head_dim,
    SINKS: tl.constexpr, SPLITS: tl.constexpr, WIDTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    pair, row = tl.program_id(0), tl.program_id(1)
    b, h = pair // kv_heads, pair % kv_heads
    split = tl.arange(0, SPLITS)
    column = tl.arange(0, WIDTH)
    at = ((pair * SPLITS + split) * groups * nodes + row).to(tl.int64)
    log = tl.load(logs + at)
    head = h * groups + row // nodes
    top = tl.max(log, 0)
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * 1.4426950408889634
        top = tl.maximum(top, sink)
    weight = tl.exp2(log - top)
    total = tl.sum(weight, 0)
    if SINKS:
        total += tl.exp2(sink - top)
    part = tl.load(sums + at[:, None] * WIDTH + column[None, :])
    mixed = tl.sum(part * weight[:, None], 0) / total
    place = (b * nodes + row % nodes).to(tl.int64) * (kv_heads * groups) + head
    tl.store(out + place * head_dim + column, mixed.to(out.dtype.element_ty), mask=column < head_dim)


@functools.lru_cache(maxsize=8)
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def _splits(device: torch.device, pairs: int, tiles: int, slots: int) -> int:
    """Number of splits of a KV head's slots, a power of two: enough programs for the GPU, with at least a tile each.

    It depends on the size of the buffers and not on lengths, so that a captured graph stays valid while texts grow.
    """
    if device.type != "cuda":
        return 4
    wanted = triton.next_power_of_2(max(1, _multiprocessors(device.index or 0) // (pairs * tiles)))
    if tiles > 1:  # full tiles of queries are limited by computation: all programs should run at the same time
        wanted = max(1, wanted // 2)
    return min(_MAX_SPLITS, wanted, max(1, triton.next_power_of_2(slots // _MIN_SLOTS)))


def triton_decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    ancestors: Tensor,
    starts: Tensor | None = None,
    scaling: float | None = None,
    *,
    window: int | None = None,
    depths: Tensor | None = None,
    cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Decode attention; see :func:`saccade.inference.engine.attention.reference_decode_attention`.

    Args:
        query: ``[batch, heads, nodes, head_dim]``, bfloat16, float16 or float32; the last dimension must be contiguous,
            also that of ``keys`` and ``values``.
        keys: ``[batch, kv_heads, slots, head_dim]``.
        values: Like ``keys``.
        lengths: ``[batch]`` or ``[batch, kv_heads]``, any integer type.
        ancestors: ``[nodes]`` int64.
        starts: Of the shape and layout of ``lengths``, or ``None``.
        scaling: Factor of the scores.
        window: Places that a node sees, at least 64, so that no node lies before the window of another; or ``None``.
        depths: ``[nodes]``, any integer type; needed with a window.
        cap: Bound of the scores, or ``None``.
        sinks: ``[heads]``, contiguous, or ``None``.

    Returns:
        ``[batch, nodes, heads, head_dim]``.
    """
    kv_heads, slots = keys.shape[1], keys.shape[2]
    nodes = query.shape[2]
    return _launch(
        query, keys, values, lengths, ancestors, scaling, kv_heads,
        slots if window is None else min(slots, window + nodes), nodes,
        starts=starts, window=window, depths=depths, cap=cap, sinks=sinks,
    )  # fmt: skip


def triton_ragged_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bases: Tensor,
    lengths: Tensor,
    ancestors: Tensor,
    span: int,
    room: int,
    scaling: float | None = None,
    *,
    seen: Tensor | None = None,
    packed: Groups | None = None,
) -> Tensor:
    """Attention of units in a flat buffer, as its reference computes it.

    The reference is :func:`saccade.inference.engine.compressed.attention.reference_ragged_attention`.

    Args:
        query: ``[batch, heads, nodes, head_dim]``, bfloat16, float16 or float32; the last dimension contiguous.
        keys: ``[slots, head_dim]``; slots without a token must not hold NaN.
        values: Like ``keys``.
        bases: ``[batch, kv_heads]``, of the layout of ``lengths``.
        lengths: ``[batch, kv_heads]``.
        ancestors: ``[nodes]`` int64.
        span: Slots that the step has written.
        room: The most slots that a unit has in use.
        scaling: Factor of the scores.
        seen: ``[slots]`` booleans, or ``None``.
        packed: Further tokens of every unit, in few bits, or ``None``.

    Returns:
        ``[batch, nodes, heads, head_dim]``.
    """
    bases, lengths = bases.contiguous(), lengths.contiguous()
    return _launch(
        query, keys, values, lengths, ancestors, scaling, bases.shape[1],
        room if packed is None else room + GROUP * packed.most, span, bases=bases,
        seen=None if seen is None else seen.view(torch.uint8), packed=packed,
    )  # fmt: skip


def _launch(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    ancestors: Tensor,
    scaling: float | None,
    kv_heads: int,
    read: int,
    span: int,
    *,
    starts: Tensor | None = None,
    bases: Tensor | None = None,
    seen: Tensor | None = None,
    packed: Groups | None = None,
    window: int | None = None,
    depths: Tensor | None = None,
    cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Launches the kernels; ``read`` is the most slots that a program pair reads."""
    batch, heads, nodes, head_dim = query.shape
    groups = heads // kv_heads
    rows = groups * nodes
    block = min(64, max(16, triton.next_power_of_2(rows)))
    tiles = triton.cdiv(rows, block)
    splits = _splits(query.device, batch * kv_heads, tiles, read)
    width = max(16, triton.next_power_of_2(head_dim))
    sums = torch.empty(batch * kv_heads * splits * rows, width, dtype=torch.float32, device=query.device)
    logs = torch.empty(batch * kv_heads * splits * rows, dtype=torch.float32, device=query.device)
    out = torch.empty(batch, nodes, heads, head_dim, dtype=query.dtype, device=query.device)
    wide = query.element_size() > 2
    interpreted = query.device.type == "cpu"  # Triton's interpreter multiplies bfloat16 as if it were integers
    flat = bases is not None
    key_strides = (0, 0, keys.stride(0)) if flat else keys.stride()[:3]
    value_strides = (0, 0, values.stride(0)) if flat else values.stride()[:3]
    rows_of: dict[str, int] = dict.fromkeys(("HEAD", "KEY_STEPS", "KEY_ROW", "VALUE_STEPS", "VALUE_ROW"), 0)
    if packed is not None:
        item = keys.element_size()
        rows_of = {
            "HEAD": head_dim, "KEY_STEPS": ranges_bytes(head_dim, item), "KEY_ROW": packed.keys.shape[1],
            "VALUE_STEPS": ranges_bytes(GROUP, item), "VALUE_ROW": packed.values.shape[1],
        }  # fmt: skip
    few = (
        (lengths,) * 4
        if packed is None
        else (packed.keys, packed.values, packed.first.contiguous(), packed.counts.contiguous())
    )
    _attend[(splits, batch * kv_heads, tiles)](
        query, keys, values, lengths, lengths if starts is None else starts, lengths if bases is None else bases,
        ancestors if seen is None else seen, ancestors, ancestors if depths is None else depths, sums, logs, *few,
        head_dim**-0.5 if scaling is None else scaling, 1.0 if cap is None else cap, 0 if window is None else window,
        query.stride(0), query.stride(1), query.stride(2), *key_strides, *value_strides,
        lengths.stride(0), lengths.stride(1) if lengths.dim() == 2 else 0, kv_heads, nodes, span, groups, head_dim,
        HAS_STARTS=starts is not None, FLAT=flat, HOLES=seen is not None, WINDOW=window is not None,
        CAP=cap is not None, SPLITS=splits, ROWS=block, SLOTS=32 if wide else 64, WIDTH=width,
        PADDED=width != head_dim, PRECISION="ieee" if wide else "tf32", UPCAST=interpreted, num_warps=4,
        BITS=16 if packed is None else packed.bits, GROUP=GROUP, **rows_of, **early(query.device),
    )  # fmt: skip
    _join[(batch * kv_heads, rows)](
        sums,
        logs,
        logs if sinks is None else sinks,
        out,
        kv_heads,
        nodes,
        groups,
        head_dim,
        SINKS=sinks is not None,
        SPLITS=splits,
        WIDTH=width,
        num_warps=4,
        **early(query.device),
    )
    return out
