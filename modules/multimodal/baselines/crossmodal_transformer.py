"""A transformer with attention between all modalities, trained with modality dropout."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.datamodules.multimodal.batch import MODALITIES, MultimodalBatch
from saccade.modules.multimodal.base import DataFacts, Prediction
from saccade.modules.multimodal.baselines.baseline import Baseline
from saccade.modules.multimodal.layers import IADR
from saccade.modules.multimodal.layers.perceptron import mlp


class _CrossAttention(nn.Module):
    """Pre-norm block in which the positions of one modality attend to those of another."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.norm_query, self.norm_key, self.norm_feed = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.pair, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, source: Tensor, valid: Tensor) -> Tensor:
        batch, length, width = hidden.shape

        def split(part: Tensor) -> Tensor:
            return part.view(batch, part.shape[1], self.heads, -1).transpose(1, 2)

        key, value = self.pair(self.norm_key(source)).chunk(2, -1)
        # attention without any valid key is NaN: such a sequence attends to all keys, and its result is set to 0
        some = valid.any(1)[:, None, None, None]
        readable = valid[:, None, None] | ~some
        rate = self.rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(
            split(self.query(self.norm_query(hidden))), split(key), split(value), attn_mask=readable, dropout_p=rate
        )
        mixed = mixed.masked_fill(~some, 0)
        hidden = hidden + self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, length, width)))
        return hidden + self.dropout(self.feed(self.norm_feed(hidden)))


class CrossmodalTransformer(Baseline):
    """Cross-modal attention between all pairs of modalities, then self-attention in each modality, then a head.

    A smaller model after MulT (Tsai et al., ACL 2019). The training protocol, which removes modalities, acts as
    modality dropout. The model does not know what is missing.
    """

    def construct(self, facts: DataFacts) -> None:
        """Create the layers."""
        super().construct(facts)
        self.cross = nn.ModuleDict(
            {
                f"{name}_{other}": _CrossAttention(self.width, self.heads, self.dropout)
                for name in MODALITIES
                for other in MODALITIES
                if other != name
            }
        )
        self.merge = nn.ModuleDict({name: nn.Linear(2 * self.width, self.width) for name in MODALITIES})
        self.head = mlp(len(MODALITIES) * self.width, 2 * self.width, self.outputs)

    @property
    def encoder_blocks(self) -> int:
        """One less than `depth`, because cross-attention precedes the encoders and the model size stays comparable."""
        return max(1, self.depth - 1)

    def forward(self, batch: MultimodalBatch) -> Prediction:
        """Predict the labels of a batch."""
        return self.predicted(batch, {})

    def predicted(self, batch: MultimodalBatch, encoded: dict[str, Tensor]) -> Prediction:
        """Predict the labels of a batch and also return the encoded positions.

        Args:
            batch: The batch.
            encoded: Is filled with the encoded positions of each modality [B, T, width].
        """
        hidden = {
            name: self.stems[name](self.features(batch, name), modality.available)
            for name, modality in batch.modalities.items()
        }
        vectors = []
        for name in MODALITIES:
            modality = batch.modalities[name]
            read = [
                self.cross[f"{name}_{other}"](hidden[name], hidden[other], batch.modalities[other].valid)
                for other in MODALITIES
                if other != name
            ]
            merged = self.merge[name](torch.cat(read, -1))
            encoder = cast(IADR, self.encoders[name])
            encoded[name], available = encoder.sequence(merged, modality.available, modality.valid)
            vectors.append(encoder.pooled(encoded[name], available, modality.valid))
        return Prediction(self.labelled(self.head(torch.cat(vectors, 1))))
