"""What every decoder that drafts from a pruned video checks and sets up."""

from __future__ import annotations

from torch import nn

from saccade.inference import compat, compat_vision
from saccade.inference.drafting.follower import PrunedVideo
from saccade.inference.drafting.video_pruning import VideoSelector
from saccade.inference.drafting.video_selectors import make_selector
from saccade.inference.request import Request
from saccade.inference.visual_prompts import PositionRule


def pruned_video(
    decoder: object,
    model: nn.Module,
    request: Request,
    selector: VideoSelector | str,
    prune_ratio: float,
    positions: PositionRule,
    shared: bool,
) -> PrunedVideo:
    """Checks that every prompt has a video that can be pruned.

    Args:
        decoder: Who asks; for messages.
        model: The target.
        request: What shall be generated.
        selector: Which video tokens the draft keeps.
        prune_ratio: Of a selector given by name.
        positions: Rotary positions of what is kept.
        shared: Whether the draft shares weights, and so features, with the target.

    Raises:
        ValueError: A prompt without a video, or, where attention is looked at, without a question behind it.
    """
    name = type(decoder).__name__
    ids = set(compat_vision.visual_token_ids(model))
    if not ids:
        raise ValueError(
            f"{name} drafts from videos and {type(model).__name__} is a language model: pass a vision-language model, "
            "or use another decoder."
        )
    chosen = make_selector(selector, prune_ratio)
    ends = {*compat.generation_settings(model)["eos"], *request.eos}
    for row, prompt in enumerate(request.prompts):
        places = [place for place, token in enumerate(prompt) if token in ids]
        if not places:
            raise ValueError(
                f"the prompt of row {row} has no video: {name} drafts from one; use another decoder for it."
            )
        tail = [token for token in prompt[places[-1] + 1 :] if token != _end_of_video(model)]
        if chosen.needs_scores and (not tail or tail[0] in ends):
            raise ValueError(
                f"the question of row {row} does not stand behind its video, so nothing that looks at the video knows "
                "what is asked: put the video first, or choose selector='uniform'."
            )
    return PrunedVideo(chosen, None if shared else request.visual, positions)


def _end_of_video(model: nn.Module) -> int | None:
    end: int | None = getattr(model.config, "vision_end_token_id", None)
    return end
