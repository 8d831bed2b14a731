"""The Triton kernel that copies chunks of keys and values from pinned host memory into slots on the device (ours).

It reads host memory through its device address, with indices that the device chose itself, so a fetch needs neither the
host nor a second stream, and may be part of a CUDA graph.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _fetch(
    host_keys, host_values, keys, values, seen, filled, slots, missing, first, places, slots_each, chunks_each,
    CHUNK: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    unit, slot = tl.program_id(0), tl.program_id(1)
    at = unit * slots_each + slot
    if tl.load(missing + at) != 0:
        chunk = tl.load(slots + at)
        row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
        inside = (row < CHUNK)[:, None] & (column < WIDTH)[None, :]
        source = ((tl.load(first + unit) + chunk) * CHUNK + row)[:, None] * WIDTH + column[None, :]
        begin = tl.load(places + unit) + slot * CHUNK
        target = (begin + row)[:, None] * WIDTH + column[None, :]
        tl.store(keys + target, tl.load(host_keys + source, mask=inside), mask=inside)
        tl.store(values + target, tl.load(host_values + source, mask=inside), mask=inside)
        held = tl.load(filled + (unit * chunks_each + chunk) * CHUNK + row, mask=row < CHUNK, other=0)
        tl.store(seen + begin + row, held, mask=row < CHUNK)


def triton_fetch(
    host_keys: Tensor,
    host_values: Tensor,
    keys: Tensor,
    values: Tensor,
    seen: Tensor,
    filled: Tensor,
    slots: Tensor,
    missing: Tensor,
    first: Tensor,
    places: Tensor,
) -> None:
    """Copies the chunk of every slot that ``missing`` marks.

    Args:
        host_keys: ``[chunks, chunk, head_dim]`` in pinned host memory, or on the device.
        host_values: Like ``host_keys``.
        keys: ``[slots, head_dim]`` on the device; written.
        values: Like ``keys``.
        seen: ``[slots]`` booleans; written.
        filled: ``[units, chunks of a unit, chunk]`` booleans: which places of a chunk hold a token.
        slots: ``[units, slots]`` chunk of every slot.
        missing: ``[units, slots]`` booleans.
        first: ``[units]`` first chunk of every unit.
        places: ``[units]`` first slot of every unit.
    """
    chunk, width = host_keys.shape[1:]
    units, each = slots.shape
    _fetch[(units, each)](
        host_keys, host_values, keys, values, seen.view(torch.uint8), filled.view(torch.uint8), slots,
        missing.contiguous().view(torch.uint8), first, places, each, filled.shape[1], CHUNK=chunk, WIDTH=width,
        ROWS=max(2, triton.next_power_of_2(chunk)), COLUMNS=max(16, triton.next_power_of_2(width)), num_warps=4,
    )  # fmt: skip
