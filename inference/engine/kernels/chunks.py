"""Triton kernels that choose chunks of keys and values and copy them from pinned host memory to the device (ours).

Three kernels score the chunks, choose the best of every unit, and copy what no slot holds yet. The last one reads host
memory through its device address, with indices that the device chose itself. So retrieval needs neither the host nor a
second stream, and may be part of a CUDA graph. A unit is a KV head of a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saccade.inference.compression.precision import CHANNEL, TOKEN, ranges_bytes, row_bytes
from saccade.inference.engine.kernels.launch import early, follow

MOST_CHUNKS = 16_384
"""Chunks of a unit: one program holds the scores of all of them."""


@triton.jit
def _score(
    query, summaries, blocked, units, first, many, asking, scores, query_b, query_h, batch, groups, head_dim,
    ASKING: tl.constexpr, BOUNDS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    go = 1
    if ASKING:
        go = tl.load(asking).to(tl.int32)
    if go != 0:
        unit = tl.program_id(0).to(tl.int64)
        chunks = tl.load(many + unit)
        b = tl.minimum(tl.load(units + 2 * unit), batch - 1)  # units of rows that have ended ask for another row
        h = tl.load(units + 2 * unit + 1)
        row, column = tl.arange(0, ROWS), tl.arange(0, WIDTH)
        chunk = tl.program_id(1) * TILE + tl.arange(0, TILE)
        wide = (column < head_dim)[None, :]
        place = query + b * query_b + (h * groups + row)[:, None] * query_h + column[None, :]
        q = tl.load(place, mask=(row < groups)[:, None] & wide, other=0.0)
        planes = 2 if BOUNDS else 1
        begin = tl.load(first + unit)
        at = summaries + ((begin + chunk) * planes)[:, None] * head_dim + column[None, :]
        inside = (chunk < chunks)[:, None] & wide
        low = tl.load(at, mask=inside, other=0.0)
        if BOUNDS:
            high = tl.load(at + head_dim, mask=inside, other=0.0)
        if UPCAST:
            q, low = q.to(tl.float32), low.to(tl.float32)
            if BOUNDS:
                high = high.to(tl.float32)
        if BOUNDS:
            score = tl.dot(tl.minimum(q, 0.0).to(q.dtype), tl.trans(low), input_precision=PRECISION)
            score += tl.dot(tl.maximum(q, 0.0).to(q.dtype), tl.trans(high), input_precision=PRECISION)
        else:
            score = tl.dot(q, tl.trans(low), input_precision=PRECISION)
        best = tl.max(tl.where((row < groups)[:, None], score, float("-inf")), 0)
        shut = tl.load(blocked + begin + chunk, mask=chunk < chunks, other=1)
        tl.store(scores + begin + chunk, tl.where(shut != 0, float("-inf"), best), mask=chunk < chunks)


@triton.jit
def _choose(
    scores, counts, first, many, slots, where, wants, queue, missing, asking, slots_each,
    ASKING: tl.constexpr, BITS: tl.constexpr, CHUNKS: tl.constexpr, SLOTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    unit = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, SLOTS)
    own = slot < slots_each
    go = 1
    if ASKING:
        go = tl.load(asking).to(tl.int32)
    if go == 0:
        tl.store(missing + unit * slots_each + slot, tl.zeros([SLOTS], tl.uint8), mask=own)
    else:
        count = tl.load(counts + unit)
        chunk = tl.arange(0, CHUNKS)
        begin = tl.load(first + unit)
        real = chunk < tl.load(many + unit)
        score = tl.load(scores + begin + chunk, mask=real, other=float("-inf"))
        # integers in the order of the scores, from 1 on; 0 is what lies behind the chunks
        bits = score.to(tl.int32, bitcast=True)
        key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64) + 2147483649
        key = tl.where(real, key >> (32 - BITS), -1)
        # the largest key that at least `count` chunks reach, two bits in a turn: three counts are one sum
        least = count * 0
        for turn in tl.static_range(0, BITS // 2 + 1):
            shift = BITS - 2 * turn
            step = tl.full([], 1, tl.int64) << shift
            reach = (key >= least + step).to(tl.int64)
            reach += (key >= least + 2 * step).to(tl.int64) << 20
            reach += (key >= least + 3 * step).to(tl.int64) << 40
            found = tl.sum(reach, 0)
            digit = ((found & 0xFFFFF) >= count).to(tl.int64)
            digit += (((found >> 20) & 0xFFFFF) >= count).to(tl.int64)
            digit += ((found >> 40) >= count).to(tl.int64)
            least += digit * step
        above, level = key > least, key == least
        left = count - tl.sum(above.to(tl.int64), 0)
        wanted = above | (level & (tl.cumsum(level.to(tl.int32), 0) <= left))
        held = tl.load(where + begin + chunk, mask=real, other=-1) >= 0
        lacking = wanted & ~held
        turn_of = tl.cumsum(lacking.to(tl.int32), 0) - 1
        tl.store(queue + unit * slots_each + turn_of, chunk, mask=lacking)
        tl.store(wants + begin + chunk, wanted.to(tl.uint8), mask=real)
        tl.debug_barrier()  # all threads read what others have written
        mine = slot < count
        old = tl.load(slots + unit * slots_each + slot, mask=mine, other=-1)
        filled = mine & (old >= 0)
        stays = filled & (tl.load(wants + begin + old, mask=filled, other=0) != 0)
        free = mine & ~stays
        # as many slots are free as chunks are lacking: a unit wants as many chunks as it has slots
        new = tl.load(queue + unit * slots_each + tl.cumsum(free.to(tl.int32), 0) - 1, mask=free, other=0).to(tl.int64)
        tl.store(where + begin + old, tl.full([SLOTS], -1, tl.int32), mask=filled & ~stays)
        tl.store(where + begin + new, slot, mask=free)
        tl.store(slots + unit * slots_each + slot, new, mask=free)
        tl.store(missing + unit * slots_each + slot, free.to(tl.uint8), mask=own)


@triton.jit
def _copy(
    own, chunk, target, begin, CHUNK: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Writes the numbers of a chunk. Memory begins at a multiple of 16 bytes, which a thread can read at once."""
    source = tl.multiple_of(own.to(tl.pointer_type(target.dtype.element_ty)), 16)
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (row < CHUNK)[:, None] & (column < WIDTH)[None, :]
    number = tl.load(source + (chunk * CHUNK + row)[:, None] * WIDTH + column[None, :], mask=inside)
    tl.store(target + (begin + row)[:, None] * WIDTH + column[None, :], number, mask=inside)


@triton.jit
def _unpack(
    address, target, begin, CHUNK: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BITS: tl.constexpr, STEPS: tl.constexpr, BY_TOKEN: tl.constexpr,
):  # fmt: skip
    """Writes the numbers of a packed chunk; each byte of it is read once."""
    kind = target.dtype.element_ty
    parts: tl.constexpr = 8 // BITS  # dimensions in a byte, which lie `each` apart
    each: tl.constexpr = WIDTH // parts
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS // parts)
    inside = (row < CHUNK)[:, None] & (column < each)[None, :]
    scales = tl.multiple_of(address.to(tl.pointer_type(kind)), 16)
    packed = tl.multiple_of(address.to(tl.pointer_type(tl.uint8)), 16) + STEPS
    both = tl.load(packed + row[:, None] * each + column[None, :], mask=inside, other=0)
    if BY_TOKEN:  # one load of many threads: what few threads can load, each thread would load by itself
        token = tl.arange(0, 2 * ROWS)
        pair = tl.load(scales + token % ROWS + token // ROWS * CHUNK, mask=token % ROWS < CHUNK, other=0.0)
        scale, low = tl.split(tl.trans(tl.reshape(pair, [2, ROWS])))
        scale, low = scale[:, None], low[:, None]
    for part in tl.static_range(parts):
        step = both
        if BITS == 4:
            step = (both >> 4) if part else (both & 15)
        if not BY_TOKEN:
            scale = tl.load(scales + part * each + column, mask=column < each, other=0.0)[None, :]
            low = tl.load(scales + WIDTH + part * each + column, mask=column < each, other=0.0)[None, :]
        if kind == tl.float64:
            number = low + step.to(tl.float64) * scale
        else:
            number = low.to(tl.float32) + step.to(tl.float32) * scale.to(tl.float32)
        place = target + (begin + row)[:, None] * WIDTH + part * each + column[None, :]
        tl.store(place, number.to(kind), mask=inside)


@triton.jit
def _fetch(
    hosts, keys, values, seen, filled, slots, missing, first, places, slots_each,
    CHUNK: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BITS: tl.constexpr,
    KEY_STEPS: tl.constexpr, KEY_ROW: tl.constexpr, VALUE_STEPS: tl.constexpr, VALUE_ROW: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    unit, slot, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    at = unit * slots_each + slot
    if tl.load(missing + at) != 0:
        # where the host's memory lies is not part of a captured step: another prompt lies elsewhere
        own = tl.load(hosts + part)
        chunk = tl.load(first + unit) + tl.load(slots + at)
        begin = tl.load(places + unit) + slot * CHUNK
        if part == 0:
            if BITS == 16:
                _copy(own, chunk, keys, begin, CHUNK=CHUNK, WIDTH=WIDTH, ROWS=ROWS, COLUMNS=COLUMNS)
            else:
                _unpack(
                    own + chunk * KEY_ROW, keys, begin, CHUNK=CHUNK, WIDTH=WIDTH, ROWS=ROWS, COLUMNS=COLUMNS,
                    BITS=BITS, STEPS=KEY_STEPS, BY_TOKEN=False,
                )  # fmt: skip
        else:
            if BITS == 16:
                _copy(own, chunk, values, begin, CHUNK=CHUNK, WIDTH=WIDTH, ROWS=ROWS, COLUMNS=COLUMNS)
            else:
                _unpack(
                    own + chunk * VALUE_ROW, values, begin, CHUNK=CHUNK, WIDTH=WIDTH, ROWS=ROWS, COLUMNS=COLUMNS,
                    BITS=BITS, STEPS=VALUE_STEPS, BY_TOKEN=True,
                )  # fmt: skip
            row = tl.arange(0, ROWS)
            held = tl.load(filled + chunk * CHUNK + row, mask=row < CHUNK, other=0)
            tl.store(seen + begin + row, held, mask=row < CHUNK)


def triton_choose(
    query: Tensor,
    units: Tensor,
    counts: Tensor,
    first: Tensor,
    many: Tensor,
    summaries: Tensor,
    blocked: Tensor,
    slots: Tensor,
    where: Tensor,
    longest: int,
    kv_heads: int,
    asking: Tensor | None = None,
) -> Tensor:
    """Gives the best chunks of every unit a slot; those that have one keep it.

    What :func:`saccade.inference.compression.chunks.top_chunks` and ``replace_slots`` compute, except that scores of
    16-bit queries are compared by their first 16 bits. Of equal scores the first chunks are taken.

    Args:
        query: ``[batch, heads, head_dim]``, last dimension contiguous.
        units: ``[units, 2]`` int64: row and KV head; rows beyond the batch have ended.
        counts: ``[units]`` int64: slots of every unit, at most its chunks.
        first: ``[units]`` int64: first chunk of every unit.
        many: ``[units]`` int64: chunks of every unit.
        summaries: ``[chunks, head_dim]`` or ``[chunks, 2, head_dim]``, contiguous.
        blocked: ``[chunks]`` booleans: chunks that are not taken while a unit has others.
        slots: ``[units, slots]`` int64: chunk of every slot, counted from the unit's first, -1 for none; written.
        where: ``[chunks]`` int32: slot of every chunk, -1 for none; written.
        longest: The most chunks of a unit.
        kv_heads: KV heads of the layer.
        asking: One number, 0 if nothing is to be chosen; ``None`` is that something is.

    Returns:
        ``[units, slots]`` uint8: slots whose chunk has to be fetched.

    Raises:
        ValueError: More than 16,384 chunks of a unit.
    """
    if longest > MOST_CHUNKS:
        raise ValueError(f"a unit must have at most {MOST_CHUNKS} chunks, got {longest}: choose longer chunks.")
    (count, each), total = slots.shape, len(blocked)
    batch, heads, head_dim = query.shape
    groups, narrow = heads // kv_heads, query.element_size() == 2
    device = query.device
    scores = torch.empty(total, dtype=torch.float32, device=device)
    wants = torch.empty(total, dtype=torch.uint8, device=device)
    queue = torch.empty(count, each, dtype=torch.int32, device=device)
    missing = torch.empty(count, each, dtype=torch.uint8, device=device)
    tile = 64
    flag, asked = counts if asking is None else asking, asking is not None
    _score[(count, triton.cdiv(longest, tile))](
        query, summaries, blocked.view(torch.uint8), units, first, many, flag, scores, query.stride(0),
        query.stride(1), batch, groups, head_dim, ASKING=asked, BOUNDS=summaries.ndim == 3,
        ROWS=max(16, triton.next_power_of_2(groups)), TILE=tile, WIDTH=max(16, triton.next_power_of_2(head_dim)),
        PRECISION="tf32" if narrow else "ieee", UPCAST=device.type == "cpu", num_warps=4, **early(device),
    )  # fmt: skip
    padded = max(16, triton.next_power_of_2(longest))
    _choose[(count,)](
        scores, counts, first, many, slots, where, wants, queue, missing, flag, each, ASKING=asked,
        BITS=16 if narrow else 32, CHUNKS=padded, SLOTS=max(16, triton.next_power_of_2(each)),
        num_warps=16 if padded >= 4096 else 8, **early(device),
    )  # fmt: skip
    return missing


def triton_fetch(
    hosts: Tensor,
    keys: Tensor,
    values: Tensor,
    seen: Tensor,
    filled: Tensor,
    slots: Tensor,
    missing: Tensor,
    first: Tensor,
    places: Tensor,
    bits: int = 16,
) -> None:
    """Copies the chunk of every slot that ``missing`` marks, and unpacks it on the way.

    Args:
        hosts: ``[2]`` int64 on the device: addresses of the keys and of the values of all chunks, in pinned host memory
            or on the device. With 16 bits they are ``[chunks, chunk, head_dim]`` each, as precise as ``keys``; with
            fewer, rows of :func:`saccade.inference.compression.precision.packed`, at multiples of 16 bytes.
        keys: ``[slots, head_dim]`` on the device; written.
        values: Like ``keys``.
        seen: ``[slots]`` booleans; written.
        filled: ``[chunks, chunk]`` booleans: which places of a chunk hold a token.
        slots: ``[units, slots]`` chunk of every slot, counted from the unit's first.
        missing: ``[units, slots]`` booleans or uint8.
        first: ``[units]`` first chunk of every unit.
        places: ``[units]`` first slot of every unit.
        bits: 16, 8 or 4.
    """
    chunk, width, item = filled.shape[1], keys.shape[1], keys.element_size()
    _fetch[(*slots.shape, 2)](
        hosts, keys, values, seen.view(torch.uint8), filled.view(torch.uint8), slots,
        missing.contiguous().view(torch.uint8), first, places, slots.shape[1], CHUNK=chunk, WIDTH=width,
        ROWS=max(2, triton.next_power_of_2(chunk)), COLUMNS=max(16, triton.next_power_of_2(width)), BITS=bits,
        KEY_STEPS=ranges_bytes(width, item), KEY_ROW=row_bytes(chunk, width, item, bits, CHANNEL),
        VALUE_STEPS=ranges_bytes(chunk, item), VALUE_ROW=row_bytes(chunk, width, item, bits, TOKEN),
        # one warp for a packed chunk: several would each read its ranges; sums are rounded as torch rounds them
        num_warps=4 if bits == 16 else 1, enable_fp_fusion=False, **early(keys.device),
    )  # fmt: skip
