"""What multimodal models are given: three sequences for each sample, and which of their positions are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

MODALITIES = ("text", "audio", "vision")
"""Names of the modalities, in the order in which every tensor over modalities has them."""


@dataclass
class Modality:
    """One modality of a batch.

    Args:
        values: Features, float [B, T, D], or token numbers, long [B, T]. What is missing holds what a loader would put
            there: rows of zeros, and the unknown token for text.
        valid: True where a sequence has a position, False where it is padding [B, T]. Padding is not missing data.
        available: 1 where the position was observed, 0 where it is missing, between them where a position stands for
            several raw ones of which some are missing; float [B, T], 0 at padding.
        special: True at positions that hold no content and are never erased, [CLS] and [SEP] of a text [B, T]. They do
            not make a modality present.
    """

    values: Tensor
    valid: Tensor
    available: Tensor
    special: Tensor

    @property
    def content(self) -> Tensor:
        """True at valid positions that can hold content, [B, T]."""
        return self.valid & ~self.special

    @property
    def lengths(self) -> Tensor:
        """Positions up to the last valid one, long [B]; 0 where there is none."""
        return (self.valid * torch.arange(1, self.valid.shape[1] + 1, device=self.valid.device)).amax(1)

    @property
    def present(self) -> Tensor:
        """Whether any content is available, bool [B]."""
        return ((self.available > 0) & self.content).any(1)

    @property
    def observed(self) -> Tensor:
        """Observed share of the content, float [B] in 0 to 1; 0 where there is no content at all."""
        content = self.content.to(self.available.dtype)
        return (self.available * content).sum(1) / content.sum(1).clamp(min=1)


@dataclass
class MultimodalBatch:
    """A batch of samples.

    Args:
        modalities: By name, in the order of `MODALITIES`.
        label: Targets: float [B] for regression, long [B] for classification; None where they are not known.
        key: A number for each sample that depends on its id only, long [B]; missing-data protocols draw from it, so
            that a sample's mask depends neither on its batch nor on the device.
        complete: The same samples before a protocol took parts away; None where nothing was taken.
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
        """Which modalities have any content, bool [B, 3]."""
        return torch.stack([modality.present for modality in self.modalities.values()], 1)

    @property
    def observed(self) -> Tensor:
        """Observed share of each modality's content, float [B, 3]."""
        return torch.stack([modality.observed for modality in self.modalities.values()], 1)

    def with_modalities(self, modalities: Mapping[str, Modality]) -> MultimodalBatch:
        """The same samples with other modalities, remembering this batch as the complete one.

        Args:
            modalities: By name; those that are not named stay as they are.
        """
        changed = {name: modalities.get(name, modality) for name, modality in self.modalities.items()}
        return replace(self, modalities=changed, complete=self.complete or self)
