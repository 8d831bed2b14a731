"""SpecVLM's selectors of video tokens, its baselines and its ablations, and their names."""

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

GROUP = 4  # frames that one whole frame stands for in TemporalMerge
REFERENCES = (0, 0, 0, 2)  # frame of the group that each frame of it is compared with; the first is kept whole


@dataclass
class NoPruning(VideoSelector):
    """Keeps every token: plain speculative decoding."""

    prune_ratio: ClassVar[float] = 0.0

    def select(self, view: VideoView) -> Tensor:
        """All of them."""
        return torch.arange(view.tokens)


@dataclass
class RandomTokens(VideoSelector):
    """Keeps tokens at random (a baseline of SpecVLM).

    Args:
        prune_ratio: Share of the tokens that is removed.
        seed: Seed; the choice depends on it, on the call's seed and on the row, and on nothing else.

    Raises:
        ValueError: A ratio outside [0, 1].
    """

    prune_ratio: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        check_share("prune_ratio", self.prune_ratio)

    def select(self, view: VideoView) -> Tensor:
        """Any subset of the budget's size with the same probability."""
        seed = random.Random(f"{self.seed}/{view.seed}/{view.row}").getrandbits(63)
        order = torch.randperm(view.tokens, generator=torch.Generator().manual_seed(seed))
        return order[: video_budget(view.tokens, self.prune_ratio)].sort().values


@dataclass
class Uniform(VideoSelector):
    """Keeps evenly spaced tokens of the flattened video, first and last included; needs no attention.

    It is SpecVLM's second stage alone, which its authors recommend where attention is not to be had.

    Args:
        prune_ratio: Share of the tokens that is removed.

    Raises:
        ValueError: A ratio outside [0, 1].
    """

    prune_ratio: float = 0.9

    def __post_init__(self) -> None:
        check_share("prune_ratio", self.prune_ratio)

    def select(self, view: VideoView) -> Tensor:
        """One token in every ``1 / (1 - prune_ratio)``."""
        return evenly_spaced(view.tokens, video_budget(view.tokens, self.prune_ratio))


@dataclass
class Window(VideoSelector):
    """Keeps a contiguous stretch of the flattened video (a baseline of SpecVLM).

    Args:
        prune_ratio: Share of the tokens that is removed.
        place: Where the stretch lies.

    Raises:
        ValueError: A ratio outside [0, 1], or an unknown place.
    """

    prune_ratio: float = 0.9
    place: Place = "middle"

    def __post_init__(self) -> None:
        check_share("prune_ratio", self.prune_ratio)
        if self.place not in get_args(Place):
            raise ValueError(f"place must be one of {', '.join(get_args(Place))}, got {self.place!r}: choose one.")

    def select(self, view: VideoView) -> Tensor:
        """The stretch."""
        budget = video_budget(view.tokens, self.prune_ratio)
        spare = view.tokens - budget
        start = {"front": 0, "middle": spare // 2, "back": spare}[self.place]
        return torch.arange(start, start + budget)


@dataclass
class AttentionOnly(VideoSelector):
    """Keeps the tokens of the highest scores: SpecVLM's first stage alone. Ties go to the earlier token.

    Args:
        prune_ratio: Share of the tokens that is removed.

    Raises:
        ValueError: A ratio outside [0, 1].
    """

    needs_scores: ClassVar[bool] = True
    descending: ClassVar[bool] = True

    prune_ratio: float = 0.9

    def __post_init__(self) -> None:
        check_share("prune_ratio", self.prune_ratio)

    def select(self, view: VideoView) -> Tensor:
        """The best of the budget."""
        order = checked_scores(view.need_scores()).sort(descending=self.descending, stable=True).indices
        return order[: video_budget(view.tokens, self.prune_ratio)].sort().values


@dataclass
class ReversedAttention(AttentionOnly):
    """Keeps the tokens of the lowest scores: shows what the guidance is worth (an ablation of SpecVLM).

    Args:
        prune_ratio: Share of the tokens that is removed.

    Raises:
        ValueError: A ratio outside [0, 1].
    """

    descending: ClassVar[bool] = False


@dataclass
class TwoStage(VideoSelector):
    """SpecVLM's selection: the tokens that hold most of the attention, and an even spread of the others.

    Args:
        prune_ratio: Share of the tokens that is removed.
        mass: Share of the attention that the first stage collects (the paper's lambda); ``None`` is 0.4 where more
            than 75 % is pruned and 0.5 elsewhere.
        released: Rounds as the authors' code does (:func:`saccade.inference.reduction.selector.video_budget`).

    Raises:
        ValueError: A ratio or a mass outside [0, 1].
    """

    needs_scores: ClassVar[bool] = True

    prune_ratio: float = 0.9
    mass: float | None = None
    released: bool = False

    def __post_init__(self) -> None:
        check_share("prune_ratio", self.prune_ratio)
        if self.mass is not None:
            check_share("mass", self.mass)

    def select(self, view: VideoView) -> Tensor:
        """Both stages."""
        scores = view.need_scores()
        return two_stage_selection(scores, self.prune_ratio, self.mass, released=self.released).cpu()


@dataclass
class WholeFrames(VideoSelector):
    """Keeps evenly spaced frames whole, at least one (an ablation of SpecVLM); tokens behind the grid stay.

    Not matched to the budget: ``max(1, floor(frames * (1 - prune_ratio)))`` frames are kept.

    Args:
        prune_ratio: Share of the frames that is removed.

    Raises:
        ValueError: A ratio outside [0, 1].
    """

    needs_grid: ClassVar[bool] = True
    budgeted: ClassVar[bool] = False

    prune_ratio: float = 0.9

    def __post_init__(self) -> None:
        check_share("prune_ratio", self.prune_ratio)

    def select(self, view: VideoView) -> Tensor:
        """The tokens of the kept frames."""
        keep, frames = _frames(view)
        frames[evenly_spaced(len(frames), max(1, video_budget(len(frames), self.prune_ratio)))] = True
        return keep.nonzero()[:, 0]


@dataclass
class FrameSimilarity(VideoSelector):
    """Drops the frames that resemble the frame before them most (an ablation of SpecVLM); tokens behind the grid stay.

    Resemblance is the mean cosine between tokens at the same place; the first frame resembles none. Not matched to the
    budget: ``floor(frames * prune_ratio)`` whole frames are dropped. Ties drop the earlier frame.

    Args:
        prune_ratio: Share of the frames that is dropped.

    Raises:
        ValueError: A ratio outside [0, 1].
    """

    needs_grid: ClassVar[bool] = True
    needs_features: ClassVar[bool] = True
    budgeted: ClassVar[bool] = False

    prune_ratio: float = 0.9

    def __post_init__(self) -> None:
        check_share("prune_ratio", self.prune_ratio)

    def select(self, view: VideoView) -> Tensor:
        """The tokens of the kept frames."""
        keep, frames = _frames(view)
        frames[:] = True
        count = len(frames)
        likeness = _cosines(view, [max(0, frame - 1) for frame in range(count)]).mean(1)
        likeness[0] = -torch.inf
        drop = math.floor(as_written(self.prune_ratio) * count)
        frames[likeness.sort(descending=True, stable=True).indices[:drop]] = False
        return keep.nonzero()[:, 0]


@dataclass
class TemporalMerge(VideoSelector):
    """Keeps, in groups of four frames, the first whole and of the others what changed (like DyCoke, arXiv 2411.15024).

    Of the second, third and fourth frame stay the ``floor(0.75 * (1 - prune_ratio) * places)`` tokens with the lowest
    cosine to the token at the same place of the first, first and third frame. Redundant tokens are dropped, not
    averaged. **Not matched to the budget**: a quarter of the video stays at every ratio; at 0.9 and 196 places about
    30 % is kept. Tokens behind the grid stay. An ablation of SpecVLM.

    Args:
        prune_ratio: Sets how much of three frames in four is removed.

    Raises:
        ValueError: A ratio outside [0, 1].
    """

    needs_grid: ClassVar[bool] = True
    needs_features: ClassVar[bool] = True
    budgeted: ClassVar[bool] = False

    prune_ratio: float = 0.9

    def __post_init__(self) -> None:
        check_share("prune_ratio", self.prune_ratio)

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
"""Names under which a decoder takes a selector with its default settings."""


def make_selector(given: VideoSelector | str, prune_ratio: float) -> VideoSelector:
    """A selector from itself or from its name.

    Args:
        given: A selector, returned as it is; or a name of ``SELECTORS``.
        prune_ratio: The ratio of a selector that is given by name; ``none`` has no use for it.

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
    """Marks of the kept tokens, and their view ``[frames, places]``: none kept yet but the tokens behind the grid."""
    grid = view.need_grid()
    keep = torch.ones(view.tokens, dtype=torch.bool)
    frames = keep[: math.prod(grid)].view(grid[0], -1)
    frames[:] = False
    return keep, frames


def _cosines(view: VideoView, references: list[int]) -> Tensor:
    """``[frames, places]`` float32 on the CPU: cosine of every token to that at its place in the frame's reference."""
    features, grid = view.need_features(), view.need_grid()
    frames = features[: math.prod(grid)].reshape(grid[0], -1, features.shape[1])
    # frame by frame: a float32 copy of a long video would take as much memory as its features twice over
    rows = [F.cosine_similarity(frames[i].float(), frames[j].float(), dim=-1) for i, j in enumerate(references)]
    return torch.stack(rows).cpu()
