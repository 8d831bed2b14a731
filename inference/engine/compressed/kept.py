"""Kept tokens of a compressed prompt in few bits, on the device (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saccade.inference.compression.precision import CHANNEL, GROUP, TOKEN, packed, row_bytes, unpacked


class Groups(NamedTuple):
    """Packed tokens that a step of one layer attends to, beside those of the flat buffers.

    Args:
        keys: ``[groups, bytes]`` of all layers, rows of groups of tokens.
        values: Like ``keys``.
        first: ``[batch, kv_heads]`` first group of every unit.
        counts: ``[batch, kv_heads]`` groups of every unit.
        most: The most groups of a unit.
        bits: 8 or 4.
    """

    keys: Tensor
    values: Tensor
    first: Tensor
    counts: Tensor
    most: int
    bits: int

    def unpacked(self, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values ``[batch, kv_heads, tokens, head_dim]``, and which of the tokens a unit has."""
        group = torch.arange(self.most, device=self.first.device)
        at = (self.first[..., None] + group).clamp(max=len(self.keys) - 1)
        found = []
        for rows, over in ((self.keys, CHANNEL), (self.values, TOKEN)):
            tokens = unpacked(rows[at].flatten(0, 2), GROUP, width, self.bits, over, dtype)
            found.append(tokens.view(*at.shape[:2], -1, width))
        return found[0], found[1], (group < self.counts[..., None]).repeat_interleave(GROUP, -1)


class KeptTokens:
    """The packed tokens of all units of a compressed cache; they never change, only which row they belong to.

    Args:
        counts: ``[layers, batch, kv_heads]`` groups of every unit.
        like: Keys in the model's precision, on the device; ``[..., head_dim]``.
        bits: 8 or 4.
    """

    def __init__(self, counts: Tensor, like: Tensor, bits: int) -> None:
        ends = counts.flatten().cumsum(0)
        self.bits = bits
        self.most: list[int] = counts.flatten(1).amax(1).tolist()
        self.first = (ends.view(counts.shape) - counts).to(like.device)
        self.counts = counts.to(like.device)
        groups = max(1, int(ends[-1]))  # an empty buffer has no address
        self.keys, self.values = (
            torch.zeros(
                groups,
                row_bytes(GROUP, like.shape[-1], like.itemsize, bits, over),
                dtype=torch.uint8,
                device=like.device,
            )
            for over in (CHANNEL, TOKEN)
        )
        self._filled = 0

    def add(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Packs the next units, whose tokens are whole groups.

        Args:
            keys: ``[tokens, head_dim]`` of every unit.
            values: Like ``keys``.
        """
        for rows, parts, over in ((self.keys, keys, CHANNEL), (self.values, values, TOKEN)):
            groups = torch.cat(list(parts)).unflatten(0, (-1, GROUP))
            rows[self._filled : self._filled + len(groups)] = packed(groups, self.bits, over)
        self._filled += len(groups)

    def groups(self, layer: int, batch: int) -> Groups:
        """What the first rows of a layer attend to."""
        return Groups(
            self.keys, self.values, self.first[layer, :batch], self.counts[layer, :batch], self.most[layer], self.bits
        )

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps the given rows."""
        picked = list(rows)
        self.first, self.counts = self.first[:, picked], self.counts[:, picked]

    def compact(self, rows: Sequence[int]) -> None:
        """Moves the given rows, ascending, to the front, in place; the others have nothing then."""
        picked = list(rows)
        for table in (self.first, self.counts):
            front = table[:, picked].clone()
            table.zero_()
            table[:, : len(picked)] = front

    def fits(self, other: KeptTokens) -> bool:
        """Whether :meth:`take` can take the tokens of another one over."""
        return (
            self.bits == other.bits
            and self.keys.shape[1] == other.keys.shape[1]
            and len(self.keys) >= len(other.keys)
            and all(mine >= new for mine, new in zip(self.most, other.most, strict=True))
        )

    def take(self, other: KeptTokens) -> None:
        """Goes on with the tokens of another one that :meth:`fits`; no tensor moves."""
        self.keys[: len(other.keys)], self.values[: len(other.keys)] = other.keys, other.values
        self.first.copy_(other.first)
        self.counts.copy_(other.counts)

    def reserve(self, like: KeptTokens) -> None:
        """Makes room for as many tokens as another one has room for."""
        more = max(0, len(like.keys) - len(self.keys))
        self.keys, self.values = (
            torch.cat([part, part.new_zeros(more, part.shape[1])]) for part in (self.keys, self.values)
        )
        self.most = [max(pair) for pair in zip(self.most, like.most, strict=True)]

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return sum(part.nbytes for part in (self.keys, self.values, self.first, self.counts))
