"""One checked generation request: wrong input ends here, before anything is allocated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from saccade.common.checks import check_count
from saccade.inference.huggingface.generation_config import generation_settings
from saccade.inference.huggingface.models import check_supported, text_config
from saccade.inference.huggingface.vision import visual_inputs, visual_token_kinds
from saccade.inference.sampling import Sampling

DEFAULT_NEW_TOKENS = 20  # transformers' own default


@dataclass
class Request:
    """Prompts without padding, and when to stop.

    Args:
        prompts: Token ids of every row.
        padding: What stood beside the prompt of every row.
        max_new_tokens: Most new tokens of a row.
        eos: Ids that end a row; may be empty.
        pad: Id that fills up ``sequences``.
        visual: Images and videos of all rows, as the processor made them; empty for text.
        sampling: How tokens are drawn; ``None`` is greedy.
    """

    prompts: list[list[int]]
    padding: list[list[int]]
    max_new_tokens: int
    eos: frozenset[int]
    pad: int
    visual: dict[str, Tensor] = field(default_factory=dict)
    sampling: Sampling | None = None

    @property
    def positions(self) -> int:
        """Positions that the longest row can come to: its prompt and all its new tokens."""
        return max(len(prompt) for prompt in self.prompts) + self.max_new_tokens

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
        visual: Mapping[str, Any] | None = None,
    ) -> Request:
        """Checks the arguments of :meth:`saccade.inference.Decoder.generate` against the model.

        Raises:
            ValueError: Names what is wrong, with its value.
        """
        check_supported(model)
        config = text_config(model)
        if not isinstance(input_ids, Tensor) or input_ids.dtype not in (torch.int32, torch.int64):
            kind = input_ids.dtype if isinstance(input_ids, Tensor) else type(input_ids).__name__
            raise ValueError(f"input_ids must be an integer tensor of shape [batch, length], got {kind}.")
        if input_ids.ndim != 2 or len(input_ids) == 0:
            raise ValueError(f"input_ids must have the shape [batch, length], got {tuple(input_ids.shape)}.")
        seen = visual_inputs(model, visual or {})
        prompts, padding = _split_padding(input_ids, attention_mask)
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
        settings = generation_settings(model)
        known = config.vocab_size
        eos = settings["eos"] if eos_token_id is None else _token_ids("eos_token_id", eos_token_id, known)
        pad = settings["pad"]
        if pad_token_id is not None:
            (pad,) = _token_ids("pad_token_id", [pad_token_id], known)
        if pad is None:
            pad = eos[0] if eos else 0
        if "position_ids" in seen:
            seen["position_ids"] = _without_padding(seen["position_ids"], attention_mask)
        _check_placeholders(model, prompts, seen)
        return cls(prompts, padding, limit, frozenset(eos), pad, seen)

    def sequences(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """``[batch, length + longest continuation]``: the new tokens of all rows begin behind column ``length``."""
        added = max(len(row) for row in tokens)
        return torch.tensor(
            [
                padding + prompt + list(row) + [self.pad] * (added - len(row))
                for padding, prompt, row in zip(self.padding, self.prompts, tokens, strict=True)
            ]
        )


def _token_ids(name: str, given: Any, known: int) -> tuple[int, ...]:
    """Ids of the vocabulary, as Python's whole numbers: those of a tensor are equal to none."""
    listed = given.tolist() if hasattr(given, "tolist") else given
    ids = list(listed) if isinstance(listed, (list, tuple, set, frozenset)) else [listed]
    ids = [token.item() if hasattr(token, "item") else token for token in ids]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < known:
            raise ValueError(f"{name} must be ids from 0 to {known - 1}, got {token!r}.")
    return tuple(ids)


def _check_placeholders(model: nn.Module, prompts: Sequence[Sequence[int]], visual: Mapping[str, Tensor]) -> None:
    kinds = visual_token_kinds(model)
    ids = set(kinds)
    for row, prompt in enumerate(prompts):
        for token in ids & set(prompt):
            kind, pixels = kinds[token]
            if pixels not in visual and "mm_encoder_outputs" not in visual:
                raise ValueError(
                    f"row {row} has placeholders of {kind}, but {pixels} is missing: pass all tensors of the processor."
                )
    if visual and not any(ids & set(prompt) for prompt in prompts):
        raise ValueError(
            f"{sorted(visual)[0]} is given, but no prompt has a placeholder for it: put the video into the prompt."
        )


def _split_padding(input_ids: Tensor, attention_mask: Tensor | None) -> tuple[list[list[int]], list[list[int]]]:
    """The prompts, and the ids of the padding on both sides of them."""
    rows: list[list[int]] = input_ids.tolist()
    if attention_mask is None:
        return rows, [[] for _ in rows]
    if not isinstance(attention_mask, Tensor):
        kind = type(attention_mask).__name__
        raise ValueError(f"attention_mask must be a tensor of the shape of input_ids, got a {kind}.")
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has the shape {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}: "
            "they must be equal."
        )
    prompts, padding = [], []
    for row, (tokens, mask) in enumerate(zip(rows, attention_mask.bool().tolist(), strict=True)):
        kept = [token for token, keep in zip(tokens, mask, strict=True) if keep]
        first = mask.index(True) if kept else 0
        if not all(mask[first : first + len(kept)]):
            raise ValueError(f"attention_mask of row {row} has a hole: padding belongs at the ends of a prompt.")
        prompts.append(kept)
        padding.append([token for token, keep in zip(tokens, mask, strict=True) if not keep])
    return prompts, padding


def _without_padding(positions: Tensor, attention_mask: Tensor | None) -> Tensor:
    """``[axes, batch, length]`` positions whose padding stands on the right, as the prompts are read."""
    if attention_mask is None:
        return positions
    order = (~attention_mask.bool()).to(torch.int64).argsort(dim=-1, stable=True).to(positions.device)
    return positions.gather(-1, order.expand(positions.shape))[..., : int(attention_mask.bool().sum(-1).max())]


def _limit(model: nn.Module, max_new_tokens: int | None, max_length: int | None, given: int) -> int:
    config = getattr(model, "generation_config", None)
    for name, value in (("max_new_tokens", max_new_tokens), ("max_length", max_length)):
        if value is not None:
            check_count(name, value)
    if max_new_tokens is not None and max_length is not None:
        raise ValueError(
            f"max_new_tokens is {max_new_tokens} and max_length is {max_length}: give one of them, both are limits."
        )
    if max_new_tokens is None and max_length is None:
        max_new_tokens = getattr(config, "max_new_tokens", None)
        max_length = getattr(config, "max_length", None)
    if max_new_tokens is None:
        max_new_tokens = DEFAULT_NEW_TOKENS if max_length is None else max_length - given
        if max_new_tokens < 1:
            raise ValueError(f"max_length is {max_length}, but input_ids has {given} tokens already: raise it.")
    check_count("max_new_tokens", max_new_tokens)
    return max_new_tokens
