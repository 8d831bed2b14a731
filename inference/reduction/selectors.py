"""Selectors of video tokens: SpecVLM's, its baselines and its ablations."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.common.checks import check_share
from saccade.common.decimals import as_written
from saccade.inference.reduction.selector import (
    VideoSelector,
    VideoView,
    checked_scores,
    evenly_spaced,
    two_stage_selection,
    video_budget,
)

Place = Literal["front", "middle", "back"]

GROUP = 4  # frames of a group in TemporalMerge, of which the first is kept whole
REFERENCES = (0, 0, 0, 2)  # for each frame of a group the frame that it is compared with


@dataclass
class RatioSelector(VideoSelector):
    """Base of selectors with the setting ``prune_ratio``.

    Args:
        prune_ratio: Share of the tokens that is removed.

    Raises:
        ValueError: A ratio outside [0, 1].
    """

    prune_ratio: float = 0.9

    def __post_init__(self) -> None:
        check_share("prune_ratio", self.prune_ratio)


@dataclass
class NoPruning(VideoSelector):
    """Keeps every token: plain speculative decoding."""

    prune_ratio: ClassVar[float] = 0.0

    def select(self, view: VideoView) -> Tensor:
        """All tokens."""
        return torch.arange(view.tokens)


@dataclass
class RandomTokens(RatioSelector):
    """Keeps random tokens (a baseline of SpecVLM).

    Args:
        prune_ratio: Share of the tokens that is removed.
        seed: Seed. The kept tokens depend only on it, on the seed of the call and on the row.

    Raises:
        ValueError: A ratio outside [0, 1].
    """

    seed: int = 0

    def select(self, view: VideoView) -> Tensor:
        """A random subset of the budget's size; all such subsets are equally likely."""
        seed = random.Random(f"{self.seed}/{view.seed}/{view.row}").getrandbits(63)
        order = torch.randperm(view.tokens, generator=torch.Generator().manual_seed(seed))
        return order[: video_budget(view.tokens, self.prune_ratio)].sort().values


@dataclass
class Uniform(RatioSelector):
    """Keeps evenly spaced tokens of the flattened video, including the first and the last; needs no attention.

    This is SpecVLM's second stage alone, which its authors recommend if attention is not available.

    Args:
        prune_ratio: Share of the tokens that is removed.

    Raises:
        ValueError: A ratio outside [0, 1].
    """

    def select(self, view: VideoView) -> Tensor:
        """One token in every ``1 / (1 - prune_ratio)``."""
        return evenly_spaced(view.tokens, video_budget(view.tokens, self.prune_ratio))


@dataclass
class Window(RatioSelector):
    """Keeps a contiguous part of the flattened video (a baseline of SpecVLM).

    Args:
        prune_ratio: Share of the tokens that is removed.
        place: Which part is kept: ``front``, ``middle`` or ``back``.

    Raises:
        ValueError: A ratio outside [0, 1], or an unknown place.
    """

    place: Place = "middle"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.place not in get_args(Place):
            raise ValueError(f"place must be one of {', '.join(get_args(Place))}, got {self.place!r}: choose one.")

    def select(self, view: VideoView) -> Tensor:
        """The tokens of the kept part."""
        budget = video_budget(view.tokens, self.prune_ratio)
        spare = view.tokens - budget
        start = {"front": 0, "middle": spare // 2, "back": spare}[self.place]
        return torch.arange(start, start + budget)


@dataclass
class AttentionOnly(RatioSelector):
    """Keeps the tokens with the highest scores: SpecVLM's first stage alone. Of equal scores the earlier is kept.

    Args:
        prune_ratio: Share of the tokens that is removed.

    Raises:
        ValueError: A ratio outside [0, 1].
    """

    needs_scores: ClassVar[bool] = True
    descending: ClassVar[bool] = True

    def select(self, view: VideoView) -> Tensor:
        """The tokens with the highest scores, as many as the budget."""
        order = checked_scores(view.need_scores()).sort(descending=self.descending, stable=True).indices
        return order[: video_budget(view.tokens, self.prune_ratio)].sort().values


@dataclass
class ReversedAttention(AttentionOnly):
    """Keeps the tokens with the lowest scores: an ablation of SpecVLM that measures the effect of the scores.

    Args:
        prune_ratio: Share of the tokens that is removed.

    Raises:
        ValueError: A ratio outside [0, 1].
    """

    descending: ClassVar[bool] = False


@dataclass
class TwoStage(RatioSelector):
    """SpecVLM's selection: the tokens with most of the attention, and evenly spaced ones of the others.

    Args:
        prune_ratio: Share of the tokens that is removed.
        mass: Share of the attention that the first stage collects (lambda of the paper); ``None`` is 0.4 for a
            ``prune_ratio`` above 0.75, otherwise 0.5.
        released: Round as the authors' code does (:func:`saccade.inference.reduction.selector.video_budget`).

    Raises:
        ValueError: A ratio or a mass outside [0, 1].
    """

    needs_scores: ClassVar[bool] = True

    mass: float | None = None
    released: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mass is not None:
            check_share("mass", self.mass)

    def select(self, view: VideoView) -> Tensor:
        """The tokens of both stages."""
        scores = view.need_scores()
        return two_stage_selection(scores, self.prune_ratio, self.mass, released=self.released).cpu()


@dataclass
class WholeFrames(RatioSelector):
    """Keeps evenly spaced whole frames, at least one, and tokens after the grid (an ablation of SpecVLM).

    Does not keep exactly the budget, but ``max(1, floor(frames * (1 - prune_ratio)))`` frames.

    Args:
        prune_ratio: Share of the frames that is removed.

    Raises:
        ValueError: A ratio outside [0, 1].
    """

    needs_grid: ClassVar[bool] = True
    budgeted: ClassVar[bool] = False

    def select(self, view: VideoView) -> Tensor:
        """The tokens of the kept frames."""
        keep, frames = _frames(view)
        frames[evenly_spaced(len(frames), max(1, video_budget(len(frames), self.prune_ratio)))] = True
        return keep.nonzero()[:, 0]


@dataclass
class FrameSimilarity(RatioSelector):
    """Removes the frames that are most similar to their previous frame (an ablation of SpecVLM).

    Similarity is the mean cosine between tokens at the same place of both frames; the first frame is removed last. Does
    not keep exactly the budget, but removes ``floor(frames * prune_ratio)`` whole frames, of equal ones the earlier.
    Tokens after the grid are kept.

    Args:
        prune_ratio: Share of the frames that is removed.

    Raises:
        ValueError: A ratio outside [0, 1].
    """

    needs_grid: ClassVar[bool] = True
    needs_features: ClassVar[bool] = True
    budgeted: ClassVar[bool] = False

    def select(self, view: VideoView) -> Tensor:
        """The tokens of the kept frames."""
        keep, frames = _frames(view)
        frames[:] = True
        count = len(frames)
        similarity = _cosines(view, [max(0, frame - 1) for frame in range(count)]).mean(1)
        similarity[0] = -torch.inf
        removed = math.floor(as_written(self.prune_ratio) * count)
        frames[similarity.sort(descending=True, stable=True).indices[:removed]] = False
        return keep.nonzero()[:, 0]


@dataclass
class TemporalMerge(RatioSelector):
    """Keeps the first frame of every group of four, and the changed tokens of the others (like DyCoke, 2411.15024).

    Of the second, third and fourth frame, the ``floor(0.75 * (1 - prune_ratio) * places)`` tokens are kept that have
    the lowest cosine to the token at the same place of the first, first and third frame. Other tokens are dropped, not
    averaged. **Does not keep exactly the budget**: a quarter of the video is kept at every ratio; with 0.9 and 196
    places about 30 % is kept. Tokens after the grid are kept. An ablation of SpecVLM.

    Args:
        prune_ratio: Share that is removed of the second, third and fourth frames, approximately.

    Raises:
        ValueError: A ratio outside [0, 1].
    """

    needs_grid: ClassVar[bool] = True
    needs_features: ClassVar[bool] = True
    budgeted: ClassVar[bool] = False

    def select(self, view: VideoView) -> Tensor:
        """The first frame of every group and the changed tokens of the others."""
        keep, frames = _frames(view)
        count, places = frames.shape
        references = [frame - frame % GROUP + REFERENCES[frame % GROUP] for frame in range(count)]
        order = _cosines(view, references).sort(dim=1, stable=True).indices
        changed = math.floor((1 - as_written(self.prune_ratio)) * places * 3 / 4)
        frames.scatter_(1, order[:, :changed], True)
        frames[::GROUP] = True
        return keep.nonzero()[:, 0]


SELECTORS: dict[str, type[VideoSelector]] = {
    "none": NoPruning,
    "random": RandomTokens,
    "uniform": Uniform,
    "window": Window,
    "attention": AttentionOnly,
    "attention_reversed": ReversedAttention,
    "two_stage": TwoStage,
    "whole_frames": WholeFrames,
    "frame_similarity": FrameSimilarity,
    "temporal": TemporalMerge,
}
"""The names by which a decoder's ``selector`` setting accepts a selector with default settings."""


def make_selector(given: VideoSelector | str, prune_ratio: float) -> VideoSelector:
    """Returns a selector, created if it is given by name.

    Args:
        given: A selector, which is returned unchanged, or a name of ``SELECTORS``.
        prune_ratio: The ratio of a selector that is given by name; ``none`` ignores it.

    Raises:
        ValueError: An unknown name, or a ratio outside [0, 1].
    """
    if isinstance(given, VideoSelector):
        return given
    if given not in SELECTORS:
        raise ValueError(
            f"selector must be one of {', '.join(SELECTORS)}, got {given!r}: choose one, or pass an object."
        )
    check_share("prune_ratio", prune_ratio)
    kind: type = SELECTORS[given]
    chosen: VideoSelector = kind() if kind is NoPruning else kind(prune_ratio=prune_ratio)
    return chosen


def _frames(view: VideoView) -> tuple[Tensor, Tensor]:
    """A mask of kept tokens, in which only tokens after the grid are kept, and its view ``[frames, places]``."""
    grid = view.need_grid()
    keep = torch.ones(view.tokens, dtype=torch.bool)
    frames = keep[: math.prod(grid)].view(grid[0], -1)
    frames[:] = False
    return keep, frames


def _cosines(view: VideoView, references: list[int]) -> Tensor:
    """Cosine between every token and the token at the same place of the frame's reference frame.

    Args:
        view: The video.
        references: For every frame the index of its reference frame.

    Returns:
        ``[frames, places]`` float32 on the CPU.
    """
    features, grid = view.need_features(), view.need_grid()
    frames = features[: math.prod(grid)].reshape(grid[0], -1, features.shape[1])
    # frame by frame: a float32 copy of a long video takes twice the memory of its features in half precision
    rows = [F.cosine_similarity(frames[i].float(), frames[j].float(), dim=-1) for i, j in enumerate(references)]
    return torch.stack(rows).cpu()
