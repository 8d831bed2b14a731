"""Build Hugging Face models from a path or a configuration, and check that they fit the data."""

import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from saccade.common.checks import check_count, check_place
from saccade.inference.huggingface.loading import load_model

# text that different pre-tokenizers split differently
_PROBE = "def größe ( x ) :\n\n    return  x+12345 ,\t'it''s' e\u0301\r\n"
# settings that transformers accepts but stores under another name
_ALSO_READ = frozenset({"attn_implementation", "rope_theta", "model_type"})


def check_names(settings: Iterable[str], known: PretrainedConfig, place: str = "config") -> None:
    """Check that a configuration has the given settings.

    Args:
        settings: Names of settings.
        known: A configuration of the model type.
        place: Setting that contains them, for the message.

    Raises:
        ValueError: A setting is unknown.
    """
    for name in settings:
        # transformers would store a misspelt setting and ignore it
        if name not in _ALSO_READ and not hasattr(known, name):
            raise ValueError(
                f"{place} must have settings of {known.model_type}, got {name!r}: see {type(known).__name__} of"
                " transformers for their names."
            )


def complete_config(config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None) -> PretrainedConfig:
    """Create a configuration from settings, with the vocabulary and the special tokens of the tokenizer.

    Args:
        config: `model_type` and settings of that model type, such as hidden_size and num_hidden_layers.
        tokenizer: Provides the vocabulary size and the special tokens that the settings do not name.

    Returns:
        The configuration.

    Raises:
        ValueError: The model type is missing or unknown, a setting is unknown or refused by transformers, or the
            vocabulary size is unknown.
    """
    settings = dict(config)
    model_type = settings.pop("model_type", None)
    if not isinstance(model_type, str):
        raise ValueError(
            f"config.model_type must name an architecture, got {model_type!r}: set it, for example to llama or qwen3."
        )
    try:
        known = AutoConfig.for_model(model_type)
    except ValueError as error:
        raise ValueError(
            f"config.model_type must be one that transformers has, got {model_type!r}: try llama, qwen2 or qwen3."
        ) from error
    check_names(settings, known)
    if tokenizer is not None:
        settings.setdefault("vocab_size", len(tokenizer))
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            settings.setdefault(name, getattr(tokenizer, name))
    elif "vocab_size" not in settings:
        raise ValueError(
            "config.vocab_size must be given without a tokenizer, got None: set it, or use a data module with a"
            " tokenizer."
        )
    if isinstance(layers := settings.get("num_hidden_layers", 1), int):
        check_count("config.num_hidden_layers", layers)
    try:
        return AutoConfig.for_model(model_type, **settings)
    except Exception as error:  # transformers raises many types of errors for wrong values
        raise ValueError(
            f"config was refused by transformers as {model_type} ({_in_short(error)}): correct the setting."
        ) from error


def check_tokenizer_survives(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that `AutoTokenizer` loads the same tokenizer from an exported folder with this configuration.

    For some model types, transformers ignores the tokenizer class that a folder names and uses its own, which splits
    text differently: the exported model would then get token ids that it was not trained on.

    Args:
        config: Configuration of the model.
        tokenizer: Tokenizer of the data.

    Raises:
        ValueError: The loaded tokenizer differs.
    """
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        loaded = AutoTokenizer.from_pretrained(folder)
    same = loaded.get_vocab() == tokenizer.get_vocab()
    if not same or loaded(_PROBE)["input_ids"] != tokenizer(_PROBE)["input_ids"]:
        raise ValueError(
            f"config.model_type must be one with which AutoTokenizer keeps the data's tokenizer, got"
            f" {config.model_type}: use another one, such as qwen3, or the tokenizer of a trained model of that type."
        )


def check_batch(module: nn.Module, batch: Any, needed: str, data: str) -> None:
    """Check that a batch has the key that a module needs.

    Args:
        module: The module that reads the batch.
        batch: The batch.
        needed: The required key.
        data: Name of a data module of the package whose batches have the key.

    Raises:
        ValueError: The batch is not a mapping with that key.
    """
    if not isinstance(batch, Mapping) or needed not in batch:
        given = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise ValueError(
            f"data must give batches with {needed!r} for {type(module).__name__}, got batches with"
            f" {given or 'nothing'}: set data to saccade.datamodules.{data}."
        )


def check_fit(
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    sequence_length: int | None,
    length_name: str = "sequence_length",
) -> None:
    """Check that the vocabulary and the context of a model are large enough for the data.

    Args:
        config: Configuration of the model.
        tokenizer: Tokenizer of the data.
        sequence_length: Tokens per sequence of the data.
        length_name: Name of this setting in the data module, for the message.

    Raises:
        ValueError: The vocabulary or the context of the model is too small.
    """
    text = config.get_text_config(decoder=True)
    if tokenizer is not None and len(tokenizer) > text.vocab_size:
        raise ValueError(
            f"vocab_size of the model must be at least {len(tokenizer)}, the size of the data's tokenizer, got"
            f" {text.vocab_size}: set the tokenizer of the data to the model's path, or leave vocab_size out of config."
        )
    context = getattr(text, "max_position_embeddings", None)
    if sequence_length is not None and context is not None and sequence_length > context:
        raise ValueError(
            f"{length_name} must be at most {context}, the model's context, got {sequence_length}: reduce it, or raise"
            " max_position_embeddings."
        )


def model_from_config(config: PretrainedConfig, seed: int, auto_class: Any = AutoModelForCausalLM) -> PreTrainedModel:
    """Build a model with new weights that depend on the configuration and the seed only.

    Args:
        config: Configuration of the model.
        seed: Seed of the weights; the global random state is neither used nor changed.
        auto_class: Auto class of transformers that chooses the model's class.

    Returns:
        The model on the CPU, so that the weights do not depend on the device.

    Raises:
        ValueError: No model can be built from the configuration.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        try:
            model: PreTrainedModel = auto_class.from_config(config, dtype=torch.get_default_dtype())
        except Exception as error:  # shapes that do not fit, unknown activations, and so on
            raise ValueError(
                f"config gives no {config.model_type} that can be built ({_in_short(error)}): correct the setting."
            ) from error
    return model


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def model_from_path(
    path: str,
    auto_class: Any = AutoModelForCausalLM,
    kind: str = "causal language model",
    name: str = "path",
    keeps_type: bool = False,
) -> PreTrainedModel:
    """Load a model from a folder or the Hugging Face hub.

    Args:
        path: Folder or hub id.
        auto_class: Auto class of transformers that chooses the model's class.
        kind: Type of model that is expected, for the message.
        name: Setting that has the path, for the message.
        keeps_type: Load the weights in the type of their file, for a model that is not trained.

    Returns:
        The model on the CPU, without `keeps_type` in torch's default type, which the trainer's precision sets.

    Raises:
        ValueError: The model cannot be loaded.
    """
    check_place(name, path)
    try:
        with torch.device("cpu"):
            model = load_model(path, "auto" if keeps_type else torch.get_default_dtype(), auto_class)
    except ValueError as error:
        raise ValueError(f"{name} must be a {kind}, got {path!r} ({error}): give a folder or hub id.") from error
    return model
