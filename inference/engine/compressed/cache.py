"""A key-value cache whose KV heads hold different numbers of tokens, for compressed prompts (ours).

One flat buffer of keys and one of values serve all layers, rows and KV heads. A *unit* is a KV head of a layer in a
row; it owns consecutive slots of the buffers: first what is left of its prompt, then room for new tokens. Attention
does not depend on the order of its keys, and rotary positions are part of them, so what was deleted needs no trace: a
unit whose prompt lost ``removed`` tokens has its new tokens that many slots earlier.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from saccade.common.transfer import to_device
from saccade.inference.compression.chunks import RowChunks
from saccade.inference.compression.compressor import Plan
from saccade.inference.compression.precision import FIRST, GROUP
from saccade.inference.engine.cache import KVCache, StepPlaces
from saccade.inference.engine.compressed.attention import ragged_attention
from saccade.inference.engine.compressed.chunk_store import ChunkStore
from saccade.inference.engine.compressed.host_copies import HostCopies
from saccade.inference.engine.compressed.host_memory import check_host_fits
from saccade.inference.engine.compressed.kept import KeptTokens
from saccade.inference.engine.compressed.trial import Trial, trial_bytes
from saccade.inference.engine.fused.reference import Units
from saccade.inference.trees import MAX_NODES

_ACTIVE: ContextVar[RaggedCache | None] = ContextVar("saccade_ragged_cache", default=None)


class RaggedCache(StepPlaces):
    """The compressed cache of one batch; it takes the place of a :class:`KVCache` behind the prefill.

    Args:
        full: The cache of the whole prompts.
        plans: What is kept of every row.
        lengths: Tokens of every prompt.
        capacity: Tokens that each row may have, new ones included.

    Raises:
        ValueError: The layers differ in their keys and values, or host memory does not suffice.

    Attributes:
        bases: ``[layers, batch, kv_heads]`` first slot of every unit.
        removed: ``[layers, batch, kv_heads]`` tokens of the prompt that are not among a unit's slots.
    """

    def __init__(self, full: KVCache, plans: Sequence[Plan], lengths: Sequence[int], capacity: int) -> None:
        first = _checked(full)
        more = trial_bytes(plans, first.shape[-1], first.itemsize)
        check_host_fits(plans, first.shape[-1], first.itemsize, pinned=first.device.type == "cuda", more=more)
        self.trial = Trial.of(plans, lengths)
        layers, heads, width = len(full.keys), first.shape[1], first.shape[-1]
        super().__init__(capacity, lengths)
        self._made: Tensor | None = None
        sizes = [
            [
                [
                    len(plan.kept[layer][head]) - plan.packed(layer, head) + plan.slots[layer][head] * plan.chunk
                    for head in range(heads)
                ]
                for plan in plans
            ]
            for layer in range(layers)
        ]
        held = torch.tensor(sizes)
        removed = torch.tensor(list(lengths))[:, None] - held
        bases, self._spare = _layout(removed, capacity)
        device = first.device
        self.bases, self.removed = bases.to(device), removed.to(device)
        self.shifts = self.bases - self.removed
        """``[layers, batch, kv_heads]``: slot of a new token minus its place in the text."""
        self.rooms = (capacity - removed).flatten(1).amax(1).tolist()
        """The most slots of a unit, by layer."""
        self.ends = torch.tensor([capacity, self._spare], device=device)
        """``[2]``: tokens that a row may have, and the first of the slots that nobody reads."""
        slots = self._spare + MAX_NODES
        # empty slots of chunks are read, though they do not count
        self.keys, self.values = (first.new_zeros(slots, width) for _ in range(2))
        self.kept: KeptTokens | None = None
        if plans[0].kept_bits < 16:
            groups = [
                [[plan.packed(layer, head) // GROUP for head in range(heads)] for plan in plans]
                for layer in range(layers)
            ]
            self.kept = KeptTokens(torch.tensor(groups), first, plans[0].kept_bits)
        self.chunks: list[ChunkStore | None] = []
        copies = HostCopies(device)
        chunks_of = [
            None if plan.bounds is None else RowChunks.of(plan.bounds.to(device), plan.chunk) for plan in plans
        ]
        for layer in range(layers):
            keys, values = full.buffers(layer)
            packed: tuple[list[Tensor], list[Tensor]] = [], []
            for row, plan in enumerate(plans):
                for head, kept in enumerate(plan.kept[layer]):
                    pair = keys[row, head, : lengths[row]], values[row, head, : lengths[row]]
                    kept = kept.to(device)
                    left = tuple(part[kept] for part in pair)
                    if plan.merged is not None and not plan.slots[layer][head]:
                        left = plan.merged.merge(*pair, kept)
                    slot, count = int(bases[layer, row, head]), plan.packed(layer, head)
                    end = FIRST + count if count else 0
                    for buffer, part, few in zip((self.keys, self.values), left, packed, strict=True):
                        few.append(part[end - count : end])
                        rest = torch.cat([part[: end - count], part[end:]]) if count else part
                        buffer[slot : slot + len(rest)] = rest
            if self.kept is not None:
                self.kept.add(*packed)
            self.chunks.append(ChunkStore.of(layer, keys, values, plans, bases[layer], lengths, chunks_of, copies))
            if self.trial is not None:
                self.trial.add(layer, keys, values, copies)
            full.keys[layer] = full.values[layer] = None  # freed layer by layer
        copies.finish()
        self.seen = None
        if any(self.chunks):  # slots of chunks may hold fewer tokens than a chunk has room for
            self.seen = torch.ones(slots, dtype=torch.bool, device=device)
            for store in self.chunks:
                if store is not None:
                    store.hide(self.seen)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Context in which the session's attention reads this cache."""
        token = _ACTIVE.set(self)
        try:
            yield
        finally:
            _ACTIVE.reset(token)

    def place(self, starts: Sequence[int], tokens: int) -> None:
        """Sets where the next step writes: behind ``starts[b]`` tokens of row ``b``, deleted ones included.

        Raises:
            ValueError: The step does not fit.
        """
        self._made = None
        super().place(starts, tokens)

    def settle(self, lengths: Sequence[int]) -> bool:
        """Ends the probation of static heads if all rows have the tokens that it looks at.

        Args:
            lengths: Tokens of every row.

        Returns:
            Whether it has ended now.
        """
        trial = self.trial
        if trial is None or not trial.due(lengths):
            return False
        self.trial = None
        trial.settle(self)
        return True

    def lengths(self) -> Tensor:
        """Tokens of every row before the current step, ``[batch]``."""
        if self._starts_on_device is not None:
            return self._starts_on_device
        if self._made is None:
            self._made = to_device(self.starts, self.keys.device)
        return self._made

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes keys and values ``[batch, kv_heads, tokens, head_dim]`` of a step and returns them."""
        _, _, units = self.targets(layer, len(keys))
        slots = units.places(self.lengths()[:, None] + torch.arange(keys.shape[2], device=keys.device))
        self.keys[slots], self.values[slots] = keys, values
        return keys, values

    def targets(self, layer: int, batch: int) -> tuple[Tensor, Tensor, Units]:
        """The flat buffers, and where the units of a layer lie in them.

        Args:
            layer: The layer.
            batch: Rows of the step: fewer than the tables have where others have ended.
        """
        return self.keys, self.values, Units(self.shifts[layer, :batch], self.ends)

    def attend(
        self,
        layer: int,
        query: Tensor,
        lengths: Tensor,
        ancestors: Tensor,
        depths: Tensor,
        scaling: float | None,
        window: int | None = None,
    ) -> Tensor:
        """Attention of the nodes of a step over what every unit holds.

        Where a unit fetches chunks, the nodes are computed one after the other, each with the chunks that it asks for
        itself: then the text does not depend on how many tokens a step verifies.

        Args:
            layer: The layer.
            query: ``[batch, heads, nodes, head_dim]``.
            lengths: ``[batch]`` tokens of every row before the step, deleted ones included.
            ancestors: ``[nodes]`` bits of the tree.
            depths: ``[nodes]`` of the tree; a node behind the first that has depth 0 fills up a captured step, and
                fetches nothing.
            scaling: Factor of the scores; ``None`` is ``head_dim ** -0.5``.
            window: Must be ``None``: layers with windows are not compressed.

        Returns:
            ``[batch, nodes, heads, head_dim]``.
        """
        rows, nodes = len(query), query.shape[2]
        store, room, bases = self.chunks[layer], self.rooms[layer], self.bases[layer, :rows]
        held = lengths[:, None] - self.removed[layer, :rows]
        flat = (self.keys, self.values, bases, held)
        if self.trial is not None:
            self.trial.note(layer, query, lengths, scaling)
        packed = None if self.kept is None else self.kept.groups(layer, rows)
        if store is None or self.seen is None:
            return ragged_attention(query, *flat, ancestors, nodes, room, scaling, packed=packed)
        out = []
        for node in range(nodes):
            asking = query[:, :, node : node + 1]
            store.fetch(asking[:, :, 0], self.keys, self.values, self.seen, depths[node] if node else None)
            bits = ancestors[node : node + 1]
            out.append(ragged_attention(asking, *flat, bits, nodes, room, scaling, seen=self.seen, packed=packed))
        return torch.cat(out, 1)

    def gather(self, starts: Sequence[int], paths: Sequence[Sequence[int]]) -> None:
        """Moves the accepted path of every row to the front, as :meth:`KVCache.gather` does."""
        width = max(len(path) for path in paths)
        padded = [[start, *path, *range(len(path), width)] for start, path in zip(starts, paths, strict=True)]
        moves = to_device(padded, self.keys.device)
        first = self.shifts[:, : len(moves)] + moves[:, :1]
        target = first[..., None] + torch.arange(width, device=self.keys.device)
        source = first[..., None] + moves[:, None, 1:]
        for buffer in (self.keys, self.values):
            buffer[target] = buffer[source]

    def grow(self, capacity: int, lengths: Sequence[int]) -> None:
        """Makes room for more tokens, by copying the buffers.

        Args:
            capacity: Tokens that each row may have.
            lengths: Tokens of every row, deleted ones included.
        """
        bases, self._spare = _layout(self.removed, capacity)
        device = bases.device
        used = (torch.tensor(list(lengths), device=device)[:, None] - self.removed).flatten()
        place = torch.arange(int(used.sum()), device=device) - (used.cumsum(0) - used).repeat_interleave(used)
        old, new = (first.flatten().repeat_interleave(used) + place for first in (self.bases, bases))
        slots = self._spare + MAX_NODES
        for name in ("keys", "values"):
            buffer: Tensor = getattr(self, name)
            larger = buffer.new_zeros(slots, buffer.shape[1])
            larger[new] = buffer[old]
            setattr(self, name, larger)
        if self.seen is not None:
            larger = torch.ones(slots, dtype=torch.bool, device=device)
            larger[new] = self.seen[old]
            self.seen = larger
        for store, before, after in zip(self.chunks, self.bases, bases, strict=True):
            if store is not None:
                store.move(after - before)
        self.rooms = [room + capacity - self.capacity for room in self.rooms]
        self.bases, self.shifts, self.capacity = bases, bases - self.removed, capacity
        self.ends = torch.tensor([capacity, self._spare], device=device)

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps the given rows and drops the others; slots do not move."""
        picked = list(rows)
        self.bases, self.removed, self.shifts = (table[:, picked] for table in (self.bases, self.removed, self.shifts))
        self.starts, self._made = [self.starts[row] for row in picked], None
        self.chunks = [None if store is None else store.keep(picked) for store in self.chunks]
        if self.trial is not None:
            self.trial.keep(picked)
        if self.kept is not None:
            self.kept.keep(picked)

    def compact(self, rows: Sequence[int]) -> None:
        """Moves the given rows, ascending, to the front, in place; the others write to slots that nobody reads."""
        count, picked = len(rows), list(rows)
        for table, ended in ((self.bases, self._spare), (self.removed, 0), (self.shifts, self._spare)):
            front = table[:, picked].clone()
            table.fill_(ended)
            table[:, :count] = front
        for store in self.chunks:
            if store is not None:
                store.compact(picked)
        if self.kept is not None:
            self.kept.compact(picked)

    def take(self, other: RaggedCache) -> bool:
        """Goes on with the prompts of another cache; no tensor moves, so that captured steps stay valid.

        Args:
            other: A cache of the same model and number of rows.

        Returns:
            Whether it is small enough; otherwise nothing has changed.
        """
        if self.bases.shape != other.bases.shape or len(self.keys) < len(other.keys):
            return False
        for mine, new in zip(self.chunks, other.chunks, strict=True):
            if new is not None and (mine is None or not mine.fits(new)):
                return False
        if (self.kept is None) != (other.kept is None):
            return False
        if self.kept is not None and other.kept is not None:
            if not self.kept.fits(other.kept):
                return False
            self.kept.take(other.kept)
        slots = len(other.keys)
        self.keys[:slots], self.values[:slots] = other.keys, other.values
        for mine, new in zip(self.chunks, other.chunks, strict=True):
            if mine is not None:
                mine.take(new)
        if self.seen is not None:
            self.seen[:slots] = True if other.seen is None else other.seen
        for name in ("bases", "removed", "shifts", "ends"):
            getattr(self, name).copy_(getattr(other, name))
        self.rooms = [max(pair) for pair in zip(self.rooms, other.rooms, strict=True)]
        self.capacity, self.extent, self.starts = other.capacity, other.extent, list(other.starts)
        self._spare, self._made = other._spare, None
        return True

    def reserve(self, like: RaggedCache) -> None:
        """Makes room for what another cache has room for, so that it fits whatever that one did.

        Args:
            like: A cache of the same model.
        """
        if self.bases.shape != like.bases.shape:
            return
        more = max(0, len(like.keys) - len(self.keys))
        self.keys, self.values = (
            torch.cat([part, part.new_zeros(more, part.shape[1])]) for part in (self.keys, self.values)
        )
        if self.kept is not None and like.kept is not None:
            self.kept.reserve(like.kept)
        for layer, (mine, other) in enumerate(zip(self.chunks, like.chunks, strict=True)):
            if other is not None and mine is None:
                other.take(None)
                self.chunks[layer] = other
            elif other is not None and mine is not None:
                mine.reserve(other)
        if any(self.chunks):
            seen = torch.ones(len(self.keys), dtype=torch.bool, device=self.keys.device)
            if self.seen is not None:
                seen[: len(self.seen)] = self.seen
            self.seen = seen

    def let_go(self) -> None:
        """Frees the host memory; the cache must :meth:`take` another one before it is used again."""
        for store in self.chunks:
            if store is not None:
                store.let_go()

    @property
    def bytes(self) -> int:
        """Size in bytes on the device."""
        tables = (self.bases, self.removed, self.shifts, *(() if self.seen is None else (self.seen,)))
        own = sum(item.nbytes for item in (self.keys, self.values, *tables))
        packed = 0 if self.kept is None else self.kept.bytes
        return own + packed + sum(store.bytes for store in self.chunks if store is not None)

    @property
    def host_bytes(self) -> int:
        """Size in bytes in host memory."""
        trial = 0 if self.trial is None else self.trial.host_bytes
        return trial + sum(store.host_bytes for store in self.chunks if store is not None)

    def clear(self) -> None:
        """Frees the buffers."""
        self.keys = self.values = self.keys.new_empty(0, self.keys.shape[1])
        self.chunks, self.seen, self.trial, self.kept = [], None, None, None


def _layout(removed: Tensor, capacity: int) -> tuple[Tensor, int]:
    """First slot of every unit, and the first slot behind all of them, where rows write that have ended.

    A unit's room for new tokens is the same, whatever is left of its prompt.

    Args:
        removed: ``[layers, batch, kv_heads]`` tokens of the prompt that are not among a unit's slots.
        capacity: Tokens that each row may have.
    """
    ends = (capacity - removed).flatten().cumsum(0)
    return torch.cat([ends.new_zeros(1), ends[:-1]]).view(removed.shape), int(ends[-1])


def _checked(full: KVCache) -> Tensor:
    """The first layer's keys, if those of all layers, and all values, have the same shape and place."""
    layers = [pair for pair in zip(full.keys, full.values, strict=True) if None not in pair]
    parts = [part for pair in layers for part in pair if part is not None]
    kinds = {(tuple(part.shape[1:2] + part.shape[3:]), str(part.device)) for part in parts}
    if len(layers) < len(full.keys) or len(kinds) != 1:
        shown = ", ".join(f"{heads} x {width} on {device}" for (heads, width), device in sorted(kinds))
        shared = len(full.keys) - len(layers)
        raise ValueError(
            "all layers must have keys and values with the same number and width of heads on one device for a "
            f"compressor, got {shown}{f', and {shared} layers without' if shared else ''}: leave the compressor out."
        )
    return parts[0]


def active_ragged() -> RaggedCache | None:
    """The compressed cache that the running forward reads, if any."""
    return _ACTIVE.get()
