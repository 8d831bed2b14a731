"""Complete the configuration of a vision-language model from the data, and refuse one that does not fit it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from saccade.datamodules.video.preprocessing import VisualFormat
from saccade.modules.language.construction import check_names

_QWEN, _LLAVA = "qwen2_5_vl", "llava_onevision"


@dataclass(frozen=True)
class Family:
    """What differs between the two model families.

    Attributes:
        tokens: Settings of the configuration that hold token numbers, and the tokens that they mean.
        tower: Path of the vision tower inside the model.
    """

    tokens: Mapping[str, str]
    tower: str


FAMILIES: dict[str, Family] = {
    _QWEN: Family(
        tokens={
            "image_token_id": "<|image_pad|>",
            "video_token_id": "<|video_pad|>",
            "vision_start_token_id": "<|vision_start|>",
            "vision_end_token_id": "<|vision_end|>",
        },
        tower="model.visual",
    ),
    _LLAVA: Family(
        tokens={"image_token_id": "<image>", "video_token_id": "<video>"},
        tower="model.vision_tower",
    ),
}
"""By `model_type`."""


def check_family(model_type: Any, setting: str = "config: model_type") -> str:
    """Refuse what is not one of the two families.

    Args:
        model_type: What was given or found.
        setting: Where it stands, for the message.

    Returns:
        The model type.

    Raises:
        ValueError: It is another one, or none.
    """
    if model_type not in FAMILIES:
        raise ValueError(f"{setting}: must be {' or '.join(FAMILIES)}, but is {model_type!r}; name one of them")
    return str(model_type)


def tower_of(model: PreTrainedModel) -> nn.Module:
    """Return the vision tower: Qwen's `visual` with its merger, LLaVA's `vision_tower` without the projector."""
    return model.get_submodule(FAMILIES[model.config.model_type].tower)


def complete_vision_config(
    config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None, visual: VisualFormat | None
) -> PretrainedConfig:
    """Turn settings into a configuration, with vocabulary, special tokens and patch sizes of the data.

    What the settings do not name is completed: of Qwen2.5-VL the sections of M-RoPE in the released model's proportion
    (2 : 3 : 3 for time, height and width), attention windows of four merged patches a side, and full attention in the
    last vision layer.

    Args:
        config: `model_type` (qwen2_5_vl or llava_onevision), `text_config`, `vision_config`, and any other setting.
        tokenizer: Of the data; None only where `text_config` names the vocabulary and the model names all tokens.
        visual: Of the data: family, patch and picture sizes; None when there is none.

    Returns:
        The configuration.

    Raises:
        ValueError: The model type is another one or not the data's, a setting is unknown or contradicts another, or the
            tokenizer lacks a special token.
    """
    settings: dict[str, Any] = {name: value for name, value in config.items() if name != "model_type"}
    family = check_family(config.get("model_type"))
    known = AutoConfig.for_model(family)
    check_names(settings, known)
    text, vision = (dict(settings.pop(name, None) or {}) for name in ("text_config", "vision_config"))
    if family == _LLAVA:
        text.setdefault("model_type", "qwen2")
        vision.setdefault("model_type", "siglip_vision_model")
    for name, part in (("text_config", text), ("vision_config", vision)):
        kind = part.get("model_type") or getattr(known, name).model_type
        try:
            check_names(part, AutoConfig.for_model(kind), f"config: {name}")
        except (ValueError, KeyError) as error:
            if str(error).startswith("config: "):
                raise
            raise ValueError(f"config: {name}: transformers knows no model_type {kind!r}; name another one") from error
    if tokenizer is not None:
        text.setdefault("vocab_size", len(tokenizer))
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            text.setdefault(name, getattr(tokenizer, name))
        for name, token in FAMILIES[family].tokens.items():
            settings.setdefault(name, token_id(tokenizer, token, family))
    elif "vocab_size" not in text:
        raise ValueError(
            "config: text_config: vocab_size is missing and there is no datamodule with a tokenizer; set vocab_size"
        )
    if visual is not None:
        check_visual_family(family, visual)
    if family == _QWEN:
        _complete_qwen(text, vision, visual)
    elif visual is not None:
        vision.setdefault("image_size", visual.height)
        vision.setdefault("patch_size", visual.patch_size)
    if family == _LLAVA:
        # the pooling head reads one picture as a whole; nothing here does
        vision.setdefault("vision_use_head", False)
    try:
        return AutoConfig.for_model(family, **settings, text_config=text, vision_config=vision)
    except (TypeError, ValueError, StrictDataclassError) as error:
        # transformers' validators speak in several lines
        raise ValueError(f"config: transformers refuses it: {' '.join(str(error).split())}") from error


def _complete_qwen(text: dict[str, Any], vision: dict[str, Any], visual: VisualFormat | None) -> None:
    """Add in place what follows from other settings."""
    known = AutoConfig.for_model(_QWEN)
    hidden = text.get("hidden_size", known.text_config.hidden_size)
    heads = text.get("num_attention_heads", known.text_config.num_attention_heads)
    if not isinstance(hidden, int) or not isinstance(heads, int) or heads < 1 or hidden % (4 * heads):
        raise ValueError(
            "config: text_config: hidden_size must be a multiple of four times num_attention_heads, because M-RoPE"
            f" splits each head into time, height and width, but they are {hidden!r} and {heads!r}; change one of them"
        )
    pairs = hidden // heads // 2
    rope = dict(text.get("rope_parameters") or {})
    rope.setdefault("rope_type", "default")
    rope.setdefault("rope_theta", text.pop("rope_theta", known.text_config.rope_parameters["rope_theta"]))
    spatial = pairs * 3 // 8
    sections = list(rope.setdefault("mrope_section", [pairs - 2 * spatial, spatial, spatial]))
    if len(sections) != 3 or sum(sections) != pairs:
        raise ValueError(
            f"config: text_config: rope_parameters: mrope_section must have three parts with the sum {pairs}, half of"
            f" a head, but is {sections}; leave it out to have it chosen"
        )
    text["rope_parameters"] = rope
    depth = vision.setdefault("depth", known.vision_config.depth)
    vision.setdefault("fullatt_block_indexes", [depth - 1])
    if visual is not None:
        vision.setdefault("patch_size", visual.patch_size)
        vision.setdefault("spatial_merge_size", visual.merge_size)
        vision.setdefault("temporal_patch_size", visual.temporal_patch_size)
    merged = vision.get("patch_size", known.vision_config.patch_size) * vision.get(
        "spatial_merge_size", known.vision_config.spatial_merge_size
    )
    if vision.setdefault("window_size", 4 * merged) < merged:
        raise ValueError(
            f"config: vision_config: window_size must be at least {merged}, one merged patch, but is"
            f" {vision['window_size']}; raise it or leave it out"
        )
    if vision.setdefault("out_hidden_size", hidden) != hidden:
        raise ValueError(
            f"config: vision_config: out_hidden_size must equal text_config's hidden_size of {hidden}, but is"
            f" {vision['out_hidden_size']}; leave it out"
        )


def token_id(tokenizer: PreTrainedTokenizerBase, token: str, family: str) -> int:
    """Return the number of a special token of a family.

    Args:
        tokenizer: Of the data.
        token: Which one.
        family: For the message.

    Returns:
        Its number.

    Raises:
        ValueError: The tokenizer has no such token.
    """
    number = tokenizer.get_vocab().get(token)
    if number is None:
        raise ValueError(
            f"tokenizer: it has no token {token}, which {family} needs; set the datamodule's tokenizer to one of a"
            f" trained {family} model, or leave it out to have one trained"
        )
    return int(number)


def check_visual_family(family: str, visual: VisualFormat) -> None:
    """Refuse pictures that were prepared for the other family.

    Args:
        family: Of the model.
        visual: Of the data.

    Raises:
        ValueError: The families differ.
    """
    if visual.family != family:
        raise ValueError(
            f"data.family: the clips are prepared for {visual.family}, but the model is {family}; set family={family}"
        )


def check_vision_fit(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None, visual: VisualFormat | None
) -> None:
    """Refuse pictures that a model would read wrongly.

    Args:
        config: Of the model, complete.
        tokenizer: Of the data.
        visual: Of the data; None when there is none.

    Raises:
        ValueError: Family, patch sizes, picture size or special tokens differ; the message names what.
    """
    family = config.model_type
    if tokenizer is not None:
        for name, token in FAMILIES[family].tokens.items():
            given, own = token_id(tokenizer, token, family), getattr(config, name)
            if given != own:
                raise ValueError(
                    f"tokenizer: {token} is number {given}, but {name} of the model is {own}; set the datamodule's"
                    " tokenizer to the model's path"
                )
    if visual is None:
        return
    check_visual_family(family, visual)
    pairs = {"patch_size": "patch_size"}
    if family == _QWEN:
        pairs |= {"merge_size": "spatial_merge_size", "temporal_patch_size": "temporal_patch_size"}
    else:
        pairs["height"] = "image_size"
    for here, there in pairs.items():
        given, own = getattr(visual, here), getattr(config.vision_config, there)
        if given != own:
            raise ValueError(
                f"data.{here}: the clips are prepared with {given}, but {there} of the model's vision_config is {own};"
                " set them alike"
            )
