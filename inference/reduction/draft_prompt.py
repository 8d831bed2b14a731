"""What every decoder that drafts from a pruned video checks and sets up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from saccade.inference.huggingface.generation_config import end_of_text_ids
from saccade.inference.huggingface.vision import visual_token_ids
from saccade.inference.huggingface.visual_prompts import PositionRule, VisualPrompt, read_visual_prompts
from saccade.inference.reduction.selector import VideoSelector, VideoView
from saccade.inference.reduction.selectors import make_selector
from saccade.inference.request import Request
from saccade.inference.state import GenerationState


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
    ids = set(visual_token_ids(model))
    if not ids:
        raise ValueError(
            f"{name} drafts from videos and {type(model).__name__} is a language model: pass a vision-language model, "
            "or use another decoder."
        )
    chosen = make_selector(selector, prune_ratio)
    ends = {*end_of_text_ids(model), *request.eos}
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


@dataclass(frozen=True)
class PrunedVideo:
    """What a draft model reads of the prompts' videos (SpecVLM, arXiv 2508.16201).

    Args:
        selector: Chooses the video tokens that the draft keeps.
        visual: The processor's tensors of the whole batch, for a draft model that encodes them itself; ``None`` when
            the draft shares weights, and so features, with the target.
        positions: Rotary positions of what is kept (:meth:`saccade.inference.huggingface.visual_prompts.VisualPrompt.kept`).
    """

    selector: VideoSelector
    visual: Mapping[str, Tensor] | None
    positions: PositionRule

    def prompts(
        self, model: nn.Module, state: GenerationState, rows: Sequence[int], whole: Sequence[Sequence[int]]
    ) -> list[VisualPrompt]:
        """The draft's prompts of the unfinished rows.

        Args:
            model: The draft model.
            state: The generation; the target has read its prompts.
            rows: Indices of the unfinished rows in the batch.
            whole: Token ids of all prompts of the batch.

        Raises:
            ValueError: What the selector needs is not there.
        """
        seen = state.visual or []
        own = seen if self.visual is None else read_visual_prompts(model, whole, self.visual)
        scores = state.session.recorded.scores
        made = []
        for place, row in enumerate(rows):
            prompt = own[place if self.visual is None else row]
            view = VideoView(
                len(prompt.visual),
                scores[place] if scores else None,
                prompt.grid,
                prompt.features if self.selector.needs_features else None,
                row=row,
            )
            made.append(prompt.kept(self.selector.select(view), self.positions))
        return made
