"""Keys and values in 8 or 4 bits, in groups of tokens of one head (ours).

Channels of keys differ in size more than tokens do, and those of values do not: so keys share a range by channel and
values by token, as in KIVI (arXiv 2402.02750). A group is a chunk in host memory, or some kept tokens of a head on the
device. It is packed once and never changes. Its row of bytes begins with the scales and the lowest numbers of the
ranges, in the precision of the model: a lowest number is one of the group's own, so this loses nothing, and a scale is
rounded up, so that no number lies beyond the last step. The steps follow. With 4 bits, a byte holds dimension ``j`` in
its low half and ``j + D / 2`` in its high half. Both parts are filled up to whole 16 bytes, which is what a thread of a
GPU reads at once.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from saccade.common.checks import check_choice

Bits = Literal[16, 8, 4]
"""Bits of a number; 16 stands for the precision of the model, whatever it is."""

CHANNEL, TOKEN = -2, -1
"""Dimensions of ``[..., tokens, head_dim]`` over which a range goes: one range for each channel, or for each token."""
GROUP = 32
"""Tokens of a group of kept tokens."""
FIRST = 4
"""First kept tokens of a head, which are not packed: much attention lies on them, and their keys are unlike others."""

_ALIGNED = 16  # bytes


def check_bits(name: str, value: int) -> None:
    """Refuses a number of bits that there is no packing for.

    Args:
        name: Name of the setting, for the message.
        value: Value of the setting.

    Raises:
        ValueError: It is not 16, 8 or 4.
    """
    check_choice(name, value, (16, 8, 4))


def check_width(width: int, *bits: int) -> None:
    """Refuses heads whose dimensions cannot be packed in pairs.

    Args:
        width: Dimensions of a head.
        bits: Bits of a number.

    Raises:
        ValueError: 4 bits and an odd width.
    """
    if width % 2 and 4 in bits:
        raise ValueError(f"heads must have an even number of dimensions for 4 bits, got {width}: choose 8 bits.")


def quantize(numbers: Tensor, bits: int, over: int) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest of ``2 ** bits`` evenly spaced numbers between the lowest and the highest of each range.

    A number differs from ``low + step * scale`` by at most half a scale.

    Args:
        numbers: ``[..., tokens, head_dim]``.
        bits: 8 or 4.
        over: :data:`CHANNEL` or :data:`TOKEN`.

    Returns:
        Steps, uint8 of the shape of the numbers; scales and lowest numbers, of size 1 in ``over``, in the type of the
        numbers.
    """
    exact, kind, most = _exact(numbers.dtype), torch.finfo(numbers.dtype), 2**bits - 1
    low, high = numbers.aminmax(dim=over, keepdim=True)
    step = (high.to(exact) - low.to(exact)) / most
    scale = step.to(numbers.dtype)
    scale = torch.where(scale < step, (step * (1 + kind.eps)).to(numbers.dtype), scale)  # rounded up
    scale = scale.clamp(min=kind.tiny)  # and never 0
    steps = ((numbers.to(exact) - low.to(exact)) / scale.to(exact)).round().clamp(0, most)
    return steps.to(torch.uint8), scale, low


def dequantize(steps: Tensor, scale: Tensor, low: Tensor) -> Tensor:
    """The numbers of :func:`quantize`, rounded to the type of the scales.

    Args:
        steps: ``[..., tokens, head_dim]`` uint8.
        scale: Scales, of size 1 in one of the last two dimensions.
        low: Like ``scale``.
    """
    exact = _exact(scale.dtype)
    return (low.to(exact) + steps.to(exact) * scale.to(exact)).to(scale.dtype)


def row_bytes(tokens: int, width: int, itemsize: int, bits: int, over: int) -> int:
    """Bytes of one packed group of keys (over :data:`CHANNEL`) or values (over :data:`TOKEN`), ranges included.

    Args:
        tokens: Tokens of a group.
        width: Dimensions of a head.
        itemsize: Bytes of a number in the model's precision.
        bits: 8 or 4; 16 is a group that is not packed.
        over: :data:`CHANNEL` or :data:`TOKEN`.
    """
    if bits == 16:
        return tokens * width * itemsize
    ranges = width if over == CHANNEL else tokens
    return ranges_bytes(ranges, itemsize) + _whole(tokens * width * bits // 8)


def ranges_bytes(ranges: int, itemsize: int) -> int:
    """Bytes of the scales and lowest numbers at the beginning of a row.

    Args:
        ranges: How many scales.
        itemsize: Bytes of one.
    """
    return _whole(2 * ranges * itemsize)


def _whole(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def packed(numbers: Tensor, bits: int, over: int) -> Tensor:
    """The rows of groups.

    Args:
        numbers: ``[groups, tokens, head_dim]``.
        bits: 8 or 4.
        over: :data:`CHANNEL` or :data:`TOKEN`.

    Returns:
        ``[groups, bytes]`` uint8, of :func:`row_bytes`.

    Raises:
        ValueError: 4 bits and an odd width.
    """
    groups, tokens, width = numbers.shape
    check_width(width, bits)
    steps, scale, low = quantize(numbers, bits, over)
    if bits == 4:
        first, second = steps.chunk(2, -1)
        steps = first | second << 4
    rows = torch.zeros(
        groups, row_bytes(tokens, width, numbers.itemsize, bits, over), dtype=torch.uint8, device=numbers.device
    )
    both = torch.cat([part.flatten(1) for part in (scale, low)], 1).view(torch.uint8)
    begin = ranges_bytes(both.shape[1] // (2 * numbers.itemsize), numbers.itemsize)
    for start, part in ((0, both), (begin, steps.flatten(1))):
        rows[:, start : start + part.shape[1]] = part
    return rows


def unpacked(rows: Tensor, tokens: int, width: int, bits: int, over: int, dtype: torch.dtype) -> Tensor:
    """The numbers of packed groups; the kernels are tested against it.

    Args:
        rows: ``[groups, bytes]`` of :func:`packed`.
        tokens: Tokens of a group.
        width: Dimensions of a head.
        bits: 8 or 4.
        over: :data:`CHANNEL` or :data:`TOKEN`.
        dtype: The model's precision.

    Returns:
        ``[groups, tokens, head_dim]`` in this precision.
    """
    ranges = width if over == CHANNEL else tokens
    begin, count = ranges_bytes(ranges, dtype.itemsize), tokens * width * bits // 8
    both = rows[:, : 2 * ranges * dtype.itemsize].contiguous().view(dtype).unflatten(1, (2, ranges))
    scale, low = both.unsqueeze(over).unbind(1)
    steps = rows[:, begin : begin + count].unflatten(1, (tokens, -1))
    if bits == 4:
        steps = torch.cat([steps & 15, steps >> 4], -1)
    return dequantize(steps, scale, low)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """The type in which numbers of a type are computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32
