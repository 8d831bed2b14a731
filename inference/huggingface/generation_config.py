"""GenerationOutput settings of transformers: what decoders follow, and what they refuse by name."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    pass
from saccade.inference.huggingface.models import text_config


def generation_settings(model: nn.Module, config: Any = None) -> dict[str, Any]:
    """EOS ids and the padding id from a model's (or the given) generation configuration.

    Returns:
        ``eos`` (tuple of ids, may be empty) and ``pad`` (id or ``None``).
    """
    given, config = config is not None, config if config is not None else getattr(model, "generation_config", None)
    eos = getattr(config, "eos_token_id", None)
    if eos is None and not given:
        eos = getattr(text_config(model), "eos_token_id", None)
    if isinstance(eos, torch.Tensor):
        eos = eos.tolist()
    ids = () if eos is None else tuple(eos) if isinstance(eos, (list, tuple)) else (int(eos),)
    return {"eos": ids, "pad": getattr(config, "pad_token_id", None)}


_REFUSED = {
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_new_tokens": None,
    "min_length": 0,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "num_return_sequences": 1,
    "penalty_alpha": None,
    "max_time": None,
    "stop_strings": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": None,
    "sequence_bias": None,
    "watermarking_config": None,
    "top_h": None,
    "output_scores": False,
    "output_logits": False,
    "output_attentions": False,
    "output_hidden_states": False,
}


# what model.generate itself hands on for every text model; a session has its own cache and positions
_KNOWN_INPUTS = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep", "cache_position"}


def refuse_unknown_inputs(names: Iterable[str], known: Collection[str] = ()) -> None:
    """Refuses inputs of ``model.generate`` that would silently have no effect.

    Args:
        names: Of the inputs that are given.
        known: Further inputs that a decoder reads, for example videos.

    Raises:
        ValueError: Names the input.
    """
    for name in names:
        if name not in _KNOWN_INPUTS and name not in known:
            more = f" and {', '.join(known)}" if known else " alone"
            raise ValueError(f"the input {name} is not supported by Saccade's decoders: they read input_ids{more}.")


def refuse_other_positions(positions: Any, attention_mask: Any) -> None:
    """Refuses positions of a text that do not count its tokens from 0: a session counts them itself.

    Args:
        positions: ``position_ids`` of ``model.generate``; those of several axes belong to images and videos.
        attention_mask: Its ``attention_mask``; ``None`` is all tokens.

    Raises:
        ValueError: Names the input.
    """
    if not isinstance(positions, torch.Tensor) or positions.ndim != 2:
        return
    mask = torch.ones_like(positions) if attention_mask is None else attention_mask.to(positions)
    if mask.shape != positions.shape or bool(((positions != mask.cumsum(-1) - 1) & mask.bool()).any()):
        raise ValueError("position_ids that do not count the tokens from 0 are not supported: leave them out.")


def refuse_unsupported_generation(config: Any, logits_processor: Any, stopping_criteria: Any) -> None:
    """Refuses settings of ``model.generate`` that a speculative decoder would otherwise silently ignore.

    Raises:
        ValueError: Names the setting and its value.
    """
    for name, neutral in _REFUSED.items():
        value = getattr(config, name, neutral)
        if value is not None and value != neutral:
            raise ValueError(f"{name}={value!r} is not supported by Saccade's decoders: leave it at its default.")
    known = {"TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper"}
    for processor in logits_processor or []:
        if type(processor).__name__ not in known:
            raise ValueError(
                f"logits processor {type(processor).__name__} is not supported by Saccade's decoders: they know "
                "temperature, top-k and top-p."
            )
    for criterion in stopping_criteria or []:
        if type(criterion).__name__ not in {"MaxLengthCriteria", "EosTokenCriteria"}:
            raise ValueError(
                f"stopping criterion {type(criterion).__name__} is not supported by Saccade's decoders: they stop at "
                "EOS and at the length limit."
            )
