"""Generation settings of transformers: what decoders follow, and what they refuse by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from saccade.inference.huggingface.models import text_config
from saccade.inference.sampling import Sampling

DEFAULT_TOP_K = 50  # what model.generate samples with where neither the call nor the model's configuration says


@dataclass(frozen=True)
class GenerationSettings:
    """What decoders follow of a generation configuration.

    Args:
        sampling: How tokens are drawn; ``None`` is greedy.
        eos: Ids that end a row; may be empty.
        pad: Id behind finished rows; ``None`` where the configuration names none.
        max_new_tokens: Most new tokens of a row; ``None`` where the configuration sets no such limit.
        max_length: Limit of prompt and new tokens together; ``None`` where there is none.
    """

    sampling: Sampling | None = None
    eos: tuple[int, ...] = ()
    pad: int | None = None
    max_new_tokens: int | None = None
    max_length: int | None = None


def end_of_text_ids(model: nn.Module, config: Any = None) -> tuple[int, ...]:
    """Ids that end a text, from a generation configuration.

    Args:
        model: Gives its own generation configuration, else its model configuration, where ``config`` is ``None``.
        config: The generation configuration to read.
    """
    own = getattr(model, "generation_config", None) if config is None else config
    ids = getattr(own, "eos_token_id", None)
    if ids is None and config is None:
        ids = getattr(text_config(model), "eos_token_id", None)
    if isinstance(ids, torch.Tensor):
        ids = ids.tolist()
    if ids is None:
        return ()
    return tuple(int(token) for token in (ids if isinstance(ids, (list, tuple)) else [ids]))


def read_generation_config(
    model: nn.Module,
    config: Any = None,
    *,
    do_sample: bool | None = None,
    sampling: Sampling | None = None,
    prompt_length: int = 0,
) -> GenerationSettings:
    """Reads the settings that decoders follow, and refuses those that they cannot follow.

    Args:
        model: Gives its own generation configuration where ``config`` is ``None``.
        config: A configuration that is complete, as ``model.generate`` hands it to a custom decoder.
        do_sample: Draw tokens (true) or decode greedily (false); ``None``: the configuration decides.
        sampling: How to draw tokens; stands above ``do_sample`` and the configuration.
        prompt_length: Length of ``input_ids``; a ``min_length`` up to it has no effect.

    Returns:
        The settings.

    Raises:
        ValueError: A setting that decoders cannot follow; the message names it.
    """
    if do_sample is not None and not isinstance(do_sample, bool):
        raise ValueError(f"do_sample must be true or false, or None, got {do_sample!r}: true draws tokens.")
    own = getattr(model, "generation_config", None) if config is None else config
    drawn = bool(getattr(own, "do_sample", None)) if do_sample is None else do_sample
    drawn = drawn and sampling is None
    refuse_unsupported_settings(own, drawn, prompt_length)
    return GenerationSettings(
        _sampling_of(own) if drawn else sampling,
        end_of_text_ids(model, config),
        getattr(own, "pad_token_id", None),
        getattr(own, "max_new_tokens", None),
        getattr(own, "max_length", None),
    )


def _sampling_of(config: Any) -> Sampling:
    given = {name: getattr(config, name, None) for name in ("temperature", "top_k", "top_p")}
    return Sampling(
        temperature=1.0 if given["temperature"] is None else given["temperature"],
        top_k=DEFAULT_TOP_K if given["top_k"] is None else given["top_k"],
        top_p=1.0 if given["top_p"] is None else given["top_p"],
    )


# By setting: the value that switches it off. None, false and what is empty do so as well.
_REFUSED: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "constraints": None,
    "force_words_ids": None,
    "penalty_alpha": 0.0,
    "dola_layers": None,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_new_tokens": 0,
    "min_length": 0,
    "num_return_sequences": 1,
    "max_time": None,
    "stop_strings": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1.0,
    "sequence_bias": None,
    "watermarking_config": None,
    "exponential_decay_length_penalty": None,
    "remove_invalid_values": False,
    "renormalize_logits": False,
    "token_healing": False,
    "output_scores": False,
    "output_logits": False,
    "output_attentions": False,
    "output_hidden_states": False,
}
# these change nothing where tokens are not drawn
_REFUSED_SAMPLING: dict[str, Any] = {
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "top_h": None,
}
_MAY_BE_ZERO = {"forced_bos_token_id", "forced_eos_token_id"}  # 0 is a token


def unsupported_settings(config: Any, drawn: bool, prompt_length: int = 0) -> dict[str, tuple[Any, Any]]:
    """The settings that change the text of ``model.generate`` and that decoders cannot follow.

    Args:
        config: A generation configuration of transformers.
        drawn: Whether its settings of sampling count.
        prompt_length: Length of ``input_ids``.

    Returns:
        By name the setting's value, and the value that switches it off.
    """
    found = {}
    for name, off in (_REFUSED | _REFUSED_SAMPLING if drawn else _REFUSED).items():
        value = getattr(config, name, None)
        if value is None or value == off or (not value and name not in _MAY_BE_ZERO and not _is_number(value)):
            continue
        if name == "min_length" and value <= prompt_length:
            continue
        found[name] = (value, off)
    if getattr(config, "cache_implementation", None) == "quantized":
        found["cache_implementation"] = ("quantized", None)
    return found


def refuse_unsupported_settings(config: Any, drawn: bool, prompt_length: int = 0) -> None:
    """Refuses settings that change the text of ``model.generate`` and that decoders cannot follow.

    Args:
        config: A generation configuration of transformers.
        drawn: Whether its settings of sampling count.
        prompt_length: Length of ``input_ids``.

    Raises:
        ValueError: Names the setting, its value, and the value that switches it off.
    """
    for name, (value, off) in unsupported_settings(config, drawn, prompt_length).items():
        raise ValueError(
            f"{name}={value!r} is not supported by Saccade's decoders: set generation_config.{name} to {off!r}."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_KNOWN_PROCESSORS = {"TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper"}
_KNOWN_CRITERIA = {"MaxLengthCriteria", "EosTokenCriteria"}


def refuse_processors(logits_processor: Any, stopping_criteria: Any, prompt_length: int) -> None:
    """Refuses objects of ``model.generate`` that change logits or stop texts in ways that decoders do not know.

    Args:
        logits_processor: A list of transformers' logits processors, or ``None``.
        stopping_criteria: A list of its stopping criteria, or ``None``.
        prompt_length: Length of ``input_ids``; a shortest length up to it has no effect. Nor have empty lists.

    Raises:
        ValueError: Names the class.
    """
    has_effect: dict[str, Callable[[Any], bool]] = {
        "MinLengthLogitsProcessor": lambda item: item.min_length > prompt_length,
        "MinNewTokensLengthLogitsProcessor": lambda item: item.min_new_tokens > 0,
        "SuppressTokensLogitsProcessor": lambda item: len(item.suppress_tokens) > 0,
        "SuppressTokensAtBeginLogitsProcessor": lambda item: len(item.begin_suppress_tokens) > 0,
    }
    for processor in logits_processor or []:
        name = type(processor).__name__
        if name not in _KNOWN_PROCESSORS and (name not in has_effect or has_effect[name](processor)):
            raise ValueError(
                f"logits processor {name} is not supported by Saccade's decoders: leave it out; they know temperature, "
                "top-k and top-p."
            )
    for criterion in stopping_criteria or []:
        if type(criterion).__name__ not in _KNOWN_CRITERIA:
            raise ValueError(
                f"stopping criterion {type(criterion).__name__} is not supported by Saccade's decoders: leave it out; "
                "they stop at EOS and at the length limit."
            )
