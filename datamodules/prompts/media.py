"""Images and videos of prompts, in the form that a vision-language model reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerFast

from saccade.datamodules.prompts.conversation import Conversation
from saccade.datamodules.video.preprocessing import FORMATS, VisualFormat, visual_batch
from saccade.datamodules.video.reading import clip_times, read_clip
from saccade.datamodules.video.tokenization import IMAGE_TOKEN, image_place, video_place, visual_format


def config_of(source: str) -> PretrainedConfig | None:
    """Read the configuration of a model.

    Args:
        source: Folder or Hugging Face hub id.

    Returns:
        The configuration; None if the place has none, as the folder of a tokenizer.
    """
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError):
        return None


def format_of(
    config: PretrainedConfig | None, source: str, tokenizer: PreTrainedTokenizerFast, max_pixels: int
) -> VisualFormat | None:
    """Make the visual format of a model from its configuration.

    Args:
        config: The configuration.
        source: Folder of the model, in which the colours of its processor are looked up.
        tokenizer: Tokenizer of the model.
        max_pixels: Most pixels of an image or frame, for a Qwen.

    Returns:
        The format; None for a model that reads text only.
    """
    family: Any = getattr(config, "model_type", None)
    if family not in FORMATS:
        return None
    vision: Any = getattr(config, "vision_config", None)
    mean, std = _colours(source)
    if FORMATS[family].pooled:
        side = vision.image_size
        return visual_format(tokenizer, family, side, side, vision.patch_size, mean=mean, std=std)
    factor = vision.patch_size * vision.spatial_merge_size
    return visual_format(
        tokenizer, family, factor, factor, vision.patch_size, vision.spatial_merge_size,
        max(max_pixels, factor**2), mean, std,
    )  # fmt: skip


def _colours(source: str) -> tuple[Any, Any]:
    """Mean and standard deviation of the colours in the processor's file; None where there is none."""
    try:
        found = json.loads((Path(source) / "preprocessor_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None, None
    both = (found.get("image_mean"), found.get("image_std")) if isinstance(found, dict) else (None, None)
    mean, std = (tuple(part) if isinstance(part, list) and len(part) == 3 else None for part in both)
    return mean, std


@dataclass(frozen=True)
class Media:
    """The images and videos of one prompt.

    Attributes:
        inputs: The tensors of the model; see `visual_batch`. Of images of a Qwen `pixel_values` and `image_grid_thw`.
        marks: For each image or video its kind and the text that stands for it, in their order.
        counts: For each placeholder in these texts its token, and how many there are of it.
        as_text: Whether templates must be given the texts, because what they write themselves has no times.
    """

    inputs: dict[str, Tensor]
    marks: list[tuple[str, str]]
    counts: list[tuple[int, int]]
    as_text: bool = False

    def places(self) -> dict[int, int]:
        """By placeholder token, how often it is in the texts."""
        tokens = [token for token, _ in self.counts]
        return {token: tokens.count(token) for token in tokens}

    def expanded(self, ids: list[int]) -> list[int]:
        """Repeat each placeholder as often as what it stands for has tokens."""
        left: dict[int, list[int]] = {}
        for token, count in self.counts:
            left.setdefault(token, []).append(count)
        found: list[int] = []
        for token in ids:
            found += [token] * left[token].pop(0) if left.get(token) else [token]
        return found


def read_media(conversation: Conversation, visual: VisualFormat, frames: int) -> Media:
    """Read the images and the video of a conversation.

    Args:
        conversation: With at least one image or a video.
        visual: Visual format of the model.
        frames: Frames to read of a video.

    Returns:
        The tensors and the placeholders. LLaVA-OneVision reads an image as a video of one frame. In a video of Qwen3-VL
        each pair of frames has a placeholder of its own, behind its time.

    Raises:
        ValueError: A file cannot be read, or LLaVA-OneVision is given images and a video together.
    """
    inputs: dict[str, Tensor] = {}
    marks: list[tuple[str, str]] = []
    counts: list[tuple[int, int]] = []
    llava = visual.pooled
    if llava and conversation.images and conversation.video is not None:
        raise ValueError(
            f"{conversation.place}: row must have images or a video for llava_onevision, got both: keep one of them."
        )
    try:
        if conversation.images:
            tensors, own = visual_batch([read_clip(image, 1) for image in conversation.images], visual)
            if llava:
                inputs |= tensors
            else:
                inputs |= {"pixel_values": tensors["pixel_values_videos"], "image_grid_thw": tensors["video_grid_thw"]}
            token = visual.video_token_id if llava else visual.image_token_id
            mark = ("video", visual.video_token) if llava else ("image", IMAGE_TOKEN)
            marks += [(mark[0], image_place(visual, mark[1]))] * len(own)
            counts += [(token, count) for count in own]
        if conversation.video is not None:
            tensors, own = visual_batch([read_clip(conversation.video, frames)], visual)
            inputs |= tensors
            times = clip_times(conversation.video, frames) if visual.timed else []
            text = video_place(visual, times)
            marks.append(("video", text))
            groups = text.count(visual.video_token)
            counts += [(visual.video_token_id, own[0] // groups)] * groups
    except ValueError as error:
        raise ValueError(f"{conversation.place}: {error}") from error
    tensors = {name: torch.as_tensor(value) for name, value in inputs.items()}
    return Media(tensors, marks, counts, as_text=visual.timed and conversation.video is not None)
