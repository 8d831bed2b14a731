"""Attention heads whose right kind is known, and the error of their output under a plan.

Some heads attend to the same few visual tokens in the prompt and at every decode step. The others jump to another place
every few steps, so that the prompt does not tell what they will need. Keys change slowly along the sequence, as those
of neighbouring patches do. All sizes and factors are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.inference.compression.chunks import (
    chunk_bounds,
    chunk_scores,
    pinned_chunks,
    replace_slots,
    representatives,
    top_chunks,
)
from saccade.inference.compression.compressor import Plan, Representative
from saccade.inference.compression.observation import Observation, attention_scores

FRONT, BACK = 32, 64  # text before and behind the visual tokens
TARGETS, STAY = 8, 4  # tokens that a static head attends to; steps that a dynamic head stays at a place


@dataclass(frozen=True)
class World:
    """One layer of planted heads.

    Args:
        keys: ``[heads, N, D]``.
        values: ``[heads, N, D]``.
        queries: ``[heads, steps, D]`` of the decode steps.
        static: ``[heads]`` bool, the right kinds.
        targets: ``[heads, 8]`` int64: the tokens that a head would attend to if it were static.
        seen: What is seen of the prompt.
    """

    keys: Tensor
    values: Tensor
    queries: Tensor
    static: Tensor
    targets: Tensor
    seen: Observation


def planted_heads(
    seed: int,
    heads: int = 32,
    static: int = 8,
    length: int = 2048,
    width: int = 64,
    steps: int = 24,
    rows: int = 32,
    *,
    one_answer: bool = False,
) -> World:
    """Makes a layer.

    Args:
        seed: Seed of all numbers.
        heads: KV heads, each with one query head.
        static: How many of them are static, the first ones.
        length: Tokens of the prompt: 32 of text, visual tokens, 64 of text.
        width: Of a head.
        steps: Decode steps.
        rows: Observed rows.
        one_answer: Whether all static heads attend to the same tokens.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    keys = normal(heads, length, width)
    for place in range(1, length):
        keys[:, place] = 0.8 * keys[:, place - 1] + 0.6 * keys[:, place]
    unit = F.normalize(keys, dim=-1)
    head = torch.arange(heads)[:, None]
    targets = torch.randint(FRONT, length - BACK, (heads, TARGETS), generator=generator)
    if one_answer:
        targets = targets[:1].expand_as(targets)
    kinds = torch.arange(heads) < static
    fixed = 6 * unit[head, targets].sum(1)[:, None]
    places = torch.randint(FRONT, length - BACK, (heads, -(-steps // STAY)), generator=generator)
    moving = 14 * unit[head, places.repeat_interleave(STAY, 1)[:, :steps]]
    asked = torch.where(
        kinds[:, None, None], fixed + 1.5 * normal(heads, rows, width), 2.2 * normal(heads, rows, width)
    )
    queries = torch.where(
        kinds[:, None, None], fixed + 1.5 * normal(heads, steps, width), moving + normal(*moving.shape)
    )
    position = torch.arange(length)
    visual = (position >= FRONT) & (position < length - BACK)
    mean, alive, _ = attention_scores(asked, keys, length - rows, width**-0.5)
    seen = Observation([mean], [alive], visual, visual.long() - 1, (length - rows, length))
    return World(keys, normal(heads, length, width), queries, kinds, targets, seen)


def outcome(world: World, plan: Plan) -> tuple[float, float]:
    """What a plan does to the outputs of the heads, and what it moves.

    Args:
        world: The heads.
        plan: A plan for them.

    Returns:
        The error, the relative L2 distance of a head's output from that with all keys, mean over heads and steps; and
        the tokens that are copied to the device in a step, all heads together, mean over steps.
    """
    heads, length, width = world.keys.shape
    logits = world.queries @ world.keys.transpose(1, 2) * width**-0.5
    right = logits.softmax(-1) @ world.values
    held = torch.zeros(heads, world.queries.shape[1], length, dtype=torch.bool)
    keys, values = world.keys.clone(), world.values.clone()
    for head, kept in enumerate(plan.kept[0]):
        held[head, :, kept] = True
        if plan.merged is not None and not plan.slots[0][head]:
            keys[head, kept], values[head, kept] = plan.merged.merge(keys[head], values[head], kept)
    fetched = _fetch(world, plan, held)
    if plan.merged is not None:
        logits = world.queries @ keys.transpose(1, 2) * width**-0.5
    made = logits.masked_fill(~held, -torch.inf).softmax(-1) @ values
    error = (made - right).norm(dim=-1) / right.norm(dim=-1)
    return float(error.mean()), fetched / world.queries.shape[1]


def recall(world: World, representative: Representative, count: int, chunk: int = 16) -> float:
    """How often the chunk with the most attention is among those that a representative finds.

    Args:
        world: The heads; the dynamic ones count.
        representative: What stands for a chunk.
        count: Chunks that are found.
        chunk: Tokens of a chunk.

    Returns:
        The share of heads and steps.
    """
    keys, queries = world.keys[~world.static], world.queries[~world.static]
    bounds = chunk_bounds(world.seen.segments, chunk)
    index = torch.arange(len(bounds) - 1).repeat_interleave(bounds.diff())
    weights = (queries @ keys.transpose(1, 2) * keys.shape[-1] ** -0.5).softmax(-1)
    mass = weights.new_zeros(*weights.shape[:2], len(bounds) - 1).index_add_(-1, index, weights)
    standing = representatives(keys, bounds, chunk, representative)[:, None]  # the same for all steps
    found = top_chunks(chunk_scores(queries[..., None, :], standing), count)
    return float((found == mass.argmax(-1, keepdim=True)).any(-1).float().mean())


def _fetch(world: World, plan: Plan, held: Tensor) -> int:
    """Marks what the dynamic heads hold at each step; the tokens that were fetched for it."""
    if plan.bounds is None:
        return 0
    bounds, total = plan.bounds, 0
    sizes = bounds.diff()
    chunk_of = torch.arange(len(sizes)).repeat_interleave(sizes)
    for count in sorted(set(plan.slots[0]) - {0}):
        group = [head for head, slots in enumerate(plan.slots[0]) if slots == count]
        rep = representatives(world.keys[group], bounds, plan.chunk, plan.representative)
        pinned = pinned_chunks([plan.kept[0][head] for head in group], bounds[:-1], int(bounds[-1]))
        slots = torch.full((len(group), count), -1)
        for step in range(world.queries.shape[1]):
            wanted = top_chunks(chunk_scores(world.queries[group, step, None], rep), count, pinned)
            slots, new = replace_slots(slots, wanted)
            total += int(sizes[slots[new]].sum())
            present = torch.zeros(len(group), len(sizes), dtype=torch.bool).scatter_(1, slots, True)
            held[group, step] |= present[:, chunk_of]
    return total
