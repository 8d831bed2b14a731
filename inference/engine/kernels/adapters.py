"""What LoRA adapters add to the projections of few rows: one small kernel before them, and a part of theirs.

An adapter has few inner values, but each is a product over the whole depth. Many programs compute parts of the depth at
the same time, and the kernel of the projection adds the parts up. Adapters are often in float32 on a model in half
precision: their products then run on tensor cores in TF32, which is more precise than the projections that they are
added to. The kernels are ours; the reference is :func:`saccade.inference.engine.fused.reference.project`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saccade.inference.engine.fused.reference import LowRank, Norm
from saccade.inference.engine.kernels.launch import early, follow

_OUTPUTS = 16  # inner values of a program


@triton.jit
def _inner(
    inputs, down_0, down_1, down_2, norm, low, rows, depth, rank_0, rank_1, rank_2, input_row,
    NORM: tl.constexpr, SHIFT: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr,
    PARTS: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    part, which = tl.program_id(0), tl.program_id(1)
    down, rank, first = down_0, rank_0, 0
    if which == 2:
        down, rank, first = down_2, rank_2, rank_0 + rank_1
    elif which == 1:
        down, rank, first = down_1, rank_1, rank_0
    lane = tl.program_id(2) * OUTPUTS + tl.arange(0, OUTPUTS)
    known = lane < rank
    row = tl.arange(0, ROWS)
    real = row < rows
    step = tl.arange(0, DEPTH)
    size = tl.cdiv(tl.cdiv(depth, PARTS), DEPTH) * DEPTH
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for at in range(part * size, tl.minimum(part * size + size, depth), DEPTH):
        here = (at + step < depth)[None, :]
        x = tl.load(inputs + row[:, None] * input_row + at + step[None, :], mask=real[:, None] & here, other=0.0)
        w = tl.load(down + lane[:, None] * depth + at + step[None, :], mask=known[:, None] & here, other=0.0)
        if NORM:
            scale = tl.load(norm + at + step, mask=at + step < depth, other=0.0).to(tl.float32) + SHIFT
            x = (x.to(tl.float32) * scale[None, :]).to(x.dtype)
        if UPCAST:
            x, w = x.to(tl.float32), w.to(tl.float32)
        total += tl.dot(x, tl.trans(w), input_precision=PRECISION)
    place = (part * rows + row)[:, None] * (rank_0 + rank_1 + rank_2) + first + lane[None, :]
    tl.store(low + place, total, mask=real[:, None] & known[None, :])


@triton.jit
def lift(  # noqa: ANN201
    which, low, up_0, up_1, up_2, rank_0, rank_1, rank_2, scale_0, scale_1, scale_2, rows, row, column, wanted,
    RANK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The inner values of a matrix's adapter ``[rows, ranks]``, and the matrix ``[outputs, ranks]`` that lifts them."""
    up, rank, scale, first = up_0, rank_0, scale_0, 0
    if which == 2:
        up, rank, scale, first = up_2, rank_2, scale_2, rank_0 + rank_1
    elif which == 1:
        up, rank, scale, first = up_1, rank_1, scale_1, rank_0
    lane = tl.arange(0, RANK)
    known = (lane < rank)[None, :]
    lifts = tl.load(up + column[:, None].to(tl.int64) * rank + lane[None, :], mask=wanted[:, None] & known, other=0.0)
    seen = (row < rows)[:, None] & known
    inner = tl.zeros([row.shape[0], RANK], tl.float32)
    for part in tl.static_range(PARTS):
        place = (part * rows + row)[:, None] * (rank_0 + rank_1 + rank_2) + first + lane[None, :]
        inner += tl.load(low + place, mask=seen, other=0.0)
    return inner, lifts.to(tl.float32) * scale


class Adapters(NamedTuple):
    """What kernels take of the adapters of up to three matrices.

    Args:
        low: Inner values ``[parts, rows, ranks of all matrices]`` in float32, of parts of the depth.
        ups: The matrices that lift them.
        ranks: Of each matrix; 0 where it has no adapter.
        scales: Factors.
        lanes: Columns of a tile of inner values; 0 without adapters.
    """

    low: Tensor
    ups: list[Tensor]
    ranks: list[int]
    scales: list[float]
    lanes: int

    @property
    def parts(self) -> int:
        """Parts of the depth."""
        return len(self.low) if self.lanes else 1

    @classmethod
    def of(cls, inputs: Tensor, adapters: Sequence[LowRank | None], exact: bool, norm: Norm | None = None) -> Adapters:
        """Computes the inner values of at most 64 rows. Without adapters no kernel is launched.

        Args:
            inputs: ``[rows, depth]``, last dimension contiguous.
            adapters: One for each of up to three matrices, contiguous, or ``None``.
            exact: Whether products are of float32 rather than TF32.
            norm: Of the input, or ``None``. Only its weights are applied: whoever adds the lifted values up scales the
                sum.
        """
        given = [*adapters, None, None][:3]
        found = [item for item in given if item is not None]
        if not found:
            return cls(inputs, [inputs] * 3, [0] * 3, [0.0] * 3, 0)
        (rows, depth), device, like = inputs.shape, inputs.device, found[0].down
        ranks = [0 if item is None else len(item.down) for item in given]
        step, parts = inner_tile(depth, exact)
        low = torch.empty(parts, rows, sum(ranks), dtype=torch.float32, device=device)
        lanes = max(16, triton.next_power_of_2(max(ranks)))
        _inner[(parts, len(adapters), triton.cdiv(max(ranks), _OUTPUTS))](
            inputs, *(like if item is None else item.down for item in given), inputs if norm is None else norm.weight,
            low, rows, depth, *ranks, inputs.stride(0), NORM=norm is not None,
            SHIFT=0.0 if norm is None else norm.shift, ROWS=max(16, triton.next_power_of_2(rows)), OUTPUTS=_OUTPUTS,
            DEPTH=step, PARTS=parts, PRECISION="ieee" if exact else "tf32",
            UPCAST=device.type == "cpu" or like.dtype != inputs.dtype, num_warps=4, **early(device),
        )  # fmt: skip
        return cls(
            low,
            [like if item is None else item.up for item in given],
            ranks,
            [0.0 if item is None else float(item.scale) for item in given],
            lanes,
        )


def inner_tile(depth: int, exact: bool) -> tuple[int, int]:
    """Inputs of a program's tile, and the number of parts of the depth: one to five tiles each up to a depth of 20480.

    Every program of the projection reads all parts, so that there are not more of them.
    """
    step = 64 if exact else 128
    return step, min(32 if depth > 8192 else 16, triton.next_power_of_2(triton.cdiv(depth, step)))
