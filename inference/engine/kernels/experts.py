"""Triton kernels for mixtures of experts: they read the weights of the experts that a router has chosen, in place.

The choice never leaves the device: every program finds it in the router's logits. One row takes two launches behind the
router's: a program of the first computes some inner values of one chosen expert, a program of the second some outputs
of all of them. With several rows a program serves one expert and all rows: a row chooses an expert at most once, so its
place among the row's experts is the number of better logits, and each expert's weights are read once however many rows
chose it. Programs of experts that no row chose end at once.

The kernels are ours; their references are in :mod:`saccade.inference.engine.fused.reference`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saccade.inference.engine.fused.reference import Experts, Norm
from saccade.inference.engine.kernels.launch import early, follow
from saccade.inference.engine.kernels.linear import GATES, activated
from saccade.inference.engine.kernels.norms import triton_close

_MOST_ROWS = 64  # of one launch


@triton.jit
def _weights(logits, best, experts, lane, seen, NORMALISED: tl.constexpr, EXPERTS: tl.constexpr):
    """The weights of chosen experts: a softmax over their own logits, or theirs in one over all logits of the row."""
    top = tl.max(tl.where(seen, best, float("-inf")), 0)
    shares = tl.where(seen, tl.exp(best - top), 0.0)
    total = tl.sum(shares, 0)
    if not NORMALISED:
        every = tl.arange(0, EXPERTS)
        score = tl.load(logits + every, mask=every < experts, other=float("-inf")).to(tl.float32)
        total = tl.sum(tl.exp(score - top), 0)
    return shares / total


@triton.jit
def _open_row(
    inputs, logits, norm, weight, inner, chosen, experts, width, depth, eps,
    NORM: tl.constexpr, SHIFT: tl.constexpr, GATED: tl.constexpr, EVEN: tl.constexpr, EXPERTS: tl.constexpr,
    OUTPUTS: tl.constexpr, DEPTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    block, place = tl.program_id(0), tl.program_id(1)
    every = tl.arange(0, EXPERTS)
    score = tl.load(logits + every, mask=every < experts, other=float("-inf")).to(tl.float32)
    # the expert of this place: the best one after those of the places before it
    expert = tl.argmax(score, 0, tie_break_left=True)
    for _ in range(place):
        score = tl.where(every == expert, float("-inf"), score)
        expert = tl.argmax(score, 0, tie_break_left=True)
    expert = tl.minimum(expert, experts - 1)  # logits that are no numbers must not lead elsewhere
    if block == 0:
        tl.store(chosen + place, expert)
    column = block * OUTPUTS + tl.arange(0, OUTPUTS)
    wanted = column < width
    step = tl.arange(0, DEPTH)
    own = weight + expert.to(tl.int64) * (2 * width * depth)
    gate_place = own + column[:, None].to(tl.int64) * depth + step[None, :]
    up_place = gate_place + width.to(tl.int64) * depth
    gate = tl.zeros([OUTPUTS, DEPTH], tl.float32)
    up = tl.zeros([OUTPUTS, DEPTH], tl.float32)
    square = tl.zeros([DEPTH], tl.float32)
    for at in range(0, depth, DEPTH):
        here = at + step < depth
        inside = wanted[:, None]
        if not EVEN:
            inside = inside & here[None, :]
        g = tl.load(gate_place + at, mask=inside, other=0.0)
        u = tl.load(up_place + at, mask=inside, other=0.0)
        x = tl.load(inputs + at + step, mask=here, other=0.0)
        if NORM:
            wide = x.to(tl.float32)
            square += wide * wide
            x = (wide * (tl.load(norm + at + step, mask=here, other=0.0).to(tl.float32) + SHIFT)).to(x.dtype)
        gate += g.to(tl.float32) * x.to(tl.float32)[None, :]
        up += u.to(tl.float32) * x.to(tl.float32)[None, :]
    first, second = tl.sum(gate, 1), tl.sum(up, 1)
    if NORM:
        shrink = tl.rsqrt(tl.sum(square, 0) / depth + eps)
        first, second = first * shrink, second * shrink
    tl.store(inner + place * width + column, (activated(first, GATED) * second).to(inner.dtype.element_ty), mask=wanted)


@triton.jit
def _shut_row(
    inner, logits, chosen, weight, residual, out, experts, width, depth, factor, count,
    NORMALISED: tl.constexpr, EVEN: tl.constexpr, EXPERTS: tl.constexpr, COUNT: tl.constexpr, OUTPUTS: tl.constexpr,
    STEP: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    column = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    wanted = column < depth
    lane = tl.arange(0, COUNT)
    seen = lane < count
    expert = tl.load(chosen + lane, mask=seen, other=0)
    best = tl.load(logits + expert, mask=seen, other=0.0).to(tl.float32)
    share = _weights(logits, best, experts, lane, seen, NORMALISED, EXPERTS)
    step = tl.arange(0, STEP)
    rows = expert.to(tl.int64)[:, None] * depth + column[None, :]
    place = weight + rows[:, :, None] * width + step[None, None, :]
    source = inner + lane[:, None] * width + step[None, :]
    total = tl.zeros([COUNT, OUTPUTS, STEP], tl.float32)
    for at in range(0, width, STEP):
        here = at + step < width
        inside = seen[:, None, None] & wanted[None, :, None]
        if not EVEN:
            inside = inside & here[None, None, :]
        w = tl.load(place + at, mask=inside, other=0.0)
        x = tl.load(source + at, mask=seen[:, None] & here[None, :], other=0.0)
        total += w.to(tl.float32) * x.to(tl.float32)[:, None, :]
    result = tl.sum(tl.sum(total, 2) * share[:, None], 0)
    result = result * factor + tl.load(residual + column, mask=wanted, other=0.0).to(tl.float32)
    tl.store(out + column, result.to(out.dtype.element_ty), mask=wanted)


@triton.jit
def _rank(logits, expert, experts, row, real, logits_row, EXPERTS: tl.constexpr):
    """An expert's logit in every row, and how many of the row's experts are better; of equal ones the first."""
    every = tl.arange(0, EXPERTS)
    base = logits + row * logits_row
    seen = real[:, None] & (every < experts)[None, :]
    score = tl.load(base[:, None] + every[None, :], mask=seen, other=float("-inf")).to(tl.float32)
    own = tl.load(base + expert, mask=real, other=float("-inf")).to(tl.float32)
    better = (score > own[:, None]) | ((score == own[:, None]) & (every < expert)[None, :])
    return score, own, tl.sum(better.to(tl.int32), 1)


@triton.jit
def _open_rows(
    inputs, logits, weight, inner, picked, rows, experts, width, depth, count, input_row, logits_row,
    GATED: tl.constexpr, EVEN: tl.constexpr, EXPERTS: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    block, expert = tl.program_id(0), tl.program_id(1)
    row = tl.arange(0, ROWS)
    real = row < rows
    _score, logit, rank = _rank(logits, expert, experts, row, real, logits_row, EXPERTS)
    chosen = real & (rank < count)
    if tl.max(chosen.to(tl.int32), 0) == 0:
        return
    if block == 0:
        tl.store(picked + row * count + rank, logit, mask=chosen)
    column = block * OUTPUTS + tl.arange(0, OUTPUTS)
    wanted = column < width
    step = tl.arange(0, DEPTH)
    own = weight + expert.to(tl.int64) * (2 * width * depth)
    gate_place = own + column[:, None].to(tl.int64) * depth + step[None, :]
    up_place = gate_place + width.to(tl.int64) * depth
    source = inputs + row[:, None] * input_row + step[None, :]
    gate = tl.zeros([ROWS, OUTPUTS], tl.float32)
    up = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for at in range(0, depth, DEPTH):
        here = at + step < depth
        inside = wanted[:, None]
        if not EVEN:
            inside = inside & here[None, :]
        x = tl.load(source + at, mask=chosen[:, None] & here[None, :], other=0.0)
        g = tl.load(gate_place + at, mask=inside, other=0.0)
        u = tl.load(up_place + at, mask=inside, other=0.0)
        if UPCAST:
            x, g, u = x.to(tl.float32), g.to(tl.float32), u.to(tl.float32)
        gate += tl.dot(x, tl.trans(g), input_precision=PRECISION)
        up += tl.dot(x, tl.trans(u), input_precision=PRECISION)
    place = (row * count + rank)[:, None] * width + column[None, :]
    made = activated(gate, GATED) * up
    tl.store(inner + place, made.to(inner.dtype.element_ty), mask=chosen[:, None] & wanted[None, :])


@triton.jit
def _shut_rows(
    inner, logits, picked, weight, sums, rows, experts, width, depth, count, logits_row,
    NORMALISED: tl.constexpr, EVEN: tl.constexpr, EXPERTS: tl.constexpr, COUNT: tl.constexpr, ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    block, expert = tl.program_id(0), tl.program_id(1)
    row = tl.arange(0, ROWS)
    real = row < rows
    score, logit, rank = _rank(logits, expert, experts, row, real, logits_row, EXPERTS)
    chosen = real & (rank < count)
    if tl.max(chosen.to(tl.int32), 0) == 0:
        return
    lane = tl.arange(0, COUNT)
    seen = chosen[:, None] & (lane < count)[None, :]
    best = tl.load(picked + row[:, None] * count + lane[None, :], mask=seen, other=float("-inf"))
    top = tl.max(best, 1)
    top = tl.where(chosen, top, 0.0)
    if NORMALISED:
        total = tl.sum(tl.exp(best - top[:, None]), 1)
    else:
        total = tl.sum(tl.exp(score - top[:, None]), 1)
    share = tl.where(chosen, tl.exp(logit - top) / tl.where(chosen, total, 1.0), 0.0)
    column = block * OUTPUTS + tl.arange(0, OUTPUTS)
    wanted = column < depth
    step = tl.arange(0, DEPTH)
    place = weight + (expert.to(tl.int64) * depth + column)[:, None] * width + step[None, :]
    source = inner + (row * count + rank)[:, None] * width + step[None, :]
    product = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for at in range(0, width, DEPTH):
        here = at + step < width
        inside = wanted[:, None]
        if not EVEN:
            inside = inside & here[None, :]
        x = tl.load(source + at, mask=chosen[:, None] & here[None, :], other=0.0)
        w = tl.load(place + at, mask=inside, other=0.0)
        if UPCAST:
            x, w = x.to(tl.float32), w.to(tl.float32)
        product += tl.dot(x, tl.trans(w), input_precision=PRECISION)
    target = sums + (rank * rows + row)[:, None].to(tl.int64) * depth + column[None, :]
    tl.store(target, product * share[:, None], mask=chosen[:, None] & wanted[None, :])


def _row_tiles(width: int, depth: int, count: int, size: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """For one row: outputs and inputs of a program's tile and its warps, of the first and of the second kernel.

    The fastest of those measured on an H200 for 8 experts of Qwen3 30B-A3B in bfloat16.
    """
    whole = triton.next_power_of_2(depth)
    first = (8, max(64, min(512 // size, whole)), 4)
    places = triton.next_power_of_2(count)
    step = max(64, min(2048 // size // places, triton.next_power_of_2(width)))
    return first, (4, step, 4)


def _rows_tiles(size: int) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """For several rows: outputs and inputs of a program's tile, its warps and stages, of both kernels.

    The fastest of those measured on an H200 for 2 to 32 rows of Qwen3 30B-A3B.
    """
    if size > 2:  # exact products of float32 hold several copies of their operands in shared memory
        return (32, 32, 4, 2), (32, 32, 4, 2)
    return (64, 128, 4, 3), (64, 128, 4, 4)


def triton_experts(
    inputs: Tensor,
    logits: Tensor,
    experts: Experts,
    residual: Tensor,
    *,
    norm: Norm | None = None,
    factor: float = 1.0,
) -> Tensor:
    """The chosen experts of one row; see :func:`saccade.inference.engine.fused.reference.reference_experts`.

    Args:
        inputs: ``[1, depth]``, contiguous.
        logits: ``[1, experts or more]``.
        experts: Their weights, contiguous.
        residual: ``[1, depth]``.
        norm: Of the input, or ``None``.
        factor: Of what is added.

    Returns:
        ``[1, depth]``.
    """
    number, depth, width = experts.down.shape
    size, device = inputs.element_size(), inputs.device
    inner = torch.empty(experts.chosen, width, dtype=inputs.dtype, device=device)
    chosen = torch.empty(experts.chosen, dtype=torch.int32, device=device)
    out = torch.empty_like(residual)
    lanes = triton.next_power_of_2(number)
    (block, step, warps), (outputs, part, last_warps) = _row_tiles(width, depth, experts.chosen, size)
    _open_row[(triton.cdiv(width, block), experts.chosen)](
        inputs, logits, inputs if norm is None else norm.weight, experts.gate_up, inner, chosen, number, width, depth,
        0.0 if norm is None else norm.eps, NORM=norm is not None, SHIFT=0.0 if norm is None else norm.shift,
        GATED=GATES[experts.gated], EVEN=depth % step == 0, EXPERTS=lanes, OUTPUTS=block, DEPTH=step, num_warps=warps,
        **early(device),
    )  # fmt: skip
    _shut_row[(triton.cdiv(depth, outputs),)](
        inner, logits, chosen, experts.down, residual, out, number, width, depth, factor, experts.chosen,
        NORMALISED=experts.normalised, EVEN=width % part == 0, EXPERTS=lanes,
        COUNT=triton.next_power_of_2(experts.chosen), OUTPUTS=outputs, STEP=part, num_warps=last_warps, **early(device),
    )  # fmt: skip
    return out


def triton_experts_add(
    inputs: Tensor, logits: Tensor, experts: Experts, residual: Tensor, norm: Norm, *, factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The chosen experts of several rows; see ``reference_experts_add`` of the fused step.

    Args:
        inputs: ``[rows, depth]``, last dimension contiguous.
        logits: ``[rows, experts or more]``, last dimension contiguous.
        experts: Their weights, contiguous.
        residual: ``[rows, depth]``, contiguous.
        norm: Of the sum.
        factor: Of what is added.

    Returns:
        The residual stream and its normalized form, ``[rows, depth]`` each.
    """
    whole = len(inputs)
    number, depth, width = experts.down.shape
    size, device, count = inputs.element_size(), inputs.device, experts.chosen
    parts = []
    for start in range(0, whole, _MOST_ROWS):
        rows = min(_MOST_ROWS, whole - start)
        given, scores = inputs[start : start + rows], logits[start : start + rows]
        inner = torch.empty(rows, count, width, dtype=inputs.dtype, device=device)
        picked = torch.empty(rows, count, dtype=torch.float32, device=device)
        sums = torch.empty(count, rows, depth, dtype=torch.float32, device=device)
        opened, shut = _rows_tiles(size)
        shared = {
            "EXPERTS": triton.next_power_of_2(number), "ROWS": max(16, triton.next_power_of_2(rows)),
            "PRECISION": "ieee" if size > 2 else "tf32", "UPCAST": device.type == "cpu", **early(device),
        }  # fmt: skip
        block, step, warps, stages = opened
        _open_rows[(triton.cdiv(width, block), number)](
            given, scores, experts.gate_up, inner, picked, rows, number, width, depth, count, given.stride(0),
            scores.stride(0), GATED=GATES[experts.gated], EVEN=depth % step == 0, OUTPUTS=block, DEPTH=step,
            num_warps=warps, num_stages=stages, **shared,
        )  # fmt: skip
        block, step, warps, stages = shut
        _shut_rows[(triton.cdiv(depth, block), number)](
            inner, scores, picked, experts.down, sums, rows, number, width, depth, count, scores.stride(0),
            NORMALISED=experts.normalised, EVEN=width % step == 0, COUNT=triton.next_power_of_2(count), OUTPUTS=block,
            DEPTH=step, num_warps=warps, num_stages=stages, **shared,
        )  # fmt: skip
        parts.append(sums)
    return triton_close(parts[0] if len(parts) == 1 else torch.cat(parts, 1), None, residual, norm, None, factor)
