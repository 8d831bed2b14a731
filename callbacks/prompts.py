"""Prompts of a validation: each decoded once, whatever the number of ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from saccade.callbacks.distributed import gather_integers


@dataclass(frozen=True)
class Prompt:
    """One prompt and the real text it was taken from.

    Args:
        text: ``[length]`` token ids of the whole row, on the CPU.
        length: Tokens at the start of ``text`` that are the prompt.
        index: Place among the selected prompts, the same for every number of ranks; -1 before the selection.
    """

    text: Tensor
    length: int
    index: int = -1

    @property
    def tokens(self) -> Tensor:
        """``[length]`` token ids of the prompt."""
        return self.text[: self.length]

    @property
    def key(self) -> int:
        """64 bits that identify the whole row; not negative."""
        content = self.text.to(torch.int64).numpy().tobytes()
        return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1


class PromptPool:
    """Collects the prompts of validation batches and settles which rank decodes which.

    A distributed sampler may repeat rows to give every rank the same number; decoding them twice would make totals
    depend on the number of ranks. So rows are identified by a hash of their tokens, equal rows count once, and the
    ``max_prompts`` smallest hashes are selected: a fixed, pseudo-random choice from all of the data that depends on
    neither the order nor the number of ranks. A selected row belongs to the first of the ranks that have seen it.

    Args:
        prompt_length: Tokens taken from the start of each row.
        max_prompts: Most prompts over all ranks.
    """

    def __init__(self, prompt_length: int, max_prompts: int) -> None:
        self.prompt_length, self.max_prompts = prompt_length, max_prompts
        self._seen: dict[int, Prompt] = {}

    def clear(self) -> None:
        """Forgets everything collected."""
        self._seen.clear()

    def add(self, batch: Any) -> None:
        """Takes the rows of one batch of this rank.

        Args:
            batch: A mapping with ``input_ids`` ``[rows, length]`` and maybe ``attention_mask`` (0 at padding on
                either side). Rows without a token are left out.

        Raises:
            ValueError: The batch has no ``input_ids`` of that shape.
        """
        ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
        if not isinstance(ids, Tensor) or ids.dim() != 2:
            raise ValueError(
                "decoding prompts come from batch['input_ids'] of shape [rows, length], and the validation batch has "
                "none: let the datamodule yield dictionaries like saccade.datamodules.TextCorpus does."
            )
        mask = batch.get("attention_mask")
        mask = None if mask is None else mask.bool().cpu()
        for row, text in enumerate(ids.detach().cpu()):
            kept = text if mask is None else text[mask[row]]
            if len(kept):
                prompt = Prompt(kept.clone(), min(self.prompt_length, len(kept)))
                self._seen[prompt.key] = prompt
        if len(self._seen) > self.max_prompts:  # what is not among this rank's smallest is not among all ranks' either
            self._seen = {key: self._seen[key] for key in sorted(self._seen)[: self.max_prompts]}

    def own(self) -> list[Prompt]:
        """What this rank has collected, at most ``max_prompts``, in the order of the selection."""
        return [replace(self._seen[key], index=place) for place, key in enumerate(sorted(self._seen))]

    def share(self, device: torch.device) -> tuple[list[Prompt], int]:
        """Settles the selection. Every rank must call it.

        Args:
            device: Device of this rank, for the exchange.

        Returns:
            The prompts this rank decodes (maybe none), in order, and the number selected over all ranks.
        """
        ranks, own = gather_integers(sorted(self._seen), self.max_prompts, device)
        owner: dict[int, int] = {}
        for rank, keys in enumerate(ranks):
            for key in keys:
                owner.setdefault(key, rank)
        selected = sorted(owner)[: self.max_prompts]
        share = [replace(self._seen[key], index=place) for place, key in enumerate(selected) if owner[key] == own]
        return share, len(selected)


class PromptCollector(Callback):
    """A callback that has collected prompts when a validation is over; what it does with them, a subclass says.

    Args:
        prompt_length: Tokens taken from the start of each validation row.
        max_prompts: Most prompts of a validation, over all ranks.
    """

    def __init__(self, prompt_length: int, max_prompts: int) -> None:
        super().__init__()
        self._pool = PromptPool(prompt_length, max_prompts)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts collecting prompts."""
        self._pool.clear()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects the prompts of a batch."""
        if not trainer.sanity_checking:
            self._pool.add(batch)
