"""Inter-Attn, the last part of T2DR's second tier: attention between modalities, guided by the scorer's weights."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from saccade.modules.multimodal.layers.heads import check_heads

Fusion = Literal["attention", "concatenation"]
"""How the modalities' vectors are fused: by Inter-Attn, or by concatenation, for comparison."""

FUSIONS: tuple[Fusion, ...] = ("attention", "concatenation")


class InterAttn(nn.Module):
    """Attention between the modalities' vectors, with the scorer's weights as a prior.

    Name and purpose are those of T2DR (Findings of ACL 2025); the formula is ours. l ln(w_j) is added to the attention
    score of modality j, with the scorer's weight w_j and a learned strength l > 0. With equal content scores and l = 1
    the attention weights equal w; with l = 0 or equal w it is plain attention.

    Args:
        width: Features of a vector.
        heads: Attention heads; must divide `width`.
        modalities: Number of modalities.
        dropout: Dropout after both halves of the block.
        fusion: `attention`, or `concatenation` of the vectors, for comparison.

    Raises:
        ValueError: A setting is out of range; the message names it.
    """

    def __init__(
        self, width: int, heads: int = 4, modalities: int = 3, dropout: float = 0.1, fusion: Fusion = "attention"
    ) -> None:
        super().__init__()
        check_heads(heads, width)
        if fusion not in FUSIONS:
            raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, got {fusion!r}: choose one of them.")
        self.heads, self.fusion = heads, fusion
        self.identity = nn.Parameter(0.02 * torch.randn(modalities, width))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        if fusion == "attention":
            self.project = nn.Linear(width, 3 * width)
            self.feed = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
            )
            self.norm_out = nn.LayerNorm(width)
            self.strength_logit = nn.Parameter(torch.tensor(math.log(math.e - 1)))  # its softplus is 1
        else:
            self.join = nn.Linear(modalities * width, 2 * width)

    @property
    def strength(self) -> Tensor:
        """The learned strength of the prior, a scalar of at least 0; 0 with `concatenation`."""
        if self.fusion == "concatenation":
            return torch.zeros(())
        return nn.functional.softplus(self.strength_logit)

    def attention(self, normed: Tensor, weights: Tensor) -> Tensor:
        """Compute the attention weights [B, H, 3, 3] from normalized vectors [B, 3, width] and weights [B, 3]."""
        query, key, _ = self._heads(normed)
        prior = self.strength * (weights + 1e-6).log()
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + prior[:, None, None]
        return scores.softmax(-1)

    def forward(self, vectors: Tensor, weights: Tensor) -> Tensor:
        """Fuse the vectors of the modalities.

        Args:
            vectors: One vector for each modality [B, 3, width].
            weights: Weights of the modalities, summing to 1 [B, 3].

        Returns:
            The fused vector [B, 2 width].
        """
        normed = self.norm(vectors + self.identity)
        if self.fusion == "concatenation":
            return torch.relu(self.join(normed.flatten(1)))
        value = self._heads(normed)[2]
        mixed = (self.attention(normed, weights) @ value).transpose(1, 2).reshape(vectors.shape)
        out = normed + self.dropout(mixed)
        out = self.norm_out(out + self.dropout(self.feed(out)))
        return torch.cat([(weights[..., None] * out).sum(1), out.mean(1)], -1)

    def _heads(self, normed: Tensor) -> list[Tensor]:
        batch, count, _ = normed.shape
        return [part.view(batch, count, self.heads, -1).transpose(1, 2) for part in self.project(normed).chunk(3, -1)]
