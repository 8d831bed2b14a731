"""The probation of static heads: what they deleted stays in host memory for some steps (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saccade.inference.compression.chunks import RowChunks
from saccade.inference.compression.compressor import Plan
from saccade.inference.engine.compressed.attention import row_scores
from saccade.inference.engine.compressed.chunk_store import ChunkStore
from saccade.inference.engine.compressed.host_copies import HostCopies

if TYPE_CHECKING:
    from saccade.inference.engine.compressed.cache import RaggedCache


class Trial:
    """Static heads of one batch on probation.

    The queries of the first tokens behind the prompts are noted by their places in the text, so that a token which is
    taken back and replaced leaves no trace. Then their exact attention to all of the prompt is computed, with the keys
    on the host, and a head that misses too much of it becomes a dynamic one. Its slots stay where they are: some hold
    its pins, the others chunks.

    Args:
        plans: What is kept of every row.
        lengths: Tokens of every prompt.
        layers: Layers of the model.
    """

    def __init__(self, plans: Sequence[Plan], lengths: Sequence[int], layers: int) -> None:
        self.plans, self.prompts = list(plans), list(lengths)
        self.steps = max(plan.probation.steps for plan in plans if plan.probation is not None)
        self.held: list[dict[tuple[int, int], tuple[Tensor, Tensor]]] = [{} for _ in range(layers)]
        """For each layer the host copies ``[n, head_dim]`` of keys and values, by row and KV head."""
        self._queries: list[Tensor | None] = [None] * layers
        self._scaling: list[float | None] = [None] * layers
        self._starts: Tensor | None = None

    @classmethod
    def of(cls, plans: Sequence[Plan], lengths: Sequence[int]) -> Trial | None:
        """The trial of some plans; ``None`` if none of their heads is on probation."""
        if not any(on_trial(plan, layer) for plan in plans for layer in range(len(plan.kept))):
            return None
        return cls(plans, lengths, len(plans[0].kept))

    def add(self, layer: int, keys: Tensor, values: Tensor, copies: HostCopies) -> None:
        """Keeps the whole prompt of those heads of a layer that are on probation.

        Args:
            layer: The layer.
            keys: ``[batch, kv_heads, slots, head_dim]`` of the whole prompts.
            values: Like ``keys``.
            copies: They bring it to host memory.
        """
        for row, plan in enumerate(self.plans):
            for head in on_trial(plan, layer):
                pair = []
                for part in (keys, values):
                    own = part[row, head, : self.prompts[row]]
                    pair.append(copies.empty(own.shape, own.dtype))
                    copies.copy(own, pair[-1])
                self.held[layer][row, head] = pair[0], pair[1]

    def note(self, layer: int, query: Tensor, lengths: Tensor, scaling: float | None) -> None:
        """Notes the queries of a step, a chain, as far as its tokens are among the first.

        Args:
            layer: The layer.
            query: ``[batch, heads, nodes, head_dim]``.
            lengths: ``[batch]`` tokens of every row before the step.
            scaling: Factor of the scores.
        """
        if not self.held[layer]:
            return
        batch, heads, nodes, width = query.shape
        kept = self._queries[layer]
        if kept is None:  # one place more, for what is not wanted
            kept = self._queries[layer] = query.new_zeros(batch, self.steps + 1, heads, width)
        if self._starts is None:
            self._starts = torch.tensor(self.prompts, device=query.device)
        place = (lengths - self._starts)[:, None] + torch.arange(nodes, device=query.device)
        kept[torch.arange(batch, device=query.device)[:, None], place.clamp(max=self.steps)] = query.transpose(1, 2)
        self._scaling[layer] = scaling

    def due(self, lengths: Sequence[int]) -> bool:
        """Whether all rows have as many tokens behind their prompts as are looked at."""
        return all(now - before >= self.steps for now, before in zip(lengths, self.prompts, strict=True))

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps the given rows and drops the others."""
        new = {old: place for place, old in enumerate(rows)}
        self.plans = [self.plans[row] for row in rows]
        self.prompts = [self.prompts[row] for row in rows]
        self.held = [
            {(new[row], head): pair for (row, head), pair in layer.items() if row in new} for layer in self.held
        ]
        self._queries = [None if kept is None else kept[list(rows)] for kept in self._queries]
        self._starts = None

    def lost(self, cache: RaggedCache) -> list[dict[tuple[int, int], float]]:
        """For each layer the share of attention that falls on deleted keys, by row and KV head.

        Args:
            cache: The cache, which holds the keys of the new tokens.
        """
        found: list[tuple[int, int, int]] = []
        shares: list[Tensor] = []
        for layer, held in enumerate(self.held):
            queries = self._queries[layer]
            if queries is None:
                continue
            group = queries.shape[2] // cache.bases.shape[2]
            for (row, head), (keys, _) in held.items():
                kept = self.plans[row].kept[layer][head].to(cache.keys.device)
                begin = cache.bases[layer, row, head] + len(kept)
                new = cache.keys[begin + torch.arange(self.steps, device=cache.keys.device)]
                asked = queries[row, : self.steps, head * group : (head + 1) * group].transpose(0, 1).contiguous()
                seen = torch.cat([keys.to(new.device, non_blocking=True), new])[None]
                scale = self._scaling[layer]
                factor = asked.shape[-1] ** -0.5 if scale is None else scale
                mean = row_scores(asked, seen, self.prompts[row], factor)[0][0]
                shares.append(mean[: self.prompts[row]].sum() - mean[kept].sum())
                found.append((layer, row, head))
        result: list[dict[tuple[int, int], float]] = [{} for _ in self.held]
        for (layer, row, head), share in zip(found, torch.stack(shares).tolist() if shares else [], strict=True):
            result[layer][row, head] = share
        return result

    def settle(self, cache: RaggedCache) -> None:
        """Makes those heads of a cache fetch that miss too much, and frees the host copies.

        A head whose share has no room for a chunk beside its pins stays as it is.

        Args:
            cache: The cache.
        """
        copies = HostCopies(cache.keys.device)
        bases = cache.bases.cpu()
        for layer, shares in enumerate(self.lost(cache)):
            failed = [unit for unit, share in shares.items() if share > self._most_lost(unit[0])]
            failed = [(row, head) for row, head in failed if self._slots(layer, row, head) > 0]
            if failed:
                self._demote(cache, layer, failed, bases[layer], copies)
            self.held[layer].clear()
        copies.finish()

    @property
    def host_bytes(self) -> int:
        """Size in bytes of the host copies."""
        return sum(part.nbytes for layer in self.held for pair in layer.values() for part in pair)

    def _most_lost(self, row: int) -> float:
        own = self.plans[row].probation
        return 1.0 if own is None else own.most_lost

    def _slots(self, layer: int, row: int, head: int) -> int:
        """Chunks for which a head has room if it becomes a dynamic one, at most those that are not pins."""
        plan = self.plans[row]
        if plan.probation is None or plan.bounds is None:
            return 0
        room = (len(plan.kept[layer][head]) - len(plan.probation.pins)) // plan.chunk
        starts = torch.isin(plan.bounds[:-1], plan.probation.pins.cpu())
        return min(room, int((~starts).sum()))

    def _demote(
        self, cache: RaggedCache, layer: int, failed: list[tuple[int, int]], bases: Tensor, copies: HostCopies
    ) -> None:
        device, (heads, width) = cache.keys.device, (cache.bases.shape[2], cache.keys.shape[1])
        whole = [cache.keys.new_zeros(len(self.plans), heads, max(self.prompts), width) for _ in range(2)]
        kept = [[plan.kept[layer][head] for head in range(heads)] for plan in self.plans]
        slots = [[0] * heads for _ in self.plans]
        if cache.seen is None:
            cache.seen = torch.ones(len(cache.keys), dtype=torch.bool, device=device)
        for row, head in failed:
            probation = self.plans[row].probation
            if probation is None:
                continue
            pins, base = probation.pins.to(device), int(bases[row, head])
            for buffer, part, own in zip((cache.keys, cache.values), whole, self.held[layer][row, head], strict=True):
                part[row, head, : self.prompts[row]] = own.to(device, non_blocking=True)
                buffer[base : base + len(pins)] = part[row, head, pins]
            # slots behind the pins are empty until chunks are fetched into them; what does not divide stays empty
            cache.seen[base + len(pins) : base + len(kept[row][head])] = False
            slots[row][head] = self._slots(layer, row, head)
            kept[row][head] = pins
        plans = [
            Plan([own], [counts], plan.chunk, plan.bounds, plan.representative, host_bits=plan.host_bits)
            for own, counts, plan in zip(kept, slots, self.plans, strict=True)
        ]
        chunks_of = [
            None if plan.bounds is None else RowChunks.of(plan.bounds.to(device), plan.chunk) for plan in plans
        ]
        made = ChunkStore.of(0, whole[0], whole[1], plans, bases, self.prompts, chunks_of, copies)
        copies.finish()
        before = cache.chunks[layer]
        cache.chunks[layer] = made if before is None or made is None else before.joined(made)


def on_trial(plan: Plan, layer: int) -> list[int]:
    """The KV heads of a layer that have deleted something and are on probation."""
    if plan.probation is None or plan.bounds is None:
        return []
    length = int(plan.bounds[-1])
    pairs = zip(plan.kept[layer], plan.slots[layer], strict=True)
    return [head for head, (kept, slots) in enumerate(pairs) if not slots and len(kept) < length]


def trial_bytes(plans: Sequence[Plan], width: int, itemsize: int) -> int:
    """Host memory that probation takes at most: the whole prompt of each head, and again in chunks if it is demoted.

    Args:
        plans: What is kept of every row.
        width: Dimensions of a head.
        itemsize: Bytes of a number.
    """
    tokens = sum(
        int(plan.bounds[-1]) * len(on_trial(plan, layer))
        for plan in plans
        if plan.bounds is not None
        for layer in range(len(plan.kept))
    )
    return 2 * 2 * tokens * width * itemsize


def on_probation(storage: object, lengths: Sequence[int]) -> bool:
    """Whether heads of a session's storage are still on probation, so that its steps draft nothing.

    Args:
        storage: Of the session.
        lengths: Tokens of every row.
    """
    trial: Trial | None = getattr(storage, "trial", None)
    return trial is not None and not trial.due(lengths)
