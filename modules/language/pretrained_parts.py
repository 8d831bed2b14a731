"""Build a LLaVA-OneVision from a trained language model and, if there is one, a trained vision tower."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerBase

from saccade.datamodules.video.preprocessing import VisualFormat
from saccade.modules.language.construction import (
    check_fit,
    check_tokenizer_survives,
    model_from_config,
    model_from_path,
)
from saccade.modules.language.vision_construction import (
    LANGUAGE_PATH,
    check_family,
    check_vision_fit,
    complete_vision_config,
)

_FAMILY = "llava_onevision"
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_parts(config: Mapping[str, Any], language_model: str | None, vision_tower: str | None) -> None:
    """Check the settings of a model that starts from trained parts.

    Args:
        config: Settings of the new model.
        language_model: Folder or hub id of the language model, or None.
        vision_tower: Folder or hub id of a model with the vision tower, or None.

    Raises:
        ValueError: The family cannot take the parts, or `config` describes a part that is already trained.
    """
    for name, source, part in (
        ("language_model", language_model, "text_config"),
        ("vision_tower", vision_tower, "vision_config"),
    ):
        if source is None:
            continue
        if config.get("model_type") != _FAMILY:
            raise ValueError(
                f"config.model_type must be {_FAMILY} with {name}, got {config.get('model_type')!r}: set it, or leave"
                f" {name} out."
            )
        if config.get(part):
            raise ValueError(
                f"config.{part} must be left out with {name}, got {sorted(config[part])}: the trained part has its own"
                " settings."
            )


def model_from_parts(
    config: Mapping[str, Any],
    language_model: str | None,
    vision_tower: str | None,
    keeps_type: bool,
    tokenizer: PreTrainedTokenizerBase | None,
    visual: VisualFormat | None,
    max_tokens: int | None,
    seed: int,
) -> PreTrainedModel:
    """Build a model of which some parts are trained; the others, the projector among them, get new weights (ours).

    The language part is that of the language model, weight for weight: for a text it has the same logits.

    Args:
        config: Settings of the model, without those of trained parts.
        language_model: Folder or hub id of a causal language model, or None for a new language part.
        vision_tower: Folder or hub id of a trained LLaVA-OneVision whose vision tower is taken, or None for a new one.
        keeps_type: Whether the language part keeps the type of its file (for weights that are not trained) instead of
            torch's default type.
        tokenizer: Tokenizer of the data: that of the language model with the tokens of the family.
        visual: Format of the data, or None.
        max_tokens: Maximum length of a sequence of the data.
        seed: Seed of the new weights.

    Returns:
        The model on the CPU.

    Raises:
        ValueError: A part cannot be loaded or does not fit, or the vocabulary has no unused places.
    """
    settings = dict(config)
    language = None if language_model is None else _language(language_model, keeps_type, tokenizer)
    if language is not None:
        settings["text_config"] = _stand_in(language)
    tower = None
    if vision_tower is not None:
        tower = model_from_path(vision_tower, AutoModelForImageTextToText, "vision-language model", "vision_tower")
        check_family(tower.config.model_type, "model_type of the model in vision_tower", (_FAMILY,))
        for name in ("vision_feature_layer", "vision_feature_select_strategy"):
            settings.setdefault(name, getattr(tower.config, name))
    filled = complete_vision_config(settings, tokenizer, visual)
    if tower is not None:
        filled.vision_config = copy.deepcopy(tower.config.vision_config)
    new = model_from_config(filled, seed, AutoModelForImageTextToText)
    if language is not None:
        filled.text_config = language.config
        filled.tie_word_embeddings = language.config.tie_word_embeddings
    check_vision_fit(filled, tokenizer, visual)
    check_fit(filled, tokenizer, max_tokens, "max_tokens")
    if tokenizer is not None:
        check_tokenizer_survives(filled, tokenizer)
    # a whole without memory, so that all that follows from the configuration is right, and then its parts
    with torch.device("meta"):
        whole: Any = AutoModelForImageTextToText.from_config(filled)
    for name, part in new.model.named_children():
        setattr(whole.model, name, part)
    whole.model.image_newline = new.model.image_newline
    if tower is not None:
        whole.model.vision_tower = tower.model.vision_tower
    whole.lm_head = new.get_output_embeddings()
    if language is not None:
        whole.set_submodule(LANGUAGE_PATH, language.base_model)
        whole.lm_head = language.get_output_embeddings()
        _check_logits(whole, language, str(language_model))
    built: PreTrainedModel = whole
    return built


def _language(path: str, keeps_type: bool, tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedModel:
    """Load a language model that has room for the tokens of the data."""
    model = model_from_path(path, AutoModelForCausalLM, name="language_model", keeps_type=keeps_type)
    if model.get_output_embeddings() is None or model.base_model is model:
        raise ValueError(
            f"language_model must have a body and a head of its own, got {type(model).__name__} in {path!r}: use a"
            " model such as Qwen2."
        )
    if tokenizer is None:
        return model
    embedding: Any = model.get_input_embeddings()
    rows, needed = len(embedding.weight), len(tokenizer)
    if needed > rows:
        raise ValueError(
            f"language_model must have at least {needed} rows in its embedding, one for each token of the data's"
            f" tokenizer, got {rows} in {path!r}: take a model whose vocabulary has unused places, such as Qwen2.5, or"
            " add rows with resize_token_embeddings and save it."
        )
    for name in _SPECIAL:
        setattr(model.config, name, getattr(tokenizer, name))
    return model


def _stand_in(language: PreTrainedModel) -> dict[str, Any]:
    """Settings of the smallest language part with which the projector gets its shape."""
    width = language.config.hidden_size
    small = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 1}
    return {"model_type": "qwen2", "hidden_size": width, "vocab_size": 1, **small, **dict.fromkeys(_SPECIAL)}


@torch.no_grad()
def _check_logits(whole: nn.Module, language: nn.Module, path: str) -> None:
    """Check that for a text the whole has the logits of the language model, which may do more with them than its head.

    Raises:
        ValueError: The logits differ.
    """
    text = torch.arange(1, 4)[None]
    own, expected = (model.eval()(input_ids=text, use_cache=False).logits for model in (whole, language))
    if not torch.equal(own, expected):
        raise ValueError(
            f"language_model must compute its logits with a linear head alone, got {type(language).__name__} in"
            f" {path!r}, which does more: use a model such as Qwen2."
        )
