"""HybridKV (arXiv 2604.05887, ACL 2026): some heads are pruned, others fetch what they need at every step.

Of the paper are the two kinds of heads, the sparsity of the text's attention as the sign of a kind, theta, the budget
that goes down from the model to the kinds and to the heads, text before visual tokens, and chunks in host memory. Its
formulas were not at hand: those of sparsity, shares and classes below are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from saccade.common.checks import (
    check_choice,
    check_count,
    check_not_negative,
    check_positive,
    check_share,
    check_switch,
)
from saccade.inference.compression.allocation import BudgetTooSmallError, allocate
from saccade.inference.compression.chunks import chunk_bounds
from saccade.inference.compression.compressor import CacheCompressor, Plan
from saccade.inference.compression.merging import Merging
from saccade.inference.compression.observation import Observation
from saccade.inference.compression.precision import Bits
from saccade.inference.compression.probation import Probation
from saccade.inference.compression.selection import (
    best_positions,
    check_pool,
    ends,
    pooled,
    runs,
    text_prior,
    visual_sinks,
)
from saccade.inference.compression.sparsity import SPARSITIES

_SPARE = 16  # entries of a static head beside its sinks and recent tokens, at the least


@dataclass(frozen=True)
class Roles:
    """The kind of each KV head for one prompt, layer after layer.

    Args:
        sparsity: ``[units]`` float32, the score of each head.
        static: ``[units]`` bool.
        theta: The threshold. Heads near it may be of the other kind; a dynamic head that is taken for static loses
            what it would have fetched, which is the worse error.
    """

    sparsity: Tensor
    static: Tensor
    theta: float

    @property
    def margin(self) -> Tensor:
        """``[units]`` float32: distance of the score from the threshold."""
        return (self.sparsity - self.theta).abs()


@dataclass
class HybridKV(CacheCompressor):
    """Prunes heads whose attention is sparse, and lets the others fetch chunks from host memory.

    A head is static if the attention of the last text tokens of this prompt is sparse, else dynamic. A static head
    keeps its sinks, its recent tokens, text, and the visual tokens around which attention is high, in this order. A
    dynamic head keeps sinks and recent tokens, and at every step holds the chunks that its queries want most.

    Args:
        budget: Share of the prompt's entries that the device has room for.
        window: Most observed rows: the last text tokens behind the last visual token.
        theta: A head is static from this sparsity on. 0 prunes all heads, above 1 all fetch.
        sparsity: ``held_out``: attention of the last observed rows on the ``budget * N`` keys that the other rows would
            keep; ``threshold``: one minus the share of keys with at least ``alive_share`` of their row's largest
            attention; ``concentration``: attention on the best ``budget * N`` keys (all ours).
        alive_share: See ``sparsity``.
        ratio: How many times as much of the budget a static head gets on average (r; ours).
        weighting: How static heads share: ``inverse`` gives more to less sparse heads, ``direct`` to sparser ones,
            ``uniform`` the same to all.
        scope: Whether the budget is divided over the whole ``model``, or over each ``layer`` alone.
        chunk: Most tokens of a chunk.
        representative: What stands for a chunk: its ``mean`` key, or ``minmax``, the bounds of its keys.
        pinned: Share of a dynamic head's chunks that are chosen once, by the attention of the observed rows, and stay
            on the device; the rest are fetched (ours).
        pool: Width over which scores are averaged, odd; not across images.
        sinks: First tokens that every head keeps.
        recent: Last tokens of the prompt that every head keeps; dynamic ones a few more, so that what they hold for
            good is whole chunks.
        pin_text: Dynamic heads keep all text on the device if it is at most a quarter of their share.
        visual_sink: Static heads keep the visual token with the most attention of each image, directly after text.
        merge: Average what static heads delete into what they keep, text into text and visual into visual
            (:class:`saccade.inference.compression.merging.Merging`).
        min_static: Least share of static heads; the sparsest are taken.
        max_static: Most.
        probation: Tokens behind the prompt during which static heads are on probation: what they deleted stays in host
            memory so long, steps draft nothing, and are not captured. 0 trusts them (the paper says nothing of it).
        most_lost: A static head that would have paid more than this share of these tokens' attention to what it deleted
            becomes a dynamic one, within its share of the budget.
        host_bits: Bits of the numbers of chunks in host memory and on the link to the device, where they are unpacked
            (:mod:`saccade.inference.compression.precision`; ours): 16 is the model's precision.
        kept_bits: Bits of the numbers of tokens that stay on the device for good, of static heads and pins (ours). The
            budget counts tokens, whatever their bits.

    Raises:
        ValueError: A setting outside its range.
    """

    budget: float = 0.1
    window: int = 32
    theta: float = 0.99
    sparsity: Literal["held_out", "threshold", "concentration"] = "held_out"
    alive_share: float = 0.01
    ratio: float = 1.0
    weighting: Literal["inverse", "direct", "uniform"] = "inverse"
    scope: Literal["model", "layer"] = "model"
    chunk: int = 16
    representative: Literal["mean", "minmax"] = "mean"
    pinned: float = 0.5
    pool: int = 5
    sinks: int = 4
    recent: int = 32
    pin_text: bool = True
    visual_sink: bool = True
    merge: bool = False
    min_static: float = 0.0
    max_static: float = 1.0
    probation: int = 0
    most_lost: float = 0.2
    host_bits: Bits = 16
    kept_bits: Bits = 16

    dynamic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("window", self.window, advice="the roles of heads follow from observed rows")
        check_not_negative("theta", self.theta)
        check_choice("sparsity", self.sparsity, SPARSITIES)
        check_positive("ratio", self.ratio)
        check_choice("weighting", self.weighting, ("inverse", "direct", "uniform"))
        check_choice("scope", self.scope, ("model", "layer"))
        check_choice("representative", self.representative, ("mean", "minmax"))
        check_share("pinned", self.pinned)
        check_count("chunk", self.chunk)
        check_pool(self.pool)
        for name in ("sinks", "recent"):
            check_count(name, getattr(self, name), least=0)
        for name in ("pin_text", "visual_sink", "merge"):
            check_switch(name, getattr(self, name))
        check_count("probation", self.probation, least=0)
        check_share("most_lost", self.most_lost)
        if self.probation and self.kept_bits != 16:
            raise ValueError(
                f"kept_bits must be 16 for heads on probation, got {self.kept_bits}: leave kept_bits or probation out."
            )
        check_share("min_static", self.min_static)
        check_share("max_static", self.max_static)
        if self.min_static > self.max_static:
            raise ValueError(
                f"min_static must be at most max_static, {self.max_static}, got {self.min_static}: lower it."
            )

    @property
    def looks_twice(self) -> bool:
        """Whether the attention of the last observed rows is wanted apart."""
        return self.sparsity == "held_out"

    def roles(self, seen: Observation) -> Roles:
        """The kind of each head for one prompt; a subclass may decide by another score."""
        score = SPARSITIES[self.sparsity](seen, self.budget)
        static = score >= self.theta
        count = int(static.sum())
        least, most = (round(share * len(score)) for share in (self.min_static, self.max_static))
        if not least <= count <= most:
            wanted = min(max(count, least), most)
            static = torch.zeros_like(static)
            static[score.sort(descending=True, stable=True).indices[:wanted]] = True
        return Roles(score, static, self.theta)

    def caps(self, roles: Roles, heads: Sequence[int], length: int) -> list[int]:
        """Entries of each head.

        Args:
            roles: The kinds of the heads.
            heads: KV heads of each layer.
            length: Tokens of the prompt.

        Raises:
            BudgetTooSmallError: The heads' least shares are more than the budget.
        """
        weight = {
            "inverse": 1 - roles.sparsity + 1e-3,
            "direct": roles.sparsity,
            "uniform": torch.ones_like(roles.sparsity),
        }[self.weighting]
        sizes = [sum(heads)] if self.scope == "model" else list(heads)
        found: list[int] = []
        errors = []
        for static, weights in zip(roles.static.split(sizes), weight.split(sizes), strict=True):
            try:
                found += allocate(
                    static.tolist(),
                    weights.tolist(),
                    budget=self.budget,
                    length=length,
                    ratio=self.ratio,
                    chunk=self.chunk,
                    least_static=self.sinks + self.recent + _SPARE,
                    least_dynamic=self.sinks + self._recent + self.chunk,
                )
            except BudgetTooSmallError as error:
                errors.append(error)
        if errors:
            raise max(errors, key=lambda error: error.smallest)  # the budget with which all layers can work
        return found

    def plan(self, seen: Observation) -> Plan:
        """Roles, shares, and the positions of each head."""
        roles = self.roles(seen)
        caps = seen.by_layer(self.caps(roles, seen.heads, seen.length))
        static = seen.by_layer(roles.static.tolist())
        pins = self._pins(seen.visual.cpu())
        bounds = chunk_bounds(seen.segments, self.chunk, (self.sinks, seen.length - self._recent))
        kept: list[list[Tensor]] = []
        slots: list[list[int]] = []
        for scores, layer_caps, layer_static in zip(seen.mean, caps, static, strict=True):
            # a head with room for everything needs no choice, whatever its kind
            whole = [kind or cap == seen.length for kind, cap in zip(layer_static, layer_caps, strict=True)]
            sets = iter(self._static_sets(scores, seen, whole, layer_caps))
            chosen = [
                next(sets) if prune else next(held for held, least in pins if cap >= least).to(scores.device)
                for prune, cap in zip(whole, layer_caps, strict=True)
            ]
            kept.append(chosen)
            counts = [
                0 if prune else (cap - len(held)) // self.chunk
                for prune, cap, held in zip(whole, layer_caps, chosen, strict=True)
            ]
            slots.append(counts)
        more = [[int(count * self.pinned) for count in counts] for counts in slots]
        if any(map(any, more)):
            kept = self._with_chunks(seen, kept, bounds, more)
            slots = [[count - new for count, new in zip(*pair, strict=True)] for pair in zip(slots, more, strict=True)]
        merged = Merging(seen.visual.long()) if self.merge else None
        trial = Probation(self.probation, self.most_lost, pins[-1][0]) if self.probation else None
        if trial is None and not any(map(any, slots)):
            return Plan(kept, slots, merged=merged, kept_bits=self.kept_bits)
        chunks = self.chunk, bounds, self.representative
        return Plan(kept, slots, *chunks, merged, trial, self.host_bits, self.kept_bits)

    @property
    def _recent(self) -> int:
        """Last tokens that a dynamic head keeps: with its sinks, whole chunks."""
        return self.recent + -(self.sinks + self.recent) % self.chunk

    def _pins(self, visual: Tensor) -> list[tuple[Tensor, int]]:
        """Sets that a dynamic head may always hold, each with the least entries of a head that holds it."""
        front, back = ends(len(visual), self.sinks, self._recent)
        plain = (front | back).nonzero()[:, 0]
        if not self.pin_text:
            return [(plain, 0)]
        with_text = (front | back | ~visual).nonzero()[:, 0]
        return [(with_text, max(4 * int((~visual).sum()), len(with_text) + self.chunk)), (plain, 0)]

    def _with_chunks(
        self, seen: Observation, pins: list[list[Tensor]], bounds: Tensor, counts: Sequence[Sequence[int]]
    ) -> list[list[Tensor]]:
        """The pins of all heads, with further chunks: those to which the observed rows attend most.

        Args:
            seen: What is seen of the prompt.
            pins: For each layer and head ``[pins]``.
            bounds: ``[chunks + 1]`` int64 on the CPU.
            counts: Further chunks of each head; a head with 0 keeps its pins.
        """
        # all layers at once: each operation waits longer to start than it takes
        wide = [count for layer in counts for count in layer]
        before = [own for layer in pins for own in layer]
        scores = torch.cat([layer.to(seen.mean[0].device) for layer in seen.mean])
        device, chunks = scores.device, len(bounds) - 1
        begins = bounds[:-1].to(device)
        index = torch.arange(chunks).repeat_interleave(bounds.diff()).to(device)  # the chunk of each position
        held = torch.zeros(scores.numel(), dtype=torch.bool, device=device)
        places = [own.to(device) + unit * seen.length for unit, own in enumerate(before) if wide[unit]]
        held = held.index_fill_(0, torch.cat(places), True).view(scores.shape)
        attention = scores.new_zeros(len(scores), chunks).index_add_(1, index, scores)
        attention.masked_fill_(held[:, begins], -1)
        order = attention.sort(dim=-1, descending=True, stable=True).indices
        first = torch.arange(chunks, device=device) < torch.tensor(wide, device=device)[:, None]
        held |= torch.zeros_like(first).scatter_(1, order, first)[:, index]
        found = held.nonzero()[:, 1].split(held.sum(1).tolist())
        wider = [new.to(own.device) if count else own for own, new, count in zip(before, found, wide, strict=True)]
        return seen.by_layer(wider)

    def _static_sets(
        self, scores: Tensor, seen: Observation, whole: Sequence[bool], caps: Sequence[int]
    ) -> list[Tensor]:
        """The sets of those heads of a layer that hold no chunks."""
        chosen = [head for head, static in enumerate(whole) if static]
        if not chosen:
            return []
        scores = scores[chosen]
        visual, segments = seen.visual.to(scores.device), seen.segments.to(scores.device)
        classes = text_prior(visual, self.sinks, self.recent).expand(scores.shape)
        if self.visual_sink:
            classes = classes + (visual_sinks(scores, segments) & (classes == 0))
        return best_positions(
            pooled(scores, runs(segments, self.recent), self.pool), classes, [caps[head] for head in chosen]
        )
