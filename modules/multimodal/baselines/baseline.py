"""What the baselines share: stems and plain encoders that do not know which positions are missing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saccade.datamodules.multimodal.batch import MODALITIES, MultimodalBatch
from saccade.modules.multimodal.base import DataFacts, MultimodalModule, Optimization
from saccade.modules.multimodal.layers import IADR
from saccade.modules.multimodal.layers.text_encoder import TextEncoderSettings


class Baseline(MultimodalModule):
    """Base of the baselines. A missing row is a row of zeros to them, as in the released code of the field.

    Args:
        width: Features of a position and of a modality's vector.
        heads: Attention heads; must divide `width`.
        depth: Blocks of each modality's encoder.
        dropout: In the encoders.
        optimization: Optimizer and schedule; None takes the defaults.
        text_encoder: A Hugging Face encoder for token numbers; None where the text comes as features.
        seed: Of the weights. None takes `seed_everything`, or 0.
    """

    def __init__(
        self,
        width: int = 64,
        heads: int = 4,
        depth: int = 2,
        dropout: float = 0.1,
        optimization: Optimization | None = None,
        text_encoder: TextEncoderSettings | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(width, optimization, text_encoder, seed)
        if depth < 1:
            raise ValueError(f"depth: must be at least 1, but is {depth}")
        self.heads, self.depth, self.dropout = heads, depth, dropout
        self.save_hyperparameters()
        self.keep_plain_settings()

    def construct(self, facts: DataFacts) -> None:
        """Create stems and encoders; a subclass adds the rest."""
        self.stems = self.make_stems(facts, marker=False)
        blocks = self.encoder_blocks
        self.encoders = nn.ModuleDict(
            {name: IADR(self.width, self.heads, blocks, "none", dropout=self.dropout) for name in MODALITIES}
        )

    @property
    def encoder_blocks(self) -> int:
        """Blocks of each modality's encoder."""
        return self.depth

    def vectors(self, batch: MultimodalBatch) -> Tensor:
        """One vector for each modality [B, 3, width]."""
        found = []
        for name in MODALITIES:
            modality = batch.modalities[name]
            hidden = self.stems[name](self.features(batch, name), modality.available)
            found.append(self.encoders[name](hidden, modality.available, modality.valid))
        return torch.stack(found, 1)

    def losses(self, batch: MultimodalBatch) -> dict[str, Tensor]:
        """The task's loss."""
        return {"task": self.task_loss(self(batch).value, self.labels(batch)).mean()}
