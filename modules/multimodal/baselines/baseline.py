"""Base class of the baselines: stems and plain encoders that do not know which positions are missing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saccade.common.checks import check_count
from saccade.datamodules.multimodal.batch import MODALITIES, MultimodalBatch
from saccade.modules.multimodal.base import DataFacts, MultimodalModule, Optimization
from saccade.modules.multimodal.layers import IADR
from saccade.modules.multimodal.layers.text_encoder import TextEncoderSettings


class Baseline(MultimodalModule):
    """Base of the baselines. They read a missing row as a row of zeros, as in published code.

    Args:
        width: Features of a position and of a modality's vector.
        heads: Attention heads; must divide `width`.
        depth: Transformer blocks of each modality's encoder.
        dropout: Dropout in the encoders.
        optimization: Optimizer and schedule; None takes the defaults.
        text_encoder: A Hugging Face encoder for token ids; None if the text is given as features.
        seed: Seed of the weights. None takes `seed_everything`, or 0.

    Raises:
        ValueError: A setting is out of range; the message names it.
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
        check_count("depth", depth)
        self.heads, self.depth, self.dropout = heads, depth, dropout
        self.save_hyperparameters()
        self.keep_plain_settings()

    def construct(self, facts: DataFacts) -> None:
        """Create stems and encoders. Subclasses add their other layers."""
        self.stems = self.make_stems(facts, marker=False)
        blocks = self.encoder_blocks
        self.encoders = nn.ModuleDict(
            {name: IADR(self.width, self.heads, blocks, "none", dropout=self.dropout) for name in MODALITIES}
        )

    @property
    def encoder_blocks(self) -> int:
        """Number of transformer blocks of each modality's encoder."""
        return self.depth

    def vectors(self, batch: MultimodalBatch) -> Tensor:
        """Encode each modality as one vector [B, 3, width]."""
        found = []
        for name in MODALITIES:
            modality = batch.modalities[name]
            hidden = self.stems[name](self.features(batch, name), modality.available)
            found.append(self.encoders[name](hidden, modality.available, modality.valid))
        return torch.stack(found, 1)

    def losses(self, batch: MultimodalBatch) -> dict[str, Tensor]:
        """Compute the task loss."""
        return {"task": self.task_loss(self(batch).value, self.labels(batch)).mean()}
