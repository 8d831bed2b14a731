"""A cross-modal transformer that also reconstructs erased positions."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from saccade.datamodules.multimodal.batch import MODALITIES, MultimodalBatch
from saccade.modules.multimodal.base import DataFacts
from saccade.modules.multimodal.baselines.crossmodal_transformer import CrossmodalTransformer
from saccade.modules.multimodal.layers import Stem

_WEIGHT = 0.3  # of the reconstruction loss


class TFRNetLike(CrossmodalTransformer):
    """The cross-modal transformer with the idea of TFR-Net (Yuan et al., ACM MM 2021): reconstruct erased positions.

    A linear map of each encoded position predicts the standardised features of the complete sample. The loss is smooth
    L1 over the erased positions, with weight 0.3 relative to the task loss. TFR-Net's gated fusion is not included. For
    texts of token ids, the targets are the encoder's features of the complete text.
    """

    def construct(self, facts: DataFacts) -> None:
        """Create the layers."""
        super().construct(facts)
        self.rebuild = nn.ModuleDict({name: nn.Linear(self.width, facts.widths[name]) for name in MODALITIES})

    def losses(self, batch: MultimodalBatch) -> dict[str, Tensor]:
        """Compute the task loss and the reconstruction loss."""
        encoded: dict[str, Tensor] = {}
        prediction = self.predicted(batch, encoded)
        terms = {"task": self.task_loss(prediction.value, self.labels(batch)).mean()}
        if batch.complete is None:
            return terms
        total = terms["task"] * 0
        for name in MODALITIES:
            before, after = batch.complete.modalities[name], batch.modalities[name]
            erased = ((before.available > 0) & (after.available < before.available)).to(total.dtype)
            stem = cast(Stem, self.stems[name])
            target = stem.scaled(self.features(batch.complete, name), before.available).detach()
            distance = F.smooth_l1_loss(self.rebuild[name](encoded[name]), target, reduction="none").mean(-1)
            total = total + (distance * erased).sum() / erased.sum().clamp(min=1)
        terms["rebuilding"] = _WEIGHT * total / len(MODALITIES)
        return terms
