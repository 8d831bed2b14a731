"""What decoders need from inside Hugging Face's vision-language models; :mod:`compat` for the language part.

Works on transformers 5.17 to 5.23. What is changed on a model is changed for a single call and restored after it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from saccade.inference.huggingface.models import language_part
from saccade.inference.huggingface.vision_windows import joined_windows

VISUAL_INPUTS = (
    "pixel_values",
    "pixel_values_videos",
    "image_grid_thw",
    "video_grid_thw",
    "second_per_grid_ts",
    "image_sizes",
    "batch_num_images",
)
"""Tensors of a processor that vision-language models read beside token ids."""

# what `generate` hands a custom decoder instead of the tensors themselves: features, and positions made of grids
_PREPARED = ("mm_encoder_outputs", "position_ids")
_MADE_HERE = ("mm_token_type_ids",)  # kinds of tokens: read off the ids, whatever padding they came with


class _Reached(Exception):  # noqa: N818 -- a way out of a forward, not an error
    """The language part was called."""


def visual_token_ids(model: Any) -> tuple[int, ...]:
    """Ids of the placeholders of images and videos; none for a language model."""
    return tuple(visual_token_kinds(model))


def visual_token_kinds(model: Any) -> dict[int, tuple[str, str]]:
    """By placeholder: what stands there, and the input that has its pixels."""
    config = getattr(model, "config", None)
    kinds = {"image_token_id": ("an image", "pixel_values"), "video_token_id": ("a video", "pixel_values_videos")}
    return {getattr(config, name): kind for name, kind in kinds.items() if getattr(config, name, None) is not None}


def special_token_ids(model: Any) -> frozenset[int]:
    """Ids that are no words: placeholders and ends of images and videos, begin, end and padding of texts."""
    text = model.config.get_text_config(decoder=True)
    names = ("vision_start_token_id", "vision_end_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
    found: set[int] = set(visual_token_ids(model))
    for config in (model.config, text, getattr(model, "generation_config", None)):
        for name in names:
            value = getattr(config, name, None)
            found.update(value if isinstance(value, (list, tuple)) else () if value is None else (value,))
    return frozenset(found)


def known_inputs(model: Any) -> tuple[str, ...]:
    """Names of the visual tensors that ``model.generate`` may hand on; none for a language model."""
    return (*VISUAL_INPUTS, *_PREPARED, *_MADE_HERE) if visual_token_ids(model) else ()


def merge_size(model: Any) -> int:
    """Patches along each side of the square that becomes one token."""
    return int(getattr(model.config.vision_config, "spatial_merge_size", 1))


def visual_inputs(model: nn.Module, given: Mapping[str, Any]) -> dict[str, Tensor]:
    """The images and videos among the keyword arguments of a call.

    Raises:
        ValueError: The model is a language model, or does not know the input, or two inputs contradict each other;
            names the input.
    """
    found = {name: value for name, value in given.items() if name not in _MADE_HERE and _says_something(name, value)}
    ids = visual_token_ids(model)
    for name in found:
        if name not in (*VISUAL_INPUTS, *_PREPARED):
            how = (
                ": pass sampling=Sampling(temperature=...)"
                if name in ("do_sample", "temperature", "top_k", "top_p")
                else ""
            )
            raise ValueError(f"{name} is not an input of decoders{how}; of images and videos they read {_listed()}.")
        if not ids:
            raise ValueError(
                f"{type(model).__name__} is a language model and cannot read {name}: pass a vision-language model, or "
                "leave it out."
            )
    for pixels, grid in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw")):
        if pixels in found and grid not in found and grid in inspect.signature(model.forward).parameters:
            raise ValueError(f"{pixels} is given without {grid}: pass both as one call of the processor made them.")
        if pixels in found and grid in found:
            patches, wanted = len(found[pixels]), int(found[grid].prod(-1).sum())
            if patches != wanted:
                raise ValueError(
                    f"{pixels} has {patches} patches, but {grid} says {wanted}: pass both as one call of the processor "
                    "made them."
                )
    if "second_per_grid_ts" in found and "video_grid_thw" in found:
        seconds, videos = len(found["second_per_grid_ts"]), len(found["video_grid_thw"])
        if seconds != videos:
            raise ValueError(
                f"second_per_grid_ts has {seconds} entries for {videos} videos: give one for each, or leave it out."
            )
    return found


def _says_something(name: str, value: Any) -> bool:
    if name == "position_ids":  # one axis counts tokens, which every session does by itself
        return value is not None and value.ndim == 3
    return bool(value) if name == "mm_encoder_outputs" else value is not None


def language_inputs(model: Any, tokens: Tensor, mask: Tensor, visual: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Runs a vision-language model up to its language part and returns what that would read.

    The model itself encodes images and videos, puts the features in their places and counts positions; nothing of its
    code is repeated here.

    Args:
        model: A vision-language model.
        tokens: ``[batch, length]`` ids, padded on the right.
        mask: ``[batch, length]``, 0 at padding.
        visual: Images and videos of the batch.

    Returns:
        Embeddings ``[batch, length, hidden]`` and rotary positions ``[axes, batch, length]``.

    Raises:
        ValueError: Placeholders and features do not match, or the language part has a changed forward.
    """
    part: Any = language_part(model)
    if part is model or "forward" in vars(part):
        raise ValueError(
            f"{type(model).__name__} has no language part of its own, or it has been patched: detach that."
        )
    inputs = dict(visual)
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        kinds = torch.zeros_like(tokens)
        for kind, name in enumerate(("image_token_id", "video_token_id"), start=1):
            kinds[tokens == getattr(model.config, name)] = kind
        inputs["mm_token_type_ids"] = kinds
    counter = next((module for module in model.modules() if hasattr(module, "rope_deltas")), None)
    before = getattr(counter, "rope_deltas", None)
    training = [module for module in model.modules() if module.training]

    def reached(*_: Any, **given: Any) -> None:
        raise _Reached(given)

    part.forward = reached
    for module in training:
        module.training = False
    try:
        with torch.no_grad(), joined_windows(model):
            model(input_ids=tokens, attention_mask=mask, use_cache=False, **inputs)
    except _Reached as way_out:
        given = way_out.args[0]
    except (ValueError, StopIteration) as error:
        reason = str(error).splitlines()[0] if str(error) else "there are more placeholders than videos"
        raise ValueError(f"the videos or images do not fit their placeholders in the prompts: {reason}") from None
    finally:
        del part.forward
        for module in training:
            module.training = True
        if counter is not None:
            counter.rope_deltas = before
    positions = given.get("position_ids")
    if positions is None:
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand(1, *tokens.shape)
    return given["inputs_embeds"], positions[-3:] if positions.ndim == 3 else positions[None]


def _listed() -> str:
    return ", ".join(VISUAL_INPUTS)
