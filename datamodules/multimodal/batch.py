"""Batches of multimodal models: three sequences for each sample, and masks of their valid and available positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

MODALITIES = ("text", "audio", "vision")
"""Names of the modalities, in the order of every tensor over modalities."""


@dataclass
class Modality:
    """One modality of a batch.

    Args:
        values: Features, float [B, T, D], or token ids, long [B, T]. Missing positions hold rows of zeros, or the id of
            the unknown token.
        valid: False at padding, True at all other positions [B, T]. Padding is not missing data.
        available: 1 where a position was observed, 0 where it is missing; a value between them for a position that
            represents several raw ones of which some are missing; float [B, T], 0 at padding.
        special: True at positions without content, which are never erased: [CLS] and [SEP] of a text [B, T]. They do
            not count for whether a modality is present.
    """

    values: Tensor
    valid: Tensor
    available: Tensor
    special: Tensor

    @property
    def content(self) -> Tensor:
        """True at valid positions with content, that is not special ones, [B, T]."""
        return self.valid & ~self.special

    @property
    def lengths(self) -> Tensor:
        """Number of positions up to the last valid one, long [B]; 0 if there is none."""
        return (self.valid * torch.arange(1, self.valid.shape[1] + 1, device=self.valid.device)).amax(1)

    @property
    def present(self) -> Tensor:
        """Whether any content is available, bool [B]."""
        return ((self.available > 0) & self.content).any(1)

    @property
    def observed(self) -> Tensor:
        """Observed share of the content, float [B] from 0 to 1; 0 for a sample without content."""
        content = self.content.to(self.available.dtype)
        return (self.available * content).sum(1) / content.sum(1).clamp(min=1)


@dataclass
class MultimodalBatch:
    """A batch of samples.

    Args:
        modalities: By name, in the order of `MODALITIES`.
        label: Targets: float [B] for regression, long [B] for classification; None if they are not known.
        key: A number for each sample that depends on its id only, long [B]. Missing-data protocols derive random
            numbers from it, so that the masks of a sample depend neither on the batch nor on the device.
        complete: The same samples before a protocol erased data; None if nothing was erased.
    """

    modalities: dict[str, Modality]
    label: Tensor | None
    key: Tensor
    complete: MultimodalBatch | None = None

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.key)

    @property
    def present(self) -> Tensor:
        """Whether each modality has any available content, bool [B, 3]."""
        return torch.stack([modality.present for modality in self.modalities.values()], 1)

    @property
    def observed(self) -> Tensor:
        """Observed share of each modality's content, float [B, 3]."""
        return torch.stack([modality.observed for modality in self.modalities.values()], 1)

    def with_modalities(self, modalities: Mapping[str, Modality]) -> MultimodalBatch:
        """Replace modalities, and keep this batch as the `complete` one of the result.

        Args:
            modalities: The new ones by name; others are kept.
        """
        changed = {name: modalities.get(name, modality) for name, modality in self.modalities.items()}
        return replace(self, modalities=changed, complete=self.complete or self)
