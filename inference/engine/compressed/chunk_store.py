"""Chunks of a prompt's keys and values that lie in host memory and are fetched where a step asks for them (ours)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.common.transfer import to_device
from saccade.inference.compression.chunks import (
    RowChunks,
    chunk_scores,
    pinned_chunks,
    replace_slots,
    summarised,
    top_chunks,
)
from saccade.inference.compression.compressor import Plan
from saccade.inference.compression.precision import CHANNEL, TOKEN, packed, unpacked
from saccade.inference.engine.attention import runs_kernels
from saccade.inference.engine.compressed.host_copies import HostCopies

_NOBODY = torch.iinfo(torch.int64).max  # stands in slots that a unit does not have


class ChunkStore:
    """The dynamic KV heads of one layer: their whole prompt in host memory, a few chunks of it in slots on the device.

    Every step scores the chunks by their representatives, chooses the best ones, and fetches those that are not in a
    slot yet. All of it is done without a look from the host, and a kernel reads pinned host memory by its device
    address. The chunks of all units lie one behind the other. Units without chunks fill up the tables, so that a
    captured step can go on with another prompt (:meth:`take`).

    Args:
        units: ``[units, 2]`` row and KV head of every dynamic unit.
        counts: ``[units]`` slots of every unit.
        places: ``[units]`` first slot of the flat buffers that belongs to every unit's chunks.
        first: ``[units]`` first chunk of every unit.
        many: ``[units]`` chunks of every unit.
        host: Keys and values of all chunks in host memory, ``[chunks, chunk, head_dim]`` each; with fewer than 16 bits
            ``[chunks, bytes]`` (:func:`saccade.inference.compression.precision.packed`).
        summaries: ``[chunks, head_dim]`` or ``[chunks, 2, head_dim]``: representatives of the chunks.
        filled: ``[chunks, chunk]`` booleans: which places of a chunk hold a token that is not pinned.
        slots: ``[units, slots]`` chunk in every slot, counted from the unit's first, -1 for none.
        kv_heads: KV heads of the layer.
        bits: Bits of a number in host memory; 16 is the model's precision.
    """

    def __init__(
        self,
        units: Tensor,
        counts: Tensor,
        places: Tensor,
        first: Tensor,
        many: Tensor,
        host: tuple[Tensor, Tensor],
        summaries: Tensor,
        filled: Tensor,
        slots: Tensor,
        kv_heads: int,
        bits: int = 16,
    ) -> None:
        self.kv_heads, self.bits = kv_heads, bits
        self.units, self.counts, self.places, self.first, self.many = units, counts, places, first, many
        self.summaries, self.filled, self.slots = summaries, filled, slots
        self.blocked = ~filled.any(-1)
        beyond = self._shut()
        # the slot of every chunk, for the kernels
        self.where = torch.full((len(filled),), -1, dtype=torch.int32, device=slots.device)
        unit, slot = ((self.slots >= 0) & ~beyond).nonzero(as_tuple=True)
        self.where[first[unit] + self.slots[unit, slot]] = slot.int()
        self.longest = int(many.max())
        self.hosts = torch.zeros(2, dtype=torch.int64, device=slots.device)
        self._lies_at(host)

    def _shut(self) -> Tensor:
        """Fills the slots that units do not have with a chunk that nobody wants, and returns which these are."""
        beyond = torch.arange(self.slots.shape[1], device=self.slots.device) >= self.counts[:, None]
        self.slots.masked_fill_(beyond, _NOBODY)
        return beyond

    def _lies_at(self, host: tuple[Tensor, Tensor]) -> None:
        self.host_keys, self.host_values = host
        self.hosts.copy_(torch.tensor([part.data_ptr() for part in host]))

    @classmethod
    def of(
        cls,
        layer: int,
        keys: Tensor,
        values: Tensor,
        plans: Sequence[Plan],
        bases: Tensor,
        lengths: Sequence[int],
        chunks_of: Sequence[RowChunks | None],
        copies: HostCopies,
    ) -> ChunkStore | None:
        """The store of a layer, or ``None`` if no plan gives it a dynamic unit.

        Args:
            layer: The layer.
            keys: ``[batch, kv_heads, slots, head_dim]`` of the whole prompts.
            values: Like ``keys``.
            plans: What is kept of every row.
            bases: ``[batch, kv_heads]`` first slot of every unit, on the CPU.
            lengths: Tokens of every prompt.
            chunks_of: The chunks of every row, the same for all layers; ``None`` for rows without.
            copies: They bring the chunks to host memory; to be finished before a step fetches any.
        """
        found = [(row, head) for row, plan in enumerate(plans) for head, n in enumerate(plan.slots[layer]) if n]
        if not found:
            return None
        device = keys.device
        bits = plans[found[0][0]].host_bits
        pieces: list[tuple[Tensor, Tensor]] = []
        summaries: list[Tensor] = []
        filled: list[Tensor] = []
        first: list[int] = []
        many: list[int] = []
        for row, plan in enumerate(plans):
            heads = [head for head, count in enumerate(plan.slots[layer]) if count]
            if not heads:
                continue
            own = chunks_of[row]
            if own is None:
                raise ValueError("a plan with chunks must say where they begin, got bounds=None: set them.")
            # all heads of a row at once: each operation waits longer to start than it takes
            at = to_device(heads, device)[:, None, None]
            pair = keys[row][at, own.places], values[row][at, own.places]  # [heads, chunks, chunk, head_dim]
            every = pair[0].flatten(0, 1), pair[1].flatten(0, 1)
            pieces.append(every if bits == 16 else (packed(every[0], bits, CHANNEL), packed(every[1], bits, TOKEN)))
            made = summarised(pair[0], own.held, plan.representative)
            summaries.append((made.transpose(1, 2) if made.ndim == 4 else made).flatten(0, 1))
            pinned = pinned_chunks([plan.kept[layer][head] for head in heads], own.begins, lengths[row])
            filled.append((own.held & ~pinned[..., None]).flatten(0, 1))  # a pinned token is on the device already
            first += [sum(many) + len(own.begins) * place for place in range(len(heads))]
            many += [len(own.begins)] * len(heads)
        host = tuple(copies.empty((sum(many), *part.shape[1:]), part.dtype) for part in pieces[0])
        for buffer, parts in zip(host, zip(*pieces, strict=True), strict=True):
            for piece, target in zip(parts, buffer.split([len(piece) for piece in parts]), strict=True):
                copies.copy(piece, target)
        spare = keys.shape[0] * keys.shape[1] - len(found)  # units without chunks, of no row
        rest = [0] * spare
        counts = [plans[row].slots[layer][head] for row, head in found]
        places = [
            int(bases[row, head]) + len(plans[row].kept[layer][head]) - plans[row].packed(layer, head)
            for row, head in found
        ]
        counts_, places_, first_, many_ = (to_device(part + rest, device) for part in (counts, places, first, many))
        units = to_device([*found, *[(len(plans), 0)] * spare], device)
        slots = torch.full((len(units), max(counts)), -1, dtype=torch.long, device=device)
        return cls(
            units, counts_, places_, first_, many_, (host[0], host[1]), torch.cat(summaries), torch.cat(filled), slots,
            keys.shape[1], bits,
        )  # fmt: skip

    @property
    def chunk(self) -> int:
        """Tokens of a chunk."""
        return self.filled.shape[-1]

    def hide(self, seen: Tensor) -> None:
        """Marks the slots of all chunks as empty."""
        inside = torch.arange(self.slots.shape[1] * self.chunk, device=seen.device)
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
        if runs_kernels(query):
            from saccade.inference.engine.kernels.chunks import MOST_CHUNKS, triton_choose

            if self.longest <= MOST_CHUNKS:
                return triton_choose(
                    query, self.units, self.counts, self.first, self.many, self.summaries, self.blocked, self.slots,
                    self.where, self.longest, self.kv_heads, asking,
                )  # fmt: skip
        batch, heads, width = query.shape
        grouped = query.reshape(batch, self.kv_heads, heads // self.kv_heads, width)
        asked = grouped[self.units[:, 0].clamp(max=batch - 1), self.units[:, 1]]
        inside = torch.arange(self.longest, device=query.device)
        at = (self.first[:, None] + inside).clamp(max=len(self.filled) - 1)
        made = self.summaries[at]  # [units, chunks, (2,) head_dim]
        scores = chunk_scores(asked, made.transpose(1, 2) if made.ndim == 4 else made)
        scores = scores.masked_fill(inside >= self.many[:, None], -torch.inf)
        best = top_chunks(scores, min(self.slots.shape[1], self.longest), self.blocked[at])
        wanted = torch.where(torch.arange(best.shape[1], device=best.device) < self.counts[:, None], best, -1)
        if asking is not None:
            wanted = torch.where(asking != 0, wanted, self.slots[:, : best.shape[1]])
        slots, missing = replace_slots(self.slots, wanted)
        self.slots.copy_(slots)
        return missing

    def _copy(self, missing: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> None:
        """Copies the chunks of the slots that ``missing`` marks, and notes which of their places hold a token."""
        if keys.device.type == "cuda":
            from saccade.inference.engine.kernels.chunks import triton_fetch

            triton_fetch(
                self.hosts, keys, values, seen, self.filled, self.slots, missing, self.first, self.places, self.bits
            )
            return
        unit, slot = missing.nonzero(as_tuple=True)
        source = self.first[unit] + self.slots[unit, slot]
        target = (self.places[unit] + slot * self.chunk)[:, None] + torch.arange(self.chunk)
        found = self.host_keys[source], self.host_values[source]
        if self.bits < 16:
            shape = self.chunk, keys.shape[1], self.bits
            found = unpacked(found[0], *shape, CHANNEL, keys.dtype), unpacked(found[1], *shape, TOKEN, keys.dtype)
        keys[target], values[target] = found
        seen[target] = self.filled[source]

    def move(self, by: Tensor) -> None:
        """Follows units whose slots lie elsewhere now.

        Args:
            by: ``[batch, kv_heads]`` slots between the new and the old place of every unit.
        """
        real = self.units[:, 0] < len(by)
        self.places[real] += by[self.units[real, 0], self.units[real, 1]]

    def keep(self, rows: Sequence[int]) -> ChunkStore | None:
        """The store of the units of the given rows, ascending; ``None`` if none is left."""
        order = torch.full((int(self.units[:, 0].max()) + 1,), -1, device=self.units.device)
        inside = [row for row in rows if row < len(order)]
        order[inside] = torch.arange(len(inside), device=order.device)
        new = order[self.units[:, 0]]
        left = (new >= 0) & (self.many > 0)
        if not bool(left.any()):
            return None
        return ChunkStore(
            torch.stack([new[left], self.units[left, 1]], 1), self.counts[left], self.places[left], self.first[left],
            self.many[left], (self.host_keys, self.host_values), self.summaries, self.filled, self.slots[left],
            self.kv_heads, self.bits,
        )  # fmt: skip

    def joined(self, other: ChunkStore) -> ChunkStore:
        """The units of two stores of the same layer and kind of chunks in one.

        Args:
            other: Units that this store does not have.
        """
        wide = max(self.slots.shape[1], other.slots.shape[1])
        parts = [
            (
                store.units[own], store.counts[own], store.places[own], store.first[own] + behind, store.many[own],
                F.pad(store.slots[own], (0, wide - store.slots.shape[1]), value=-1),
            )
            for store, behind in ((self, 0), (other, len(self.filled)))
            for own in (store.many > 0,)
        ]  # fmt: skip
        units, counts, places, first, many, slots = (torch.cat(pair) for pair in zip(*parts, strict=True))
        keys, values = (
            torch.cat(pair, out=pair[0].new_empty(sum(map(len, pair)), *pair[0].shape[1:]).pin_memory())
            if pair[0].is_pinned()
            else torch.cat(pair)
            for pair in ((self.host_keys, other.host_keys), (self.host_values, other.host_values))
        )
        return ChunkStore(
            units, counts, places, first, many, (keys, values), torch.cat([self.summaries, other.summaries]),
            torch.cat([self.filled, other.filled]), slots, self.kv_heads, self.bits,
        )  # fmt: skip

    def compact(self, rows: Sequence[int]) -> None:
        """Moves the units of the given rows, ascending, to the front; the others ask for a row that has ended."""
        order = torch.full_like(self.units[:, 0], len(rows))
        for new, old in enumerate(rows):
            order[self.units[:, 0] == old] = new
        self.units[:, 0] = order

    def take(self, other: ChunkStore | None) -> None:
        """Goes on with the chunks of another store that is not larger; no tensor moves, so captured steps stay valid.

        Args:
            other: The store, which must :meth:`fit`; ``None`` is one without chunks.
        """
        self.counts.zero_()
        self.many.zero_()
        if other is None:
            self._shut()
            return
        for name in self._tables():
            mine, new = getattr(self, name), getattr(other, name)
            mine[tuple(slice(size) for size in new.shape)] = new
        self._shut()
        self._lies_at((other.host_keys, other.host_values))

    def fits(self, other: ChunkStore) -> bool:
        """Whether :meth:`take` can take another store over."""
        return (
            (self.chunk, self.bits) == (other.chunk, other.bits)
            and self.longest >= other.longest
            and all(
                mine.ndim == new.ndim and all(a >= b for a, b in zip(mine.shape, new.shape, strict=True))
                for mine, new in ((getattr(self, name), getattr(other, name)) for name in self._tables())
            )
        )

    def reserve(self, like: ChunkStore) -> None:
        """Makes room for as many chunks and slots as another store has room for, if it has the same kind of chunks."""
        if (like.chunk, like.bits) != (self.chunk, self.bits) or like.summaries.ndim != self.summaries.ndim:
            return
        self.longest = max(self.longest, like.longest)
        for name in self._tables():
            mine, other = getattr(self, name), getattr(like, name)
            wanted = [max(sizes) for sizes in zip(mine.shape, other.shape, strict=True)]
            if wanted != list(mine.shape):
                larger = mine.new_zeros(wanted)
                larger[tuple(slice(size) for size in mine.shape)] = mine
                setattr(self, name, larger)
        self._shut()

    def let_go(self) -> None:
        """Frees the host memory; the store must :meth:`take` another one before it is used again."""
        self.host_keys = self.host_values = self.host_keys.new_empty(0)

    @staticmethod
    def _tables() -> tuple[str, ...]:
        """The tensors on the device, by name."""
        return "units", "counts", "places", "first", "many", "summaries", "filled", "blocked", "slots", "where"

    @property
    def bytes(self) -> int:
        """Size in bytes on the device, without the slots of the flat buffers."""
        return sum(getattr(self, name).nbytes for name in self._tables())

    @property
    def host_bytes(self) -> int:
        """Size in bytes in host memory."""
        return self.host_keys.nbytes + self.host_values.nbytes
