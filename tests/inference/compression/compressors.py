"""Observations to test compressors with, and every compressor with settings that fit them."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from saccade.inference import (
    AdaKV,
    CacheCompressor,
    FullKV,
    HeadKV,
    HybridKV,
    LookM,
    PyramidKV,
    Quest,
    RandomKV,
    SnapKV,
    StreamingLLM,
    VLCache,
)
from saccade.inference.compression.chunks import pinned_chunks
from saccade.inference.compression.compressor import Plan
from saccade.inference.compression.observation import Observation, observed_rows
from saccade.inference.compression.selection import runs

COMPRESSORS: dict[str, CacheCompressor] = {
    "HybridKV": HybridKV(budget=0.2),
    "HybridKV by layer": HybridKV(budget=0.2, scope="layer"),
    "HybridKV in few bits": HybridKV(budget=0.2, host_bits=4, kept_bits=8),
    "SnapKV": SnapKV(budget=0.2),
    "PyramidKV": PyramidKV(budget=0.2),
    "AdaKV": AdaKV(budget=0.2),
    "LookM": LookM(budget=0.2),
    "VLCache": VLCache(budget=0.2),
    "HeadKV": HeadKV([[1, 3], [1, 2, 0], [5]], budget=0.2),
    "StreamingLLM": StreamingLLM(budget=0.2),
    "Quest": Quest(budget=0.2),
    "RandomKV": RandomKV(budget=0.2),
    "FullKV": FullKV(),
}
"""For prompts of layers with two, three and one KV heads."""


def prompt(length: int, images: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor]:
    """Masks of visual tokens and numbers of images; images are given by first position and one past the last."""
    segments = torch.full((length,), -1)
    for number, (start, end) in enumerate(images):
        segments[start:end] = number
    return segments >= 0, segments


def observation(
    seed: int = 0,
    length: int = 640,
    heads: tuple[int, ...] = (2, 3, 1),
    images: tuple[tuple[int, int], ...] = ((20, 250), (250, 420), (440, 600)),
    window: int = 64,
) -> Observation:
    """Random attention; heads differ in how sparse it is, from 0.8 to 1."""
    generator = torch.Generator().manual_seed(seed)
    visual, segments = prompt(length, images)
    mean = [torch.rand(count, length, generator=generator) ** 8 for count in heads]
    alive = [torch.rand(count, generator=generator) * 0.2 for count in heads]
    mean = [scores / scores.sum(-1, keepdim=True) for scores in mean]
    late = [(scores + scores.roll(7, -1)) / 2 for scores in mean]
    return Observation(mean, alive, visual, segments, observed_rows(length, visual, window), late)


def check_plan(plan: Plan, seen: Observation, budget: float) -> None:
    """What every plan keeps to, whatever the method."""
    assert plan.entries <= budget * seen.units * seen.length + 1e-6
    assert [len(layer) for layer in plan.kept] == [len(layer) for layer in plan.slots] == seen.heads
    for layer, scores in zip(plan.kept, seen.mean, strict=True):
        for kept in layer:
            assert kept.dtype == torch.int64
            assert kept.device == scores.device
            assert bool((kept.diff() > 0).all()), "ascending and distinct"
            assert not len(kept) or (kept[0] >= 0 and kept[-1] < seen.length)
    if not any(map(any, plan.slots)):
        assert plan.bounds is None
        return
    assert plan.bounds is not None
    assert plan.bounds[0] == 0
    assert plan.bounds[-1] == seen.length
    sizes = plan.bounds.diff()
    assert bool(((sizes > 0) & (sizes <= plan.chunk)).all())
    run = runs(seen.segments)
    assert all(run[start] == run[end - 1] for start, end in pairwise(plan.bounds.tolist())), "a chunk in two images"
    for layer, slots in zip(plan.kept, plan.slots, strict=True):
        for kept, count in zip(layer, slots, strict=True):
            if count:
                pinned = pinned_chunks([kept], plan.bounds[:-1], seen.length)[0]
                assert int(sizes[pinned].sum()) == len(kept), "pins are whole chunks"
                assert count <= int((~pinned).sum())
