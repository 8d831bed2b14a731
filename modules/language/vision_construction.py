"""Complete the configuration of a vision-language model from the data, and check that a model fits the data."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from saccade.datamodules.video.preprocessing import FORMATS, VisualFormat
from saccade.datamodules.video.tokenization import visual_tokens
from saccade.modules.language.construction import check_names


@dataclass(frozen=True)
class Family:
    """The differences between the model families.

    Attributes:
        tokens: Special tokens by the setting of the configuration that contains their token id.
        tower: Path of the vision tower inside the model.
    """

    tokens: Mapping[str, str]
    tower: str


_POOLED = Family({"image_token_id": "<image>", "video_token_id": "<video>"}, "model.vision_tower")
_PATCHES = Family(
    {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    },
    "model.visual",
)
FAMILIES: dict[str, Family] = {name: _POOLED if form.pooled else _PATCHES for name, form in FORMATS.items()}
"""The supported families by `model_type`."""
LANGUAGE_PATH = "model.language_model"
"""Path of the language part inside the model of any family; its head is beside it."""


def check_family(
    model_type: Any, setting: str = "config.model_type", families: Collection[str] = tuple(FAMILIES)
) -> str:
    """Check that a model type is one of the families.

    Args:
        model_type: The model type.
        setting: Name of the setting, for the message.
        families: The families that are possible.

    Returns:
        The model type.

    Raises:
        ValueError: The model type is missing or not supported.
    """
    if model_type not in families:
        raise ValueError(f"{setting} must be {' or '.join(families)}, got {model_type!r}: use a model of one of them.")
    return str(model_type)


def tower_of(model: PreTrainedModel) -> nn.Module:
    """Return the vision tower: `visual` of a Qwen with its mergers, `vision_tower` of LLaVA without the projector."""
    return model.get_submodule(FAMILIES[model.config.model_type].tower)


def complete_vision_config(
    config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None, visual: VisualFormat | None
) -> PretrainedConfig:
    """Create a configuration from settings, with the vocabulary, the special tokens and the patch sizes of the data.

    Settings that are not given are completed. For a Qwen these are the sections of M-RoPE in the proportion of the
    released models (2 : 3 : 3 for time, height and width, 6 : 5 : 5 in Qwen3-VL); and where the family has them,
    attention windows of four by four merged patches with full attention in the last vision layer, and features for the
    first layers of the language part from the layers at a quarter, a half and three quarters of the tower.

    Args:
        config: `model_type` (one of `FAMILIES`), `text_config`, `vision_config`, and any other setting.
        tokenizer: Tokenizer of the data. None is allowed if the settings give the vocabulary size and the special
            tokens.
        visual: Family, patch size and image size of the data, or None.

    Returns:
        The configuration.

    Raises:
        ValueError: The model type is not supported or not that of the data, a setting is unknown or contradicts
            another, or the tokenizer lacks a special token.
    """
    settings: dict[str, Any] = {name: value for name, value in config.items() if name != "model_type"}
    family = check_family(config.get("model_type"))
    known = AutoConfig.for_model(family)
    check_names(settings, known)
    text, vision = (dict(settings.pop(name, None) or {}) for name in ("text_config", "vision_config"))
    pooled = FORMATS[family].pooled
    if pooled:
        text.setdefault("model_type", "qwen2")
        vision.setdefault("model_type", "siglip_vision_model")
    for name, part in (("text_config", text), ("vision_config", vision)):
        kind = part.get("model_type") or getattr(known, name).model_type
        try:
            part_config = AutoConfig.for_model(kind)
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"config.{name}.model_type must be one that transformers has, got {kind!r}: use another one."
            ) from error
        check_names(part, part_config, f"config.{name}")
    if tokenizer is not None:
        text.setdefault("vocab_size", len(tokenizer))
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            text.setdefault(name, getattr(tokenizer, name))
        for name, token in tokens_of(tokenizer, family).items():
            settings.setdefault(name, token_id(tokenizer, token, family))
    elif "vocab_size" not in text:
        raise ValueError(
            "config.text_config.vocab_size must be given without a tokenizer, got None: set it, or use a data module"
            " with a tokenizer."
        )
    if visual is not None:
        check_visual_family(family, visual)
    if not pooled:
        _complete_qwen(known, text, vision, visual)
    elif visual is not None:
        vision.setdefault("image_size", visual.height)
        vision.setdefault("patch_size", visual.patch_size)
    if pooled:
        # the pooling head, which computes one vector of a whole image, is not used
        vision.setdefault("vision_use_head", False)
    try:
        return AutoConfig.for_model(family, **settings, text_config=text, vision_config=vision)
    except (TypeError, ValueError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())  # messages of transformers' validators have several lines
        raise ValueError(f"config was refused by transformers as {family} ({reason}): correct the setting.") from error


def _complete_qwen(
    known: PretrainedConfig, text: dict[str, Any], vision: dict[str, Any], visual: VisualFormat | None
) -> None:
    """Add settings of a Qwen that follow from others, in place.

    Args:
        known: The usual configuration of the family, which says what settings there are.
        text: Settings of the language part.
        vision: Settings of the vision tower.
        visual: Format of the data, or None.
    """
    usual_text, usual_vision = known.text_config, known.vision_config
    hidden = text.get("hidden_size", usual_text.hidden_size)
    heads = text.get("num_attention_heads", usual_text.num_attention_heads)
    if not isinstance(hidden, int) or not isinstance(heads, int) or heads < 1 or hidden % (4 * heads):
        raise ValueError(
            "config.text_config.hidden_size must be a multiple of four times num_attention_heads, because M-RoPE splits"
            f" each head into time, height and width, got {hidden!r} with {heads!r} heads: change one of them."
        )
    # a family whose heads have a width of their own interleaves the axes, and gives time more of it
    wide = "head_dim" in usual_text.to_dict()
    size = text.setdefault("head_dim", hidden // heads) if wide else hidden // heads
    pairs = size // 2
    rope = dict(text.get("rope_parameters") or {})
    rope.setdefault("rope_type", "default")
    usual_rope = usual_text.rope_parameters or {}
    rope.setdefault("rope_theta", text.pop("rope_theta", usual_rope.get("rope_theta", 10_000.0)))
    spatial = pairs * 5 // 16 if wide else pairs * 3 // 8
    sections = list(rope.setdefault("mrope_section", [pairs - 2 * spatial, spatial, spatial]))
    if len(sections) != 3 or sum(sections) != pairs:
        raise ValueError(
            f"config.text_config.rope_parameters.mrope_section must be three numbers with the sum {pairs}, half of a"
            f" head, got {sections}: leave it out to take the default."
        )
    text["rope_parameters"] = rope
    depth = vision.setdefault("depth", usual_vision.depth)
    if hasattr(usual_vision, "deepstack_visual_indexes"):
        # behind the last layer of the language part nothing reads them
        most = text.get("num_hidden_layers", usual_text.num_hidden_layers) - 1
        vision.setdefault("deepstack_visual_indexes", sorted({depth * part // 4 for part in (1, 2, 3)})[:most])
    if visual is not None:
        vision.setdefault("patch_size", visual.patch_size)
        vision.setdefault("spatial_merge_size", visual.merge_size)
        vision.setdefault("temporal_patch_size", visual.temporal_patch_size)
    if hasattr(usual_vision, "window_size"):
        vision.setdefault("fullatt_block_indexes", [depth - 1])
        merged = vision.get("patch_size", usual_vision.patch_size) * vision.get(
            "spatial_merge_size", usual_vision.spatial_merge_size
        )
        if vision.setdefault("window_size", 4 * merged) < merged:
            raise ValueError(
                f"config.vision_config.window_size must be at least {merged}, one merged patch, got"
                f" {vision['window_size']}: raise it or leave it out."
            )
    # the width of Qwen2-VL's tower is embed_dim, and its hidden_size is what the merger makes
    out = "out_hidden_size" if hasattr(usual_vision, "out_hidden_size") else "hidden_size"
    if vision.setdefault(out, hidden) != hidden:
        raise ValueError(
            f"config.vision_config.{out} must be {hidden}, the hidden_size of text_config, got {vision[out]}: leave it"
            " out."
        )


def tokens_of(tokenizer: PreTrainedTokenizerBase, family: str) -> dict[str, str]:
    """Return the special tokens of a family by the setting that contains their id, with the names that a tokenizer has.

    Args:
        tokenizer: Tokenizer of the data.
        family: Family of the model.
    """
    image, video = visual_tokens(tokenizer, family)
    return {**FAMILIES[family].tokens, "image_token_id": image, "video_token_id": video}


def token_id(tokenizer: PreTrainedTokenizerBase, token: str, family: str) -> int:
    """Return the token id of a special token.

    Args:
        tokenizer: Tokenizer of the data.
        token: The special token.
        family: Family that needs it, for the message.

    Returns:
        The token id.

    Raises:
        ValueError: The tokenizer does not have the token.
    """
    number = tokenizer.get_vocab().get(token)
    if number is None:
        raise ValueError(
            f"tokenizer must have the token {token} for {family}, got one without it: use the tokenizer of a trained"
            f" {family} model, or leave the tokenizer of the data out to have one trained."
        )
    return int(number)


def check_visual_family(family: str, visual: VisualFormat) -> None:
    """Check that the clips were prepared for the family of the model.

    Args:
        family: Family of the model.
        visual: Format of the data.

    Raises:
        ValueError: The families differ.
    """
    if visual.family != family:
        raise ValueError(
            f"data.family must be the model's family {family}, got {visual.family}: set data.family={family}."
        )


def check_vision_fit(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None, visual: VisualFormat | None
) -> None:
    """Check that the clips and the special tokens of the data are those that the model expects.

    Args:
        config: Complete configuration of the model.
        tokenizer: Tokenizer of the data.
        visual: Format of the data, or None.

    Raises:
        ValueError: Family, patch sizes, image size or special tokens differ; the message names the difference.
    """
    family = config.model_type
    if tokenizer is not None:
        for name, token in tokens_of(tokenizer, family).items():
            given, own = token_id(tokenizer, token, family), getattr(config, name)
            if given != own:
                raise ValueError(
                    f"tokenizer must have token id {own} for {token}, the model's {name}, got {given}: set the"
                    " tokenizer of the data to the model's path."
                )
    if visual is None:
        return
    check_visual_family(family, visual)
    pairs = {"patch_size": "patch_size"}
    if not visual.pooled:
        pairs |= {"merge_size": "spatial_merge_size", "temporal_patch_size": "temporal_patch_size"}
    else:
        pairs["height"] = "image_size"
    for here, there in pairs.items():
        given, own = getattr(visual, here), getattr(config.vision_config, there)
        if given != own:
            raise ValueError(
                f"data.{here} must be {own}, the {there} of the model's vision_config, got {given}: set both to the"
                " same value."
            )
