"""What the data module knows about prompts beyond their tokens: categories, later turns, right answers, names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from saccade.callbacks.decoding.prompts import Prompt
from saccade.common.distributed import gather_integers, reduce_max
from saccade.datamodules import Prompts
from saccade.inference.huggingface.models import context_length


class Conversations:
    """The prompts of a data module, and how they fit a model's context.

    Args:
        datamodule: The data module of the run. Of others than ``Prompts`` only the texts of answers are known.
        model: The target.
        max_new_tokens: Largest number of new tokens of a row.
    """

    def __init__(self, datamodule: Any, model: nn.Module, max_new_tokens: int) -> None:
        self.source = datamodule if isinstance(datamodule, Prompts) else None
        self.tokenizer = getattr(datamodule, "tokenizer", None)
        self.max_new_tokens = max_new_tokens
        context = context_length(model)
        # the last new token is not read
        self.room = None if context is None else context - max_new_tokens + 1

    @property
    def categories(self) -> list[str]:
        """The categories, the same on every rank; empty if prompts have none."""
        return [] if self.source is None else self.source.categories

    def category(self, prompt: Prompt) -> str | None:
        """The category of a prompt; ``None`` if it has none."""
        return None if self.source is None else self.source.conversations[prompt.item].category

    def name(self, item: int) -> str:
        """The name of a conversation, for messages."""
        return str(item) if self.source is None else self.source.conversations[item].id

    def names(self, items: Sequence[int]) -> list[str] | None:
        """The names of several conversations; ``None`` if prompts have none."""
        return None if self.source is None else [self.name(item) for item in items]

    def answers(self, prompt: Prompt) -> tuple[str, ...]:
        """The texts that are right for a turn; none if they are not known."""
        return () if self.source is None else self.source.conversations[prompt.item].answers[prompt.turn]

    def known(self, prompt: Prompt) -> list[list[int]]:
        """The tokens of a turn's right answers: those that are given, or the real text behind the prompt."""
        if self.source is None or self.tokenizer is None:
            return [prompt.text[prompt.length :].tolist()]
        return [self.tokenizer.encode(answer, add_special_tokens=False) for answer in self.answers(prompt)]

    def turns(self, prompt: Prompt) -> int:
        """The number of turns of a prompt's conversation."""
        return 1 if self.source is None else len(self.source.conversations[prompt.item].turns)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of an answer, without special tokens."""
        if self.tokenizer is None:
            raise ValueError("the data module must have a tokenizer to read answers: set it up first.")
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def next_turn(self, prompt: Prompt, answers: Sequence[Sequence[int]]) -> Prompt | None:
        """Continue a conversation.

        Args:
            prompt: Any turn of it.
            answers: The tokens of the answers so far, one for each turn.

        Returns:
            The prompt of the next turn; ``None`` if the context has no room for it.
        """
        assert self.source is not None  # noqa: S101 -- others have one turn
        texts = [self.text(answer).strip() for answer in answers]
        ids, visual = self.source.encode(prompt.item, texts)
        return self.fitted(replace(prompt, text=torch.tensor(ids), length=len(ids), visual=visual, turn=len(answers)))

    def fitted(self, prompt: Prompt) -> Prompt | None:
        """Make a prompt fit the context, as the data module says.

        Returns:
            The prompt; without tokens in its middle if it is cut; ``None`` if it is left out. Prompts of other data
            modules are returned as they are: decoders refuse those that are too long.
        """
        if self.source is None or self.room is None or prompt.length <= self.room:
            return prompt
        if self.source.too_long == "skip" or prompt.visual or self.room < 2:
            return None
        # the beginning has the system prompt, the end the question and what makes the model answer
        first, last = self.room // 2, self.room - self.room // 2
        text = prompt.text[: prompt.length]
        cut = torch.cat([text[:first], text[-last:], prompt.text[prompt.length :]])
        return replace(prompt, text=cut, length=self.room)


class UnfitPrompts:
    """The prompts of this rank for which the context has no room: those that are left out, and those that are cut."""

    def __init__(self) -> None:
        self._lengths: dict[str, dict[int, int]] = {"skipped": {}, "cut": {}}

    def clear(self) -> None:
        """Forget them."""
        for lengths in self._lengths.values():
            lengths.clear()

    def fitted(self, prompt: Prompt, conversations: Conversations) -> Prompt | None:
        """Make a prompt fit the context; see :meth:`Conversations.fitted`."""
        found = conversations.fitted(prompt)
        if found is None:
            self._lengths["skipped"][prompt.item] = prompt.length
        elif found.length < prompt.length:
            self._lengths["cut"][prompt.item] = prompt.length
        return found

    def told(self, conversations: Conversations, device: torch.device) -> dict[str, list[str] | None]:
        """Say which prompts of all ranks they are, in one line for each kind. Every rank must call this.

        Args:
            conversations: The prompts.
            device: Device of this rank, for the exchange.

        Returns:
            Their names under ``skipped`` and ``cut``; ``None`` for prompts without names.
        """
        told: dict[str, list[str] | None] = {}
        for kind, own in self._lengths.items():
            most = reduce_max(torch.tensor([len(own)], dtype=torch.float64), device)
            # number of the conversation and length in one number
            pairs = [item << 32 | length for item, length in own.items()]
            ranks, _ = gather_integers(pairs, int(most[0]), device)
            found = sorted({pair for rank in ranks for pair in rank})
            told[kind] = conversations.names([pair >> 32 for pair in found])
            if found:
                named = [f"{conversations.name(pair >> 32)} with {pair & 0xFFFFFFFF} tokens" for pair in found]
                more = f" and {len(named) - 5} more" if len(named) > 5 else ""
                count = "1 prompt is" if len(named) == 1 else f"{len(named)} prompts are"
                rank_zero_info(
                    f"saccade: {count} {'left out' if kind == 'skipped' else 'cut in the middle'}, because the model's"
                    f" context has room for {conversations.room} tokens before {conversations.max_new_tokens} new ones:"
                    f" {', '.join(named[:5])}{more}."
                )
        return told
