"""One checked generation request: wrong input ends here, before anything is allocated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from saccade.common.checks import check_count
from saccade.inference.huggingface.generation_config import GenerationSettings, end_of_text_ids, read_generation_config
from saccade.inference.huggingface.models import check_supported, context_length, text_config
from saccade.inference.huggingface.vision import visual_inputs, visual_token_kinds
from saccade.inference.sampling import Sampling

DEFAULT_NEW_TOKENS = 20  # transformers' own default


@dataclass
class Request:
    """Prompts without padding, and when to stop.

    Args:
        prompts: Token ids of every row.
        padding: Ids of the padding of every row.
        max_new_tokens: Most new tokens of a row.
        eos: Ids that end a row; may be empty.
        pad: Id that fills up ``sequences``.
        visual: Images and videos of all rows, as the processor made them; empty for text.
        sampling: How tokens are drawn; ``None`` is greedy.
        device: Where the prompts were given; ``None`` for lists.
    """

    prompts: list[list[int]]
    padding: list[list[int]]
    max_new_tokens: int
    eos: frozenset[int]
    pad: int
    visual: dict[str, Tensor] = field(default_factory=dict)
    sampling: Sampling | None = None
    device: torch.device | None = None

    @property
    def positions(self) -> int:
        """Most tokens of a row: the longest prompt and all new tokens. The last of them is never read."""
        return max(len(prompt) for prompt in self.prompts) + self.max_new_tokens

    @classmethod
    def read(
        cls,
        model: nn.Module,
        input_ids: Tensor | Sequence[Sequence[int]],
        attention_mask: Tensor | None,
        max_new_tokens: int | None,
        max_length: int | None,
        eos_token_id: int | Sequence[int] | None,
        pad_token_id: int | None,
        visual: Mapping[str, Any] | None = None,
        *,
        do_sample: bool | None = None,
        sampling: Sampling | None = None,
        generation_config: Any = None,
        settings: GenerationSettings | None = None,
    ) -> Request:
        """Checks the arguments of :meth:`saccade.inference.Decoder.generate` against the model.

        Args:
            model: The target.
            input_ids: ``[batch, length]`` token ids, or lists of them; this and what follows as in ``generate``.
            attention_mask: ``[batch, length]``.
            max_new_tokens: Most new tokens of a row.
            max_length: Alternative limit.
            eos_token_id: Ids that end a row.
            pad_token_id: Id behind finished rows.
            visual: Images and videos.
            do_sample: Draw tokens, or decode greedily; ``None``: the generation configuration decides.
            sampling: How tokens are drawn.
            generation_config: Followed in place of the model's own; without EOS ids the model's end a row.
            settings: What is followed where the arguments say nothing; ``None`` reads the model's own generation
                configuration.

        Raises:
            ValueError: Names what is wrong, with its value.
        """
        check_supported(model)
        config = text_config(model)
        prompts, padding = _read_prompts(input_ids, attention_mask)
        width = len(prompts[0]) + len(padding[0])
        seen = visual_inputs(model, visual or {})
        for row, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(f"the prompt of row {row} is empty: give at least one token, for example BOS.")
            wrong = next((token for token in prompt if not 0 <= token < config.vocab_size), None)
            if wrong is not None:
                raise ValueError(
                    f"row {row} holds the token id {wrong}, but the model's vocabulary has {config.vocab_size} ids: "
                    "use the model's own tokenizer."
                )
        if sampling is not None and not isinstance(sampling, Sampling):
            raise ValueError(f"sampling must be a Sampling or None, got {sampling!r}: None decodes greedily.")
        if sampling is not None and sampling.rows is not None and len(sampling.rows) != len(prompts):
            raise ValueError(
                f"sampling.rows must hold {len(prompts)} numbers, one for each prompt, got {len(sampling.rows)}: give "
                "those of this batch, or None to count from 0."
            )
        if settings is None:
            settings = read_generation_config(
                model, generation_config, do_sample=do_sample, sampling=sampling, prompt_length=width
            )
            if not settings.eos:
                settings = replace(settings, eos=end_of_text_ids(model))
        context = context_length(model)
        limit = _limit(settings, max_new_tokens, max_length, width, context)
        longest = max(len(prompt) for prompt in prompts)
        # the last new token is not read
        if context is not None and longest + limit - 1 > context:
            raise ValueError(
                f"a prompt of {longest} tokens and {limit} new ones need {longest + limit - 1} positions, the model "
                f"has {context}: shorten the prompt or lower max_new_tokens."
            )
        known = config.vocab_size
        eos = settings.eos if eos_token_id is None else _token_ids("eos_token_id", eos_token_id, known)
        pad = settings.pad
        if pad_token_id is not None:
            (pad,) = _token_ids("pad_token_id", [pad_token_id], known)
        if pad is None:
            pad = eos[0] if eos else 0
        if "position_ids" in seen:
            seen["position_ids"] = _without_padding(seen["position_ids"], attention_mask)
        _check_placeholders(model, prompts, seen)
        device = input_ids.device if isinstance(input_ids, Tensor) else None
        padding = [[pad if token < 0 else token for token in row] for row in padding]
        return cls(prompts, padding, limit, frozenset(eos), pad, seen, settings.sampling, device)

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
            raise ValueError(
                f"{name} must be ids from 0 to {known - 1}, got {token!r}: give ids of the model's vocabulary."
            )
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


def _read_prompts(
    input_ids: Tensor | Sequence[Sequence[int]], attention_mask: Tensor | None
) -> tuple[list[list[int]], list[list[int]]]:
    """The prompts, and the ids of their padding; -1 where lists are padded, whose padding id nobody has chosen yet."""
    if isinstance(input_ids, Tensor):
        if input_ids.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"input_ids must be an integer tensor of shape [batch, length], got {input_ids.dtype}: give the "
                "tokenizer's ids as a tensor."
            )
        if input_ids.ndim != 2 or len(input_ids) == 0:
            raise ValueError(
                f"input_ids must have the shape [batch, length], got {tuple(input_ids.shape)}: give one row for each "
                "prompt."
            )
        return _split_padding(input_ids, attention_mask)
    rows = list(input_ids) if isinstance(input_ids, Sequence) and not isinstance(input_ids, str) else []
    if not rows or any(isinstance(row, str) or not isinstance(row, Sequence) for row in rows):
        shown = input_ids if isinstance(input_ids, (str, int, float)) else type(input_ids).__name__
        raise ValueError(
            "input_ids must be an integer tensor of shape [batch, length], or a list of token ids for each prompt, "
            f"got {shown!r}: give what the tokenizer returns."
        )
    if attention_mask is not None:
        raise ValueError(
            "attention_mask must be left out where input_ids are lists, which have no padding: leave it out."
        )
    wrong = next(
        (token for row in rows for token in row if isinstance(token, bool) or not isinstance(token, int)), None
    )
    if wrong is not None:
        raise ValueError(f"input_ids must hold whole numbers, got {wrong!r}: give the tokenizer's ids.")
    longest = max(len(row) for row in rows)
    return [list(row) for row in rows], [[-1] * (longest - len(row)) for row in rows]


def _split_padding(input_ids: Tensor, attention_mask: Tensor | None) -> tuple[list[list[int]], list[list[int]]]:
    """The prompts, and the ids of the padding on both sides of them."""
    rows: list[list[int]] = input_ids.tolist()
    if attention_mask is None:
        return rows, [[] for _ in rows]
    if not isinstance(attention_mask, Tensor):
        kind = type(attention_mask).__name__
        raise ValueError(
            f"attention_mask must be a tensor of the shape of input_ids, got a {kind}: pass the tokenizer's tensor."
        )
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids {tuple(input_ids.shape)}, got "
            f"{tuple(attention_mask.shape)}: pass both as one call of the tokenizer made them."
        )
    prompts, padding = [], []
    for row, (tokens, mask) in enumerate(zip(rows, attention_mask.bool().tolist(), strict=True)):
        kept = [token for token, keep in zip(tokens, mask, strict=True) if keep]
        first = mask.index(True) if kept else 0
        if not all(mask[first : first + len(kept)]):
            raise ValueError(
                f"attention_mask of row {row} has a hole between its tokens: padding belongs at the ends of a prompt."
            )
        prompts.append(kept)
        padding.append([token for token, keep in zip(tokens, mask, strict=True) if not keep])
    return prompts, padding


def _without_padding(positions: Tensor, attention_mask: Tensor | None) -> Tensor:
    """``[axes, batch, length]`` positions with their padding moved to the right, as the prompts are read."""
    if attention_mask is None:
        return positions
    order = (~attention_mask.bool()).to(torch.int64).argsort(dim=-1, stable=True).to(positions.device)
    return positions.gather(-1, order.expand(positions.shape))[..., : int(attention_mask.bool().sum(-1).max())]


def _limit(
    settings: GenerationSettings,
    max_new_tokens: int | None,
    max_length: int | None,
    given: int,
    context: int | None,
) -> int:
    """Most new tokens: from the call, else from the settings, else 20 or what the context has room for."""
    for name, value in (("max_new_tokens", max_new_tokens), ("max_length", max_length)):
        if value is not None:
            check_count(name, value)
    if max_new_tokens is not None and max_length is not None:
        raise ValueError(
            f"max_new_tokens is {max_new_tokens} and max_length is {max_length}: give one of them, both are limits."
        )
    if max_new_tokens is None and max_length is None:
        max_new_tokens, max_length = settings.max_new_tokens, settings.max_length
    if max_new_tokens is not None:
        check_count("max_new_tokens", max_new_tokens)
        return max_new_tokens
    if max_length is None:
        room = DEFAULT_NEW_TOKENS if context is None else context - given
        return min(DEFAULT_NEW_TOKENS, max(1, room))
    if max_length <= given:
        raise ValueError(f"max_length is {max_length}, but input_ids has {given} tokens already: raise it.")
    return max_length - given
