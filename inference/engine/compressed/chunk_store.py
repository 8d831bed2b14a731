"""Chunks of a prompt's keys and values that lie in host memory and are fetched where a step asks for them (ours)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saccade.inference.compression.chunks import (
    chunk_scores,
    pinned_chunks,
    replace_slots,
    representatives,
    top_chunks,
)
from saccade.inference.compression.compressor import Plan


class ChunkStore:
    """The dynamic KV heads of one layer: their whole prompt in host memory, a few chunks of it in slots on the device.

    Every step scores the chunks by their representatives, chooses the best ones, and fetches those that are not in a
    slot yet. All of it is made of tensor operations without a look from the host, and a kernel that reads pinned host
    memory by its device address.

    Args:
        units: ``[units, 2]`` row and KV head of every dynamic unit.
        counts: Slots of every unit.
        places: First slot of the flat buffers that belongs to every unit's chunks.
        host: Keys and values of all chunks, ``[chunks, chunk, head_dim]`` each, in host memory.
        first: First chunk of every unit.
        summaries: ``[units, chunks, head_dim]`` or ``[units, 2, chunks, head_dim]``: representatives of the chunks.
        filled: ``[units, chunks, chunk]`` booleans: which places of a unit's chunks hold a token that is not pinned.
        slots: ``[units, slots]`` chunk in every slot, -1 for none.
        kv_heads: KV heads of the layer.
    """

    def __init__(
        self,
        units: Tensor,
        counts: Tensor,
        places: Tensor,
        host: tuple[Tensor, Tensor],
        first: Tensor,
        summaries: Tensor,
        filled: Tensor,
        slots: Tensor,
        kv_heads: int,
    ) -> None:
        self.kv_heads = kv_heads
        self.units, self.counts, self.places, self.first = units, counts, places, first
        self.host_keys, self.host_values = host
        self.summaries, self.filled, self.slots = summaries, filled, slots
        self.blocked = ~filled.any(-1)
        # a unit with fewer slots than others has the rest of its row filled with a chunk that nobody wants
        beyond = torch.arange(slots.shape[1], device=slots.device) >= counts[:, None]
        self.slots.masked_fill_(beyond, torch.iinfo(torch.int64).max)
        # the slot of every chunk, for the kernels
        self.where = torch.full(filled.shape[:2], -1, dtype=torch.int32, device=slots.device)
        held = (self.slots >= 0) & ~beyond
        unit, slot = held.nonzero(as_tuple=True)
        self.where[unit, self.slots[unit, slot]] = slot.int()

    @classmethod
    def of(
        cls,
        layer: int,
        keys: Tensor,
        values: Tensor,
        plans: Sequence[Plan],
        bases: Tensor,
        lengths: Sequence[int],
    ) -> ChunkStore | None:
        """The store of a layer, or ``None`` if no plan gives it a dynamic unit.

        Args:
            layer: The layer.
            keys: ``[batch, kv_heads, slots, head_dim]`` of the whole prompts.
            values: Like ``keys``.
            plans: What is kept of every row.
            bases: ``[batch, kv_heads]`` first slot of every unit.
            lengths: Tokens of every prompt.
        """
        found = [(row, head) for row, plan in enumerate(plans) for head, n in enumerate(plan.slots[layer]) if n]
        if not found:
            return None
        device, width = keys.device, keys.shape[-1]
        chunk = plans[found[0][0]].chunk
        pieces: list[tuple[Tensor, Tensor]] = []
        summaries, filled, first, total = [], [], [], 0
        for row, head in found:
            plan = plans[row]
            bounds = plan.bounds
            if bounds is None:
                raise ValueError("a plan with chunks must say where they begin, got bounds=None: set them.")
            bounds = bounds.to(device)
            place = bounds[:-1, None] + torch.arange(chunk, device=device)  # [chunks, chunk]
            held = place < bounds[1:, None]
            pinned = pinned_chunks(plan.kept[layer][head].to(device), bounds)
            place = place.clamp(max=lengths[row] - 1)
            pieces.append((keys[row, head][place], values[row, head][place]))
            summaries.append(representatives(keys[row, head, : lengths[row]], bounds, chunk, plan.representative))
            filled.append(held & ~pinned[:, None])  # a pinned token is on the device already
            first.append(total)
            total += len(place)
        pin = device.type == "cuda"
        host = tuple(torch.empty(total, chunk, width, dtype=keys.dtype, pin_memory=pin) for _ in range(2))
        for start, pair in zip(first, pieces, strict=True):
            for buffer, piece in zip(host, pair, strict=True):
                buffer[start : start + len(piece)].copy_(piece, non_blocking=pin)
        most = max(len(mask) for mask in filled)
        padded = summaries[0].new_zeros(len(found), *summaries[0].shape[:-2], most, width)
        holding = torch.zeros(len(found), most, chunk, dtype=torch.bool, device=device)
        for unit, (summary, mask) in enumerate(zip(summaries, filled, strict=True)):
            padded[unit, ..., : len(mask), :], holding[unit, : len(mask)] = summary, mask
        counts = torch.tensor([plans[row].slots[layer][head] for row, head in found], device=device)
        kept = torch.tensor([len(plans[row].kept[layer][head]) for row, head in found])
        units = torch.tensor(found)
        places = (bases[units[:, 0], units[:, 1]] + kept).to(device)
        slots = torch.full((len(found), int(counts.max())), -1, dtype=torch.long, device=device)
        return cls(
            units.to(device), counts, places, (host[0], host[1]), torch.tensor(first, device=device), padded, holding,
            slots, keys.shape[1],
        )  # fmt: skip

    @property
    def chunk(self) -> int:
        """Tokens of a chunk."""
        return self.filled.shape[-1]

    def hide(self, seen: Tensor) -> None:
        """Marks the slots of all chunks as empty."""
        width = self.slots.shape[1] * self.chunk
        inside = torch.arange(width, device=seen.device)
        own = self.places[:, None] + inside
        seen[own[inside < (self.counts * self.chunk)[:, None]]] = False

    def fetch(self, query: Tensor, keys: Tensor, values: Tensor, seen: Tensor, asking: Tensor | None = None) -> None:
        """Brings the chunks that a query asks for into the slots of every unit.

        Args:
            query: ``[batch, heads, head_dim]``.
            keys: ``[slots, head_dim]``, the flat buffer; written.
            values: Like ``keys``.
            seen: ``[slots]`` booleans; written.
            asking: One number, 0 if nothing is fetched; ``None`` is that something may be.
        """
        self._copy(self._choose(query, asking), keys, values, seen)

    def _choose(self, query: Tensor, asking: Tensor | None) -> Tensor:
        """Gives the wanted chunks a slot each and returns which slots have to be filled."""
        if query.device.type == "cuda" and query.dtype != torch.float64:
            from saccade.inference.engine.kernels.chunks import MOST_CHUNKS, triton_choose

            if self.filled.shape[1] <= MOST_CHUNKS:
                return triton_choose(
                    query, self.units, self.counts, self.summaries, self.blocked, self.slots, self.where, self.kv_heads,
                    asking,
                )  # fmt: skip
        batch, heads, width = query.shape
        grouped = query.reshape(batch, self.kv_heads, heads // self.kv_heads, width)
        asked = grouped[self.units[:, 0].clamp(max=batch - 1), self.units[:, 1]]
        best = top_chunks(chunk_scores(asked, self.summaries), self.slots.shape[1], self.blocked)
        wanted = torch.where(torch.arange(best.shape[1], device=best.device) < self.counts[:, None], best, -1)
        if asking is not None:
            wanted = torch.where(asking != 0, wanted, self.slots)
        slots, missing = replace_slots(self.slots, wanted)
        self.slots.copy_(slots)
        return missing

    def _copy(self, missing: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> None:
        """Copies the chunks of the slots that ``missing`` marks, and notes which of their places hold a token."""
        if keys.device.type == "cuda":
            from saccade.inference.engine.kernels.chunks import triton_fetch

            triton_fetch(
                self.host_keys, self.host_values, keys, values, seen, self.filled, self.slots, missing, self.first,
                self.places,
            )  # fmt: skip
            return
        unit, slot = missing.nonzero(as_tuple=True)
        chosen = self.slots[unit, slot]
        source = self.first[unit] + chosen
        target = (self.places[unit] + slot * self.chunk)[:, None] + torch.arange(self.chunk)
        keys[target], values[target] = self.host_keys[source], self.host_values[source]
        seen[target] = self.filled[unit, chosen]

    def move(self, by: Tensor) -> None:
        """Follows units whose slots lie elsewhere now.

        Args:
            by: ``[batch, kv_heads]`` slots between the new and the old place of every unit.
        """
        self.places += by[self.units[:, 0], self.units[:, 1]]

    def keep(self, rows: Sequence[int]) -> ChunkStore | None:
        """The store of the units of the given rows, ascending; ``None`` if none is left."""
        order = torch.full((int(self.units[:, 0].max()) + 1,), -1, device=self.units.device)
        inside = [row for row in rows if row < len(order)]
        order[inside] = torch.arange(len(inside), device=order.device)
        new = order[self.units[:, 0]]
        left = new >= 0
        if not bool(left.any()):
            return None
        units = torch.stack([new[left], self.units[left, 1]], 1)
        return ChunkStore(
            units, self.counts[left], self.places[left], (self.host_keys, self.host_values), self.first[left],
            self.summaries[left], self.filled[left], self.slots[left], self.kv_heads,
        )  # fmt: skip

    def compact(self, rows: Sequence[int]) -> None:
        """Moves the units of the given rows, ascending, to the front; the others ask for a row that has ended."""
        order = torch.full_like(self.units[:, 0], len(rows))
        for new, old in enumerate(rows):
            order[self.units[:, 0] == old] = new
        self.units[:, 0] = order

    @property
    def bytes(self) -> int:
        """Size in bytes on the device, without the slots of the flat buffers."""
        return sum(
            item.nbytes
            for item in (
                self.units,
                self.counts,
                self.places,
                self.first,
                self.summaries,
                self.filled,
                self.blocked,
                self.slots,
                self.where,
            )
        )

    @property
    def host_bytes(self) -> int:
        """Size in bytes in host memory."""
        return self.host_keys.nbytes + self.host_values.nbytes
