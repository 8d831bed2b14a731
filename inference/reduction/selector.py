"""Which video tokens a drafter keeps: budget, two-stage selection and the contract of every selector (SpecVLM).

SpecVLM (EMNLP 2025, arXiv 2508.16201) prunes the video for the drafter only; the target verifies on all of it, so no
choice made here can change the text. Numbers and tensors only: no model is touched.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from saccade.common.checks import check_share
from saccade.common.decimals import as_written

T = TypeVar("T")


def video_budget(tokens: int, prune_ratio: float, released: bool = False) -> int:
    """How many of the video tokens the drafter keeps: ``tokens - ceil(prune_ratio * tokens)``, on exact decimals.

    Args:
        tokens: Number of video tokens, at least 0.
        prune_ratio: Share that is removed, in [0, 1]; 1 leaves nothing.
        released: Computes ``floor(tokens * (1 - prune_ratio))`` in binary floating point, as the authors' code does:
            it keeps one token less where ``1 - prune_ratio`` rounds down (1000 tokens at 0.9: 99, not 100).

    Raises:
        ValueError: A negative number of tokens, or a ratio outside [0, 1].
    """
    if tokens < 0:
        raise ValueError(f"tokens must be 0 or more, got {tokens}: count the video placeholders of the prompt.")
    check_share("prune_ratio", prune_ratio)
    if released:
        return math.floor(tokens * (1 - prune_ratio))
    return tokens - math.ceil(as_written(prune_ratio) * tokens)


def default_mass(prune_ratio: float) -> float:
    """Lambda of stage I: 0.4 where more than 75 % is pruned, else 0.5 (the rule of the authors' first commit).

    Their later code has 0.4 for every ratio; the rule is the one behind their sweeps over ratios.
    """
    return 0.4 if prune_ratio > 0.75 else 0.5


def evenly_spaced(count: int, picks: int, released: bool = False) -> Tensor:
    """``picks`` of the indices 0 to ``count - 1``, evenly spaced: ``floor(i * (count - 1) / (picks - 1))``.

    Both ends are among them when there are two picks or more; a single pick is index 0.

    Args:
        count: Number of indices.
        picks: How many to take, at most ``count``.
        released: Takes ``torch.linspace`` truncated to integers, as the authors' code does; it may differ from the
            exact formula by rounding, in one index now and then.

    Returns:
        ``[picks]`` int64 on the CPU, ascending and distinct.

    Raises:
        ValueError: More picks than indices, or a negative number.
    """
    if not 0 <= picks <= count:
        raise ValueError(f"picks must be between 0 and count ({count}), got {picks}: take fewer.")
    if released:
        return torch.linspace(0, count - 1, picks, dtype=torch.long)
    return torch.arange(picks) * (count - 1) // max(picks - 1, 1)


def two_stage_selection(
    scores: Tensor, prune_ratio: float, mass: float | None = None, *, released: bool = False
) -> Tensor:
    """SpecVLM's selection (its section 3, and the released code): attention first, an even spread of the rest behind.

    Stage I keeps the highest scores until they hold ``mass`` of the sum, at least one and at most the budget. Stage II
    spends what is left of the budget on tokens evenly spaced over the others in their order (time, row, column). Where
    the scores are so flat that stage I needs the whole budget, stage II is empty. Ties go to the earlier token.

    The sorting runs on the host in float64, so that CPU and GPU choose the same tokens; 16,384 scores take about a
    millisecond.

    Args:
        scores: ``[tokens]``, finite and not negative: mean attention that the text behind the video pays to each video
            token. Only ratios matter. Any floating or integer type, on any device.
        prune_ratio: Share of the tokens that is removed, in [0, 1]; 1 returns an empty tensor.
        mass: Lambda, the share of the attention that stage I collects, in [0, 1]; ``None`` is :func:`default_mass`.
        released: Reproduces the authors' code: the budget in floating point and stage II by ``torch.linspace``. Their
            code fails with a TypeError where stage I takes every token (ratio 0 with lambda 1); here all are returned.

    Returns:
        ``[budget]`` int64 on the scores' device: kept indices, ascending.

    Raises:
        ValueError: Scores that are no vector, negative or not finite; a ratio or a mass outside [0, 1].
    """
    if mass is not None:
        check_share("mass", mass)
    host = checked_scores(scores)
    tokens = host.numel()
    budget = video_budget(tokens, prune_ratio, released)
    order = host.sort(descending=True, stable=True).indices
    collected = host[order].cumsum(0)
    share = default_mass(prune_ratio) if mass is None else mass
    enough = int(torch.searchsorted(collected, share * collected[-1:])) + 1 if tokens else 0
    first = min(enough, budget)
    keep = torch.zeros(tokens, dtype=torch.bool)
    keep[order[:first]] = True
    rest = (~keep).nonzero()[:, 0]
    keep[rest[evenly_spaced(len(rest), budget - first, released)]] = True
    return keep.nonzero()[:, 0].to(scores.device)


def checked_scores(scores: Tensor) -> Tensor:
    """The scores on the host in float64.

    Raises:
        ValueError: They are no vector, or hold a negative number, infinity or NaN.
    """
    if scores.ndim != 1:
        raise ValueError(f"scores must have one dimension [tokens], got shape {tuple(scores.shape)}: average the rest.")
    host = scores.detach().to("cpu", torch.float64)
    if not bool(((host >= 0) & (host < torch.inf)).all()):
        raise ValueError(
            "scores must be finite and not negative, got another value: pass attention weights in float32."
        )
    return host


@dataclass
class VideoView:
    """What a selector sees of the video of one row.

    Args:
        tokens: Number of video tokens in the prompt.
        scores: ``[tokens]`` float32, the target's attention on every video token; for selectors that need scores.
        grid: Frames, rows and columns of the tokens; for selectors that need the grid. Tokens behind the grid
            (LLaVA-OneVision ends its video with a newline embedding) belong to no frame.
        features: ``[tokens, dim]`` embeddings of the tokens as the drafter reads them; for selectors that need them.
        seed: Seed of the call; selectors that draw derive their random numbers from it, and from ``row``.
        row: Row of the batch.

    Raises:
        ValueError: Sizes that do not fit each other.
    """

    tokens: int
    scores: Tensor | None = None
    grid: tuple[int, int, int] | None = None
    features: Tensor | None = None
    seed: int = 0
    row: int = 0

    def __post_init__(self) -> None:
        if self.tokens < 0:
            raise ValueError(
                f"tokens must be 0 or more, got {self.tokens}: count the video placeholders of the prompt."
            )
        if self.scores is not None and tuple(self.scores.shape) != (self.tokens,):
            raise ValueError(
                f"scores must have the shape ({self.tokens},), one for each video token, got "
                f"{tuple(self.scores.shape)}: pass those of this row."
            )
        if self.features is not None and (self.features.ndim != 2 or len(self.features) != self.tokens):
            raise ValueError(
                f"features must have the shape ({self.tokens}, dim), one row for each video token, got "
                f"{tuple(self.features.shape)}: pass those of this row."
            )
        if self.grid is not None and (min(self.grid) < 1 or math.prod(self.grid) > self.tokens):
            raise ValueError(
                f"grid must be frames, rows and columns of at most {self.tokens} tokens, got {self.grid}: give it "
                "after the merging of patches."
            )

    def need_scores(self) -> Tensor:
        """The scores.

        Raises:
            ValueError: There are none.
        """
        return self._need("scores", self.scores)

    def need_features(self) -> Tensor:
        """The features.

        Raises:
            ValueError: There are none.
        """
        return self._need("features", self.features)

    def need_grid(self) -> tuple[int, int, int]:
        """The grid.

        Raises:
            ValueError: There is none.
        """
        return self._need("grid", self.grid)

    @staticmethod
    def _need(name: str, value: T | None) -> T:
        if value is None:
            raise ValueError(f"the selector needs {name}, the view has none: pass them, or choose selector='uniform'.")
        return value


class VideoSelector(ABC):
    """Chooses the video tokens that the drafter keeps; a subclass is a dataclass of settings.

    Every selector has a ``prune_ratio``. ``needs_scores``, ``needs_grid`` and ``needs_features`` say what the view must
    hold, so that a caller computes nothing in vain; ``budgeted`` says whether exactly :func:`video_budget` tokens are
    kept, which a fair comparison needs.
    """

    needs_scores: ClassVar[bool] = False
    needs_grid: ClassVar[bool] = False
    needs_features: ClassVar[bool] = False
    budgeted: ClassVar[bool] = True

    @abstractmethod
    def select(self, view: VideoView) -> Tensor:
        """The kept video tokens of one row.

        Args:
            view: The video.

        Returns:
            ``[kept]`` int64 on the CPU: indices among the row's video tokens, ascending and distinct; may be empty.

        Raises:
            ValueError: The view lacks what this selector needs.
        """
