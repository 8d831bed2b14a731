"""The second door: what ``model.generate(..., custom_generate=decoder)`` of transformers hands over, as a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from saccade.inference.huggingface.generation_config import read_generation_config, refuse_processors
from saccade.inference.huggingface.vision import known_inputs
from saccade.inference.request import Request

# What transformers prepares for every text model. A session has a cache and positions of its own.
_PREPARED = {
    "attention_mask", "position_ids", "past_key_values", "cache_params", "use_cache", "logits_to_keep",
    "cache_position",
}  # fmt: skip


def read_call(
    model: nn.Module,
    input_ids: Tensor,
    generation_config: Any,
    logits_processor: Any,
    stopping_criteria: Any,
    inputs: Mapping[str, Any],
) -> Request:
    """Makes of a call by transformers the request that :meth:`saccade.inference.Decoder.generate` makes by itself.

    Args:
        model: The target.
        input_ids: ``[batch, length]`` token ids.
        generation_config: The configuration that transformers completed from the call, the model and its defaults;
            ``None`` reads the model's own.
        logits_processor: Its logits processors.
        stopping_criteria: Its stopping criteria.
        inputs: Everything else that it hands over: the user's inputs and what it prepared itself.

    Raises:
        ValueError: An input or setting that would have no effect on the decoder; the message names it.
    """
    prompt_length = input_ids.shape[-1] if isinstance(input_ids, Tensor) and input_ids.ndim else 0
    given = {name: value for name, value in inputs.items() if value is not None}
    mask = given.get("attention_mask")
    _refuse_unknown_inputs(model, given)
    _refuse_filled_cache(given.get("past_key_values"), given.get("cache_params"))
    settings = read_generation_config(model, generation_config, prompt_length=prompt_length)
    refuse_processors(logits_processor, stopping_criteria, prompt_length)
    visual = {name: given[name] for name in known_inputs(model) if name in given}
    positions = given.get("position_ids")
    # features without their grids: the positions that transformers made of the grids are all that is known of them
    if positions is not None and (not visual.get("mm_encoder_outputs") or positions.ndim == 2):
        _refuse_other_positions(positions, mask)
        visual.pop("position_ids", None)
    return Request.read(model, input_ids, mask, None, None, None, None, visual, settings=settings)


def _refuse_unknown_inputs(model: nn.Module, given: Mapping[str, Any]) -> None:
    known = known_inputs(model)
    for name in given:
        if name == "inputs_embeds":
            raise ValueError(
                "inputs_embeds is not supported by Saccade's decoders, which read token ids: give input_ids."
            )
        if name not in _PREPARED and name not in known:
            more = f" and {', '.join(known)}" if known else " alone"
            raise ValueError(
                f"the input {name} is not supported by Saccade's decoders, which read input_ids{more}: leave it out."
            )


def _refuse_filled_cache(cache: Any, states: Any) -> None:
    """Refuses a cache that holds tokens, which is the user's: the one that transformers prepares is empty.

    Args:
        cache: Keys and values, and the states of recurrent layers beside them.
        states: The cache of a model of recurrent layers alone, which counts no tokens.
    """
    if hasattr(states, "has_previous_state") and states.has_previous_state():
        raise ValueError(
            "cache_params holds a text, and Saccade's decoders read prompts from their start: give all token ids as "
            "input_ids and leave cache_params out."
        )
    length = cache.get_seq_length() if hasattr(cache, "get_seq_length") else 0
    if int(length):
        raise ValueError(
            f"past_key_values holds {int(length)} tokens, and Saccade's decoders read prompts from their start: give "
            "all token ids as input_ids and leave past_key_values out."
        )


def _refuse_other_positions(positions: Tensor, attention_mask: Tensor | None) -> None:
    """Refuses ``position_ids`` ``[..., batch, length]`` that do not count the tokens of every row from 0."""
    mask = torch.ones_like(positions) if attention_mask is None else attention_mask.to(positions).expand_as(positions)
    if bool(((positions != mask.cumsum(-1) - 1) & mask.bool()).any()):
        raise ValueError(
            "position_ids that do not count the tokens from 0 are not supported by Saccade's decoders: leave "
            "position_ids out."
        )
