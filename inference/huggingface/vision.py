"""What decoders need from inside Hugging Face's vision-language models; :mod:`models` does so for language parts.

Works on transformers 5.17 to 5.23. What is changed on a model is changed for a single call and restored after it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from saccade.inference.huggingface.model_lock import ModelLock, evaluation_mode
from saccade.inference.huggingface.models import base_model, language_part
from saccade.inference.huggingface.vision_windows import joined_windows

VISUAL_INPUTS = (
    "pixel_values",
    "pixel_values_videos",
    "pixel_attention_mask",
    "image_grid_thw",
    "video_grid_thw",
    "second_per_grid_ts",
    "image_sizes",
    "batch_num_images",
)
"""Tensors of a processor that vision-language models read beside token ids."""

# features that were encoded already, and the positions that belong to them
_PREPARED = ("mm_encoder_outputs", "position_ids")
_MADE_HERE = ("mm_token_type_ids",)  # kinds of tokens: read off the ids, whatever padding they came with

# DeepStack (arXiv 2406.04334): features that are added to the states of visual tokens behind the first layers, as
# Qwen3-VL hands them to its language part
_DEEP_PLACES, _DEEP_FEATURES = "visual_pos_masks", "deepstack_visual_embeds"

# what a language part is handed beside embeddings, mask and positions, and what has no effect on its result
_WITHOUT_EFFECT = frozenset(
    {
        "cache_position",
        "input_ids",
        "logits_to_keep",
        "mm_token_type_ids",
        "num_items_in_batch",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "token_type_ids",
        "use_cache",
    }
)


_INSTEAD = (
    "decode its images and videos with model.generate, or take a class that works, for example Qwen3-VL, Qwen2.5-VL, "
    "LLaVA or InternVL (docs/reference/models.md has all)"
)


class _Reached(Exception):  # noqa: N818 -- a way out of a forward, not an error
    """The language part was called."""


class _ReplacedError(ValueError):
    """Somebody else has replaced the forward that is about to be replaced."""


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


def forward_names(model: Any) -> frozenset[str]:
    """Names of what a model's forward reads, as seen through wrappers of PEFT; those of the classes it derives from."""
    kinds = type(base_model(model)).__mro__
    forwards = [vars(kind)["forward"] for kind in kinds if "forward" in vars(kind)]
    return frozenset(name for forward in forwards for name in inspect.signature(forward).parameters)


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
    ids, known = visual_token_ids(model), forward_names(model)
    for name in found:
        if name not in (*VISUAL_INPUTS, *_PREPARED):
            how = f"of images and videos they read {', '.join(VISUAL_INPUTS)}"
            if name in ("temperature", "top_k", "top_p"):
                how = "pass sampling=Sampling(temperature=...)"
            elif name == "inputs_embeds":
                how = "give input_ids"
            elif hasattr(GenerationConfig(), name):
                how = "decoders do not take this setting of model.generate, so leave it out"
            elif ids and name in known:
                how = f"{type(model).__name__} reads it, so {_INSTEAD}"
            raise ValueError(f"{name} is not an input of decoders: {how}.")
        if not ids:
            raise ValueError(
                f"{type(model).__name__} is a language model and cannot read {name}: pass a vision-language model, or "
                "leave it out."
            )
    for name in found:
        if name in VISUAL_INPUTS and name not in known:
            raise ValueError(f"{type(model).__name__} does not read {name}: leave it out, or check the processor.")
    for pixels, grid in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw")):
        if pixels in found and grid not in found and grid in known:
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


@dataclass(frozen=True)
class LanguageInputs:
    """What a language part reads of a batch.

    Args:
        embeddings: ``[batch, length, hidden]``.
        positions: ``[axes, batch, length]`` rotary positions.
        deep: For each of the first layers ``[visual tokens of all rows, hidden]``, which is added to the states of the
            visual tokens behind it (DeepStack); empty for most models.
    """

    embeddings: Tensor
    positions: Tensor
    deep: tuple[Tensor, ...]


def language_inputs(model: Any, tokens: Tensor, mask: Tensor, visual: Mapping[str, Tensor]) -> LanguageInputs:
    """Runs a vision-language model up to its language part and returns what that would read.

    The model itself encodes images and videos, puts the features in their places and counts positions; nothing of its
    code is repeated here.

    Args:
        model: A vision-language model.
        tokens: ``[batch, length]`` ids, padded on the right.
        mask: ``[batch, length]``, 0 at padding.
        visual: Images and videos of the batch.

    Raises:
        ValueError: Placeholders and features do not match, or the language part has a changed forward.
    """
    part: Any = language_part(model)
    if part is model:
        raise ValueError(f"{type(model).__name__} has no language part that a session could run: {_INSTEAD}.")
    inputs = visual_arguments(model, tokens, visual)

    def reached(*_: Any, **given: Any) -> None:
        raise _Reached(given)

    try:
        with (
            ModelLock(model).held(),
            evaluation_mode(model.modules()),
            kept_position_counter(model),
            _forward_of(part, reached),
            torch.no_grad(),
            joined_windows(model),
        ):
            model(input_ids=tokens, attention_mask=mask, use_cache=False, **inputs)
    except _Reached as way_out:
        given = way_out.args[0]
    except _ReplacedError:
        raise
    except (ValueError, StopIteration) as error:
        reason = str(error).splitlines()[0] if str(error) else "there are more placeholders than videos"
        raise ValueError(
            f"the videos or images do not fit their placeholders in the prompts ({reason.rstrip('.')}): pass ids and "
            "pixels as one call of the processor made them."
        ) from None
    _refuse_other_inputs(model, given, mask)
    positions = given.get("position_ids")
    if positions is None:
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand(1, *tokens.shape)
    positions = positions[-3:] if positions.ndim == 3 else positions[None]
    return LanguageInputs(given["inputs_embeds"], positions, tuple(given.get(_DEEP_FEATURES) or ()))


@contextmanager
def deep_features(model: nn.Module, places: Tensor | None, features: Sequence[Tensor]) -> Iterator[None]:
    """Within this context a model's language part adds features to the states of visual tokens (DeepStack).

    A model that is given embeddings hands its language part none, so they are put among what it hands over.

    Args:
        model: A vision-language model whose language part takes such features.
        places: ``[batch, length]`` boolean, which tokens of the next forward they belong to.
        features: For each of the first layers ``[true places, hidden]``; none changes nothing.
    """
    if not features:
        yield
        return
    added = {_DEEP_PLACES: places, _DEEP_FEATURES: list(features)}
    with ModelLock(model).held():
        handle = language_part(model).register_forward_pre_hook(
            lambda part, given, named: (given, named | added), with_kwargs=True
        )
        try:
            yield
        finally:
            handle.remove()


def visual_arguments(model: Any, tokens: Tensor, visual: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a forward of a vision-language model is given beside ids and mask: pixels, and the kinds of all tokens.

    Args:
        model: A vision-language model.
        tokens: ``[batch, length]`` ids.
        visual: Images and videos of the batch.
    """
    inputs: dict[str, Any] = dict(visual)
    if "mm_token_type_ids" in forward_names(model):
        kinds = torch.zeros_like(tokens)
        for kind, name in enumerate(("image_token_id", "video_token_id"), start=1):
            token = getattr(model.config, name, None)
            if token is not None:
                kinds[tokens == token] = kind
        inputs["mm_token_type_ids"] = kinds
    return inputs


@contextmanager
def _forward_of(part: Any, forward: Any) -> Iterator[None]:
    """Within this context a language part has another forward; one of accelerate is there again after it."""
    before = vars(part).get("forward")
    if before is not None and not hasattr(part, "_hf_hook"):
        raise _ReplacedError(
            f"the forward of the language part ({type(part).__name__}) has been replaced: remove what replaced it."
        )
    part.forward = forward
    try:
        yield
    finally:
        if before is None:
            del part.forward
        else:
            part.forward = before


@contextmanager
def kept_position_counter(model: nn.Module) -> Iterator[None]:
    """Restores what a model with M-RoPE remembers of its last prompt (``rope_deltas``) at the end of the context."""
    counter: Any = next((module for module in model.modules() if hasattr(module, "rope_deltas")), None)
    before = getattr(counter, "rope_deltas", None)
    try:
        yield
    finally:
        if counter is not None:
            counter.rope_deltas = before


def _refuse_other_inputs(model: nn.Module, given: Mapping[str, Any], mask: Tensor) -> None:
    """Refuses what the language part is handed beside embeddings and positions and a session would not hand over."""
    name = type(model).__name__
    for key, value in given.items():
        if (
            key in ("inputs_embeds", "position_ids", _DEEP_PLACES, _DEEP_FEATURES)
            or key in _WITHOUT_EFFECT
            or value is None
            or value is False
        ):
            continue
        if key == "attention_mask":
            for each in value.values() if isinstance(value, Mapping) else [value]:
                if each is not None and not _is_causal(each, mask):
                    raise ValueError(
                        f"{name} gives its language part an attention_mask that is not causal (a bidirectional prefix, "
                        f"for example), which a session does not follow: {_INSTEAD}."
                    )
            continue
        if key == "past_key_values" and not value.get_seq_length():
            continue
        raise ValueError(
            f"{name} hands {key} to its language part beside embeddings and positions, which a session does not do: "
            f"{_INSTEAD}."
        )


def _is_causal(given: Any, mask: Tensor) -> bool:
    """Whether an attention mask lets every token see itself and what is before it, whatever padding may see.

    Args:
        given: ``[batch, length]``, equal to ``mask``, or ``[batch or 1, heads, length, length]``, boolean or added to
            scores. Anything else is taken for another mask.
        mask: ``[batch, length]``, 0 at padding on the right.
    """
    if not isinstance(given, Tensor):
        return False
    real = mask.bool()
    if given.ndim == 2:
        return given.shape == mask.shape and bool((given.to(mask.device).bool() == real).all())
    length = mask.shape[1]
    if given.ndim != 4 or given.shape[-2:] != (length, length):
        return False
    seen = (given if given.dtype == torch.bool else given == 0).to(mask.device)
    hidden = seen if given.dtype == torch.bool else given.to(mask.device) > torch.finfo(given.dtype).min / 2
    causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    # a number that neither hides nor does nothing is a bias
    return bool((((seen == causal) & (hidden == causal)) | ~(real[:, None, :, None] & real[:, None, None, :])).all())
