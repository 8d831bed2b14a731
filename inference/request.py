"""One checked generation request: wrong input ends here, before anything is allocated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saccade.inference import compat

DEFAULT_NEW_TOKENS = 20  # transformers' own default


@dataclass
class Request:
    """Prompts without padding, and when to stop.

    Args:
        prompts: Token ids of every row.
        max_new_tokens: Most new tokens of a row.
        eos: Ids that end a row; may be empty.
        pad: Id that fills up ``sequences``.
    """

    prompts: list[list[int]]
    max_new_tokens: int
    eos: frozenset[int]
    pad: int

    @classmethod
    def read(
        cls,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        max_new_tokens: int | None,
        max_length: int | None,
        eos_token_id: int | Sequence[int] | None,
        pad_token_id: int | None,
    ) -> Request:
        """Checks the arguments of :meth:`saccade.inference.Decoder.generate` against the model.

        Raises:
            ValueError: Names what is wrong, with its value.
        """
        compat.check_supported(model)
        config = compat.text_config(model)
        if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or input_ids.is_floating_point():
            shape = tuple(input_ids.shape) if isinstance(input_ids, Tensor) else type(input_ids).__name__
            raise ValueError(f"input_ids must be an integer tensor of shape [batch, length], got {shape}.")
        prompts = _strip_padding(input_ids, attention_mask)
        for row, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(f"the prompt of row {row} is empty: give at least one token, for example BOS.")
            wrong = next((token for token in prompt if not 0 <= token < config.vocab_size), None)
            if wrong is not None:
                raise ValueError(
                    f"row {row} holds the token id {wrong}, but the model's vocabulary has {config.vocab_size} ids: "
                    "use the model's own tokenizer."
                )
        limit = _limit(model, max_new_tokens, max_length, input_ids.shape[1])
        longest = max(len(prompt) for prompt in prompts)
        context = getattr(config, "max_position_embeddings", None)
        if context is not None and longest + limit > context:
            raise ValueError(
                f"a prompt of {longest} tokens and {limit} new ones need {longest + limit} positions, the model has "
                f"{context}: shorten the prompt or lower max_new_tokens."
            )
        settings = compat.generation_settings(model)
        eos = settings["eos"] if eos_token_id is None else eos_token_id
        eos = frozenset([eos] if isinstance(eos, int) else eos)
        pad = pad_token_id if pad_token_id is not None else settings["pad"]
        return cls(prompts, limit, eos, pad if pad is not None else min(eos, default=0))

    def sequences(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """``[batch, longest prompt + longest continuation]``: prompts end, and new tokens begin, in one column."""
        longest = max(len(prompt) for prompt in self.prompts)
        added = max(len(row) for row in tokens)
        return torch.tensor(
            [
                [self.pad] * (longest - len(prompt)) + list(prompt) + list(row) + [self.pad] * (added - len(row))
                for prompt, row in zip(self.prompts, tokens, strict=True)
            ]
        )


def _strip_padding(input_ids: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    rows: list[list[int]] = input_ids.tolist()
    if attention_mask is None:
        return rows
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has the shape {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}: "
            "they must be equal."
        )
    prompts = []
    for row, (tokens, mask) in enumerate(zip(rows, attention_mask.bool().tolist(), strict=True)):
        kept = [token for token, keep in zip(tokens, mask, strict=True) if keep]
        first = mask.index(True) if kept else 0
        if not all(mask[first : first + len(kept)]):
            raise ValueError(f"attention_mask of row {row} has a hole: padding belongs at the ends of a prompt.")
        prompts.append(kept)
    return prompts


def _limit(model: nn.Module, max_new_tokens: int | None, max_length: int | None, given: int) -> int:
    config = getattr(model, "generation_config", None)
    if max_new_tokens is None and max_length is None:
        max_new_tokens = getattr(config, "max_new_tokens", None)
        max_length = getattr(config, "max_length", None)
    if max_new_tokens is None:
        max_new_tokens = DEFAULT_NEW_TOKENS if max_length is None else max_length - given
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens} (input_ids has {given} tokens).")
    return max_new_tokens
