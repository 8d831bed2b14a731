"""Collect prompts from validation batches and distribute them over ranks, each prompt once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from saccade.common.distributed import gather_integers, reduce_max
from saccade.inference.huggingface.vision import VISUAL_INPUTS


@dataclass(frozen=True)
class Prompt:
    """One prompt and the real text it was taken from.

    Args:
        text: ``[length]`` token ids of the whole row, on the CPU.
        length: Number of tokens at the start of ``text`` that are the prompt.
        index: Index among the selected prompts, the same for any number of ranks; -1 before the selection.
        visual: The row's images or videos as the processor returned them; empty for text.
        item: The row's index in its part of the data; -1 if batches do not contain it.
        given_key: A non-negative number that identifies the row, if batches contain one; -1 otherwise.
        turn: The turn of a conversation, from 0.
    """

    text: Tensor
    length: int
    index: int = -1
    visual: dict[str, Tensor] = field(default_factory=dict)
    item: int = -1
    given_key: int = -1
    turn: int = 0

    @property
    def tokens(self) -> Tensor:
        """``[length]`` token ids of the prompt."""
        return self.text[: self.length]

    @property
    def key(self) -> int:
        """A non-negative hash of 63 bits that identifies the whole row, including its images or videos."""
        if self.given_key >= 0:
            return self.given_key
        content = hashlib.blake2b(self.text.to(torch.int64).numpy().tobytes(), digest_size=8)
        for name in sorted(self.visual):
            content.update(self.visual[name].contiguous().view(torch.uint8).numpy().tobytes())
        return int.from_bytes(content.digest(), "little") >> 1


class PromptPool:
    """Collect the prompts of validation batches and decide which rank decodes which prompt.

    A distributed sampler may repeat rows to give every rank the same number; decoding them twice would make totals
    depend on the number of ranks. So rows are identified by a hash of their content, equal rows count once, and the
    ``max_prompts`` smallest hashes are selected. This is a fixed, pseudo-random choice from all of the data that
    depends neither on the order nor on the number of ranks. If several ranks have seen a selected row, the first of
    them decodes it.

    Args:
        prompt_length: Tokens taken from the start of each row, unless batches contain the length of each prompt.
        max_prompts: Largest number of prompts over all ranks; ``None`` for all.
    """

    def __init__(self, prompt_length: int, max_prompts: int | None) -> None:
        self.prompt_length, self.max_prompts = prompt_length, max_prompts
        self._seen: dict[int, Prompt] = {}

    def clear(self) -> None:
        """Remove all collected prompts."""
        self._seen.clear()

    def add(self, batch: Any, fitted: Callable[[Prompt], Prompt | None] | None = None) -> None:
        """Add the rows of one batch of this rank.

        Args:
            batch: A mapping with ``input_ids`` ``[rows, length]`` and optionally ``attention_mask`` (0 at padding, on
                either side). Rows without tokens are left out. Optional are also ``prompt_length`` ``[rows]``, which
                replaces the pool's; ``item`` ``[rows]``; ``prompt_key`` ``[rows]``, which replaces the hash of the
                content; and images or videos, one for each row. A batch of one row may have several.
            fitted: Returns a prompt as it is to be used; ``None`` leaves it out.

        Raises:
            ValueError: The batch has no ``input_ids`` of that shape, or not one image or video for each row.
        """
        ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
        if not isinstance(ids, Tensor) or ids.dim() != 2:
            raise ValueError(
                "validation batches must have input_ids of shape [rows, length] to take prompts from, got none: let "
                "the datamodule yield dictionaries, as saccade.datamodules.TextCorpus does."
            )
        mask = batch.get("attention_mask")
        mask = None if mask is None else mask.bool().cpu()
        visual = rows_of_visual(batch, len(ids))
        lengths, items, keys = batch.get("prompt_length"), batch.get("item"), batch.get("prompt_key")
        for row, text in enumerate(ids.detach().cpu()):
            kept = text if mask is None else text[mask[row]]
            if len(kept):
                length = self.prompt_length if lengths is None else int(lengths[row])
                item = -1 if items is None else int(items[row])
                key = -1 if keys is None else int(keys[row])
                prompt: Prompt | None = Prompt(kept.clone(), min(length, len(kept)), -1, visual[row], item, key)
                if fitted is not None and prompt is not None:
                    prompt = fitted(prompt)
                if prompt is not None:
                    self._seen[prompt.key] = prompt
        # what is not among this rank's smallest hashes is not among those of all ranks
        if self.max_prompts is not None and len(self._seen) > self.max_prompts:
            self._seen = {key: self._seen[key] for key in sorted(self._seen)[: self.max_prompts]}

    def own(self) -> list[Prompt]:
        """Return the prompts of this rank in the order of the selection, at most ``max_prompts``."""
        return [replace(self._seen[key], index=place) for place, key in enumerate(sorted(self._seen))]

    def share(self, device: torch.device) -> tuple[list[Prompt], int]:
        """Select the prompts of all ranks. Every rank must call this.

        Args:
            device: Device of this rank, for the exchange.

        Returns:
            The prompts that this rank decodes, in order (possibly none), and the number selected over all ranks.
        """
        most = self.max_prompts
        if most is None:
            most = int(reduce_max(torch.tensor([len(self._seen)], dtype=torch.float64), device)[0])
        ranks, own = gather_integers(sorted(self._seen), most, device)
        owner: dict[int, int] = {}
        for rank, keys in enumerate(ranks):
            for key in keys:
                owner.setdefault(key, rank)
        selected = sorted(owner)[: self.max_prompts]
        share = [replace(self._seen[key], index=place) for place, key in enumerate(selected) if owner[key] == own]
        return share, len(selected)


def rows_of_visual(batch: Mapping[str, Any], rows: int) -> list[dict[str, Tensor]]:
    """Split the images or videos of a batch by row, on the CPU.

    Args:
        batch: A batch with one image or one video for each row, or without any. All that a batch of one row contains
            belongs to that row.
        rows: Number of rows.

    Raises:
        ValueError: The number of images or videos is not the number of rows.
    """
    parts: list[dict[str, Tensor]] = [{} for _ in range(rows)]
    for name in VISUAL_INPUTS:
        value = batch.get(name)
        if value is None:
            continue
        if rows == 1:
            parts[0][name] = value.detach().cpu().clone()
            continue
        grid = batch.get({"pixel_values_videos": "video_grid_thw", "pixel_values": "image_grid_thw"}.get(name, ""))
        sizes = (
            [1] * len(value) if grid is None else grid.prod(-1).tolist()
        )  # the patches of all videos are concatenated
        if len(sizes) != rows:
            raise ValueError(
                f"{name} must contain one image or video for each of the {rows} prompts, got {len(sizes)}: let the "
                "datamodule yield one for each row."
            )
        for part, piece in zip(parts, value.detach().cpu().split(sizes), strict=True):
            part[name] = piece.clone()
    return parts


def joined_visual(prompts: Sequence[Prompt], device: torch.device) -> dict[str, Tensor]:
    """Concatenate the images or videos of several prompts into one batch on a device."""
    return {name: torch.cat([prompt.visual[name] for prompt in prompts]).to(device) for name in prompts[0].visual}


class PromptCollector(Callback):
    """Base of callbacks that collect prompts during a validation and use them afterwards.

    Args:
        prompt_length: Tokens taken from the start of each validation row.
        max_prompts: Largest number of prompts in one validation, over all ranks; ``None`` for all.
    """

    def __init__(self, prompt_length: int, max_prompts: int | None) -> None:
        super().__init__()
        self._pool = PromptPool(prompt_length, max_prompts)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to collect prompts."""
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
        """Collect the prompts of a batch."""
        self._pool.add(batch, lambda prompt: self.fitted(prompt, trainer, pl_module))

    def fitted(self, prompt: Prompt, trainer: Trainer, pl_module: LightningModule) -> Prompt | None:
        """Return a prompt as it is to be used, by default as it is; ``None`` leaves it out.

        Args:
            prompt: A prompt of this rank.
            trainer: The trainer of the run.
            pl_module: The module that is validated.
        """
        return prompt

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the prompts of the sanity check."""
        self._pool.clear()
