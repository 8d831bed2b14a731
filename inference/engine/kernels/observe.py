"""Triton kernels that compute how some rows of a prompt attend to all of its keys (ours).

The weights of all rows, heads and keys are never in memory: the first kernel finds the largest logit of every row and
the sum of its exponentials, the second computes the weights again and adds them up over the rows.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from saccade.inference.engine.kernels.launch import early, follow

MOST_ROWS, MOST_WIDTH = 64, 128
"""Rows, and width of a head, with which the kernels fit into a multiprocessor."""
_SPLITS = 32
_TILE = 64


@triton.jit
def _logits(
    query, keys, slot, row, column, first_row, rows, head_dim, query_n, key_s, scale,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    # of a query head, in units of the logarithm to base 2; -inf where a row does not see a key
    wide = (column < head_dim)[None, :]
    q = tl.load(query + row[:, None] * query_n + column[None, :], mask=(row < rows)[:, None] & wide, other=0.0)
    k = tl.load(
        keys + slot[:, None].to(tl.int64) * key_s + column[None, :],
        mask=(slot < first_row + rows)[:, None] & wide,
        other=0.0,
    )
    if UPCAST:
        q, k = q.to(tl.float32), k.to(tl.float32)
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * 1.4426950408889634)
    seen = (slot[None, :] <= first_row + row[:, None]) & (row < rows)[:, None]
    return tl.where(seen, logits, float("-inf"))


@triton.jit
def _peaks(
    query, keys, tops, totals, query_h, query_n, key_h, key_s, groups, first_row, rows, head_dim, scale,
    SPLITS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    head, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, column = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    part = tl.cdiv(tl.cdiv(first_row + rows, SPLITS), TILE) * TILE
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for begin in range(split * part, tl.minimum(split * part + part, first_row + rows), TILE):
        logits = _logits(
            query + head * query_h, keys + head // groups * key_h, begin + tl.arange(0, TILE), row, column, first_row,
            rows, head_dim, query_n, key_s, scale, PRECISION, UPCAST,
        )  # fmt: skip
        best = tl.maximum(top, tl.max(logits, 1))
        anchor = tl.where(best == float("-inf"), 0.0, best)
        total = total * tl.exp2(top - anchor) + tl.sum(tl.exp2(logits - anchor[:, None]), 1)
        top = best
    at = (head * SPLITS + split) * ROWS + row
    tl.store(tops + at, top)
    tl.store(totals + at, total)


@triton.jit
def _weigh(
    query, keys, logs, tops, mean, alive, last, query_h, query_n, key_h, key_s, groups, first_row, rows, keys_each,
    head_dim, scale, least, late,
    ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    LATE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    kv_head, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, column = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    slot = tile * TILE + tl.arange(0, TILE)
    weights = tl.zeros([TILE], tl.float32)
    apart = tl.zeros([TILE], tl.float32)
    living = tl.zeros([ROWS], tl.float32)
    for member in range(groups):
        head = kv_head * groups + member
        logits = _logits(
            query + head * query_h, keys + kv_head * key_h, slot, row, column, first_row, rows, head_dim, query_n,
            key_s, scale, PRECISION, UPCAST,
        )  # fmt: skip
        log = tl.load(logs + head * ROWS + row)
        top = tl.load(tops + head * ROWS + row)
        share = tl.exp2(logits - log[:, None])
        weights += tl.sum(share, 0)
        if LATE:
            apart += tl.sum(tl.where((row >= rows - late)[:, None], share, 0.0), 0)
        living += tl.sum((logits >= top[:, None] + least).to(tl.float32), 1)
    alive_share = tl.sum(tl.where(row < rows, living / (first_row + row + 1).to(tl.float32), 0.0), 0)
    tl.store(mean + kv_head * keys_each + slot, weights / (groups * rows), mask=slot < keys_each)
    tl.store(alive + kv_head * tl.num_programs(1) + tile, alive_share / (groups * rows))
    if LATE:
        tl.store(last + kv_head * keys_each + slot, apart / (groups * late), mask=slot < keys_each)


def triton_attention_scores(
    query: Tensor, keys: Tensor, first: int, scaling: float, alive_share: float = 0.01, late: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of some rows; see :func:`saccade.inference.compression.observation.attention_scores`.

    Args:
        query: ``[heads, rows, D]`` of the positions ``first .. first + rows - 1``, last dimension contiguous.
        keys: ``[kv_heads, first + rows, D]``, last dimension contiguous.
        first: Position of the first row.
        scaling: Factor of the logits.
        alive_share: A key is alive if it has at least this share of the row's largest weight.
        late: Last rows whose mean weights are wanted apart too.

    Returns:
        ``[kv_heads, first + rows]``, ``[kv_heads]``, and ``[kv_heads, first + rows]`` or, without late rows,
        ``[kv_heads, 0]``, all float32.
    """
    heads, rows, width = query.shape
    kv_heads, count, _ = keys.shape
    device, groups = query.device, heads // kv_heads
    padded = max(16, triton.next_power_of_2(rows))
    tops, totals = (torch.empty(heads, _SPLITS, padded, device=device) for _ in range(2))
    numbers = (query.stride(0), query.stride(1), keys.stride(0), keys.stride(1), groups, first, rows)
    shape = {
        "ROWS": padded, "TILE": _TILE, "WIDTH": max(16, triton.next_power_of_2(width)),
        "PRECISION": "ieee" if query.element_size() > 2 else "tf32", "UPCAST": device.type == "cpu",
    }  # fmt: skip
    _peaks[(heads, _SPLITS)](
        query, keys, tops, totals, *numbers, width, scaling, SPLITS=_SPLITS, **shape, num_warps=4, **early(device)
    )
    top = tops.amax(1)  # a row sees at least itself, but padding sees nothing
    anchor = top.masked_fill(top == -torch.inf, 0.0)
    log = anchor + ((tops - anchor[:, None]).exp2() * totals).sum(1).log2()
    log = log.masked_fill(log == -torch.inf, 0.0)
    tiles = triton.cdiv(count, _TILE)
    mean = torch.empty(kv_heads, count, device=device)
    alive = torch.empty(kv_heads, tiles, device=device)
    last = torch.empty(kv_heads, count if late else 0, device=device)
    _weigh[(kv_heads, tiles)](
        query, keys, log, anchor, mean, alive, last, *numbers, count, width, scaling,
        math.log2(alive_share) if alive_share else -torch.inf, late, **shape, LATE=late > 0, num_warps=4,
        **early(device),
    )  # fmt: skip
    return mean, alive.sum(1), last
