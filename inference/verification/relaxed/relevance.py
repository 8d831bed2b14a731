"""Visual relevance: how closely a token of the text is related to the video (LVSpec)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.common.checks import check_count


def visual_relevance(
    states: Tensor, visual_states: Tensor, neighbours: int = 10, chunk: int = 4096, unit: bool = False
) -> Tensor:
    """Mean of the largest cosines between a text state and the states of the video tokens (LVSpec, arXiv 2604.05650).

    The mean is over few neighbours, so that a large background does not dilute the score.

    Args:
        states: ``[places, dim]`` hidden states of the target, one for each drafted token.
        visual_states: ``[video tokens, dim]`` hidden states of the same layer at the video tokens; at least one.
        neighbours: Number of largest cosines in the mean (N of the paper), at least 1; all, if the video has fewer.
        chunk: Number of video tokens that are compared at once, at least 1; limits memory without changing the result.
        unit: Whether ``visual_states`` have been normalized by :func:`directions` already.

    Returns:
        ``[places]`` float32 in [-1, 1] on the device of ``visual_states``. Cosines are computed in float32 whatever
        the types of the states are (float64 stays); a state of zeros has cosine 0 to everything.

    Raises:
        ValueError: Shapes that do not fit, no video token, or a setting outside its range.
    """
    if states.ndim != 2 or visual_states.ndim != 2 or states.shape[1] != visual_states.shape[1]:
        raise ValueError(
            f"states and visual_states must be [places, dim] and [video tokens, dim] of one dim, got "
            f"{tuple(states.shape)} and {tuple(visual_states.shape)}: take both from the same layer."
        )
    if len(visual_states) == 0:
        raise ValueError("visual_states must hold at least one video token, got none: text alone has no relevance.")
    for name, value in (("neighbours", neighbours), ("chunk", chunk)):
        check_count(name, value)
    queries = directions(states.to(visual_states.device))
    best = queries.new_empty(len(queries), 0)
    for start in range(0, len(visual_states), chunk):
        part = visual_states[start : start + chunk]
        cosines = queries @ (part if unit else directions(part)).to(queries).T
        # the largest cosines of all are among the largest of their chunks
        candidates = torch.cat([best, cosines.topk(min(neighbours, cosines.shape[1])).values], 1)
        best = candidates.topk(min(neighbours, candidates.shape[1])).values
    return best.mean(1).float()


def directions(states: Tensor) -> Tensor:
    """States ``[..., dim]`` scaled to length 1, in float32 or float64: half precision can overflow or underflow."""
    return F.normalize(states if states.dtype == torch.float64 else states.float(), dim=-1)
