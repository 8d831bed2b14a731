"""Build Hugging Face models from a path or from a configuration."""

import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from saccade.common.checks import check_place

# what pre-tokenizers disagree about
_PROBE = "def größe ( x ) :\n\n    return  x+12345 ,\t'it''s' e\u0301\r\n"
# settings that transformers reads but keeps elsewhere or under another name
_ALSO_READ = frozenset({"attn_implementation", "rope_theta", "model_type"})


def check_names(settings: Iterable[str], known: PretrainedConfig, place: str = "config") -> None:
    """Refuse settings that a configuration does not have.

    Args:
        settings: Their names.
        known: A configuration of that kind.
        place: Where they stand, for the message.

    Raises:
        ValueError: One is unknown.
    """
    for name in settings:
        # transformers would store a misspelt setting and build a model without it
        if name not in _ALSO_READ and not hasattr(known, name):
            raise ValueError(
                f"{place}: {known.model_type} has no setting {name!r}; see {type(known).__name__} of transformers"
            )


def complete_config(config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None) -> PretrainedConfig:
    """Turn settings into a configuration, with vocabulary and special tokens of the tokenizer.

    Args:
        config: `model_type` and the settings of that model type, such as hidden_size and num_hidden_layers.
        tokenizer: Gives vocabulary size and special tokens that the settings do not name.

    Returns:
        The configuration.

    Raises:
        ValueError: The model type is missing or unknown, a setting is unknown, or the vocabulary is unknown or too
            small for the tokenizer.
    """
    settings = dict(config)
    model_type = settings.pop("model_type", None)
    if not isinstance(model_type, str):
        raise ValueError("config: model_type is missing; name the architecture, such as llama, qwen2 or qwen3")
    try:
        known = AutoConfig.for_model(model_type)
    except ValueError as error:
        raise ValueError(
            f"config: transformers knows no model_type {model_type!r}; try llama, qwen2 or qwen3"
        ) from error
    check_names(settings, known)
    if tokenizer is not None:
        settings.setdefault("vocab_size", len(tokenizer))
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            settings.setdefault(name, getattr(tokenizer, name))
    elif "vocab_size" not in settings:
        raise ValueError("config: vocab_size is missing and there is no datamodule with a tokenizer; set vocab_size")
    if isinstance(layers := settings.get("num_hidden_layers", 1), int) and layers < 1:
        raise ValueError(f"config: num_hidden_layers must be at least 1, but is {layers}")
    try:
        return AutoConfig.for_model(model_type, **settings)
    except Exception as error:  # whatever transformers makes of a wrong value
        raise ValueError(f"config: transformers refuses these settings of {model_type} ({_in_short(error)})") from error


def check_tokenizer_survives(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that `AutoTokenizer` would turn into another one beside this configuration.

    For some model types transformers ignores the tokenizer class that a folder names and puts its own in place, which
    splits text differently: the exported model would read token numbers that it was not trained on.

    Args:
        config: Of the model.
        tokenizer: Of the data.

    Raises:
        ValueError: The tokenizer comes back changed.
    """
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        loaded = AutoTokenizer.from_pretrained(folder)
    same = loaded.get_vocab() == tokenizer.get_vocab()
    if not same or loaded(_PROBE)["input_ids"] != tokenizer(_PROBE)["input_ids"]:
        raise ValueError(
            f"config: beside a {config.model_type} model, AutoTokenizer changes the data's tokenizer; use another"
            " model_type, such as qwen3, or the tokenizer of a trained model of that type"
        )


def check_batch(module: nn.Module, batch: Any, needed: str, data: str) -> None:
    """Refuse the batches of another module's data, before a step fails on them.

    Args:
        module: That would read them.
        batch: The batch.
        needed: What it must have.
        data: A datamodule of the package whose batches do.

    Raises:
        ValueError: The batch is no mapping with that entry.
    """
    if not isinstance(batch, Mapping) or needed not in batch:
        given = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise ValueError(
            f"data: {type(module).__name__} needs batches with {needed!r}, as saccade.datamodules.{data} gives, but"
            f" these have {given or 'nothing'}; set data to it"
        )


def check_fit(
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    sequence_length: int | None,
    length_name: str = "sequence_length",
) -> None:
    """Refuse data that the model cannot read.

    Args:
        config: Of the model.
        tokenizer: Of the data.
        sequence_length: Tokens per sequence of the data.
        length_name: What the datamodule calls it.

    Raises:
        ValueError: Vocabulary or context of the model is too small.
    """
    text = config.get_text_config(decoder=True)
    if tokenizer is not None and len(tokenizer) > text.vocab_size:
        raise ValueError(
            f"vocab_size: the data's tokenizer has {len(tokenizer)} tokens, but the model has only {text.vocab_size};"
            " set the datamodule's tokenizer to the model's path, or leave vocab_size out of config"
        )
    context = getattr(text, "max_position_embeddings", None)
    if sequence_length is not None and context is not None and sequence_length > context:
        raise ValueError(
            f"{length_name}: {sequence_length} is longer than the model's context of {context} tokens; shorten it or"
            " raise max_position_embeddings"
        )


def model_from_config(config: PretrainedConfig, seed: int, auto_class: Any = AutoModelForCausalLM) -> PreTrainedModel:
    """Build a model with fresh weights that depend on the configuration and the seed only.

    Args:
        config: Of the model.
        seed: Of the weights; the global random state is neither read nor changed.
        auto_class: Of transformers; chooses the model's class.

    Returns:
        The model, on the CPU, so that the weights are the same whatever the device.

    Raises:
        ValueError: The configuration has values of which no model can be made.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        try:
            model: PreTrainedModel = auto_class.from_config(config, dtype=torch.get_default_dtype())
        except Exception as error:  # shapes that do not fit, unknown activations, ...: the model's own words
            raise ValueError(
                f"config: no {config.model_type} can be built of these values ({_in_short(error)})"
            ) from error
    return model


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def model_from_path(
    path: str, auto_class: Any = AutoModelForCausalLM, kind: str = "causal language model"
) -> PreTrainedModel:
    """Load a model from a folder or the Hugging Face hub.

    Args:
        path: Folder or hub id.
        auto_class: Of transformers; chooses the model's class.
        kind: What is expected there, for the message.

    Returns:
        The model, on the CPU, in torch's default type, which the trainer's precision sets.

    Raises:
        ValueError: There is no such model.
    """
    check_place("path", path)
    try:
        with torch.device("cpu"):
            model: PreTrainedModel = auto_class.from_pretrained(path, dtype=torch.get_default_dtype())
    except (OSError, ValueError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"path: cannot load a {kind} from {path!r} ({reason})") from error
    return model
