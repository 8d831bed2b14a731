"""Selection of the video tokens that a draft model reads: base class, budget and two-stage selection.

SpecVLM (EMNLP 2025, arXiv 2508.16201) prunes the video for the draft model only. The target verifies with the whole
video, so the selection does not change the text.
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
    """Number of kept video tokens: ``tokens - ceil(prune_ratio * tokens)``, computed with exact decimals.

    Args:
        tokens: Number of video tokens, at least 0.
        prune_ratio: Share that is removed, in [0, 1].
        released: Compute ``floor(tokens * (1 - prune_ratio))`` in binary floating point, as the authors' code does. It
            gives one token less where ``1 - prune_ratio`` rounds down (1000 tokens at 0.9: 99, not 100).

    Raises:
        ValueError: A negative number of tokens, or a ratio outside [0, 1].
    """
    if tokens < 0:
        raise ValueError(f"tokens must be at least 0, got {tokens}: count the video placeholders of the prompt.")
    check_share("prune_ratio", prune_ratio)
    if released:
        return math.floor(tokens * (1 - prune_ratio))
    return tokens - math.ceil(as_written(prune_ratio) * tokens)


def default_mass(prune_ratio: float) -> float:
    """Lambda of stage I: 0.4 for a ``prune_ratio`` above 0.75, otherwise 0.5.

    This rule is from the first commit of the authors' code, which their experiments over ratios used. Their later code
    uses 0.4 for every ratio.
    """
    return 0.4 if prune_ratio > 0.75 else 0.5


def evenly_spaced(count: int, picks: int, released: bool = False) -> Tensor:
    """Evenly spaced indices from 0 to ``count - 1``: ``floor(i * (count - 1) / (picks - 1))``.

    With two picks or more both ends are included; a single pick is index 0.

    Args:
        count: Number of indices.
        picks: Number of picked indices, at most ``count``.
        released: Use ``torch.linspace`` truncated to integers, as the authors' code does; single indices may differ
            from the exact formula by rounding.

    Returns:
        ``[picks]`` int64 on the CPU, ascending and distinct.

    Raises:
        ValueError: ``picks`` is negative or above ``count``.
    """
    if not 0 <= picks <= count:
        raise ValueError(f"picks must be between 0 and {count}, the count, got {picks}: pick fewer indices.")
    if released:
        return torch.linspace(0, count - 1, picks, dtype=torch.long)
    return torch.arange(picks) * (count - 1) // max(picks - 1, 1)


def two_stage_selection(
    scores: Tensor, prune_ratio: float, mass: float | None = None, *, released: bool = False
) -> Tensor:
    """SpecVLM's selection (section 3 of the paper, and the released code).

    Stage I keeps the tokens with the highest scores until they hold ``mass`` of the sum, at least one token and at most
    the budget; of equal scores the earlier token. Stage II fills the budget with evenly spaced tokens of the others, in
    the order of time, row and column. If the scores are so even that stage I takes the whole budget, stage II is empty.

    Scores are sorted on the CPU in float64, so that the result is the same on every device; 16,384 scores take about a
    millisecond.

    Args:
        scores: ``[tokens]``, finite and at least 0: mean attention of the text after the video on each video token.
            Only ratios between scores matter. Any floating or integer type, on any device.
        prune_ratio: Share of the tokens that is removed, in [0, 1].
        mass: Lambda, the share of the attention that stage I collects, in [0, 1]; ``None`` is :func:`default_mass`.
        released: Reproduce the authors' code: the budget in floating point, and stage II with ``torch.linspace``. Their
            code raises a TypeError if stage I takes every token (ratio 0, lambda 1); here all tokens are returned.

    Returns:
        ``[budget]`` int64 on the device of the scores: kept indices, ascending.

    Raises:
        ValueError: Scores that are not a vector, negative or not finite; a ratio or a mass outside [0, 1].
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
    """Checks scores and returns them on the CPU in float64.

    Raises:
        ValueError: They are not a vector, or hold a negative number, infinity or NaN.
    """
    if scores.ndim != 1:
        raise ValueError(
            f"scores must have one dimension [tokens], got shape {tuple(scores.shape)}: average over the others."
        )
    host = scores.detach().to("cpu", torch.float64)
    valid = (host >= 0) & (host < torch.inf)
    if not bool(valid.all()):
        raise ValueError(
            f"scores must be finite and at least 0, got {float(host[~valid][0])}: pass attention weights in float32."
        )
    return host


@dataclass
class VideoView:
    """The input of a selector: the video of one row.

    Args:
        tokens: Number of video tokens in the prompt.
        scores: ``[tokens]`` float32, the target's attention on every video token; for selectors with ``needs_scores``.
        grid: Frames, rows and columns of the tokens; for selectors with ``needs_grid``. Tokens after the grid
            (LLaVA-OneVision ends a video with a newline embedding) belong to no frame.
        features: ``[tokens, dim]`` embeddings that the draft model reads; for selectors with ``needs_features``.
        seed: Seed of the call; random selectors use it together with ``row``.
        row: Index of the row in the batch.

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
                f"tokens must be at least 0, got {self.tokens}: count the video placeholders of the prompt."
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
                f"grid must be frames, rows and columns of at most {self.tokens} tokens, got {self.grid}: pass the "
                "grid after patches are merged."
            )

    def need_scores(self) -> Tensor:
        """The scores.

        Raises:
            ValueError: They are ``None``.
        """
        return self._need("scores", self.scores)

    def need_features(self) -> Tensor:
        """The features.

        Raises:
            ValueError: They are ``None``.
        """
        return self._need("features", self.features)

    def need_grid(self) -> tuple[int, int, int]:
        """The grid.

        Raises:
            ValueError: It is ``None``.
        """
        return self._need("grid", self.grid)

    @staticmethod
    def _need(name: str, value: T | None) -> T:
        if value is None:
            raise ValueError(
                f"{name} must be given for this selector, got None: pass it in VideoView, or choose selector='uniform'."
            )
        return value


class VideoSelector(ABC):
    """Selects the video tokens that the draft model reads; a subclass is a dataclass of settings.

    Every selector has a ``prune_ratio``. ``needs_scores``, ``needs_grid`` and ``needs_features`` tell which fields of
    :class:`VideoView` the selector reads; the others may be ``None``. ``budgeted`` tells whether it keeps exactly
    :func:`video_budget` tokens, so that it can be compared with others at the same ratio.
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
