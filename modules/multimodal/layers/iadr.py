"""IADR, the first tier of T2DR: encodes one modality with missing parts as one vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saccade.modules.multimodal.layers.intra_attn import IntraAttn, Variant, floor_bias, floor_logit


class _Block(nn.Module):
    """Pre-norm transformer block around Intra-Attn."""

    def __init__(self, width: int, heads: int, variant: Variant, floor: float, dropout: float) -> None:
        super().__init__()
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = IntraAttn(width, heads, variant, floor, dropout)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, available: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        mixed, available = self.attention(self.norm_attention(hidden), available, valid)
        hidden = hidden + self.dropout(mixed)
        return hidden + self.dropout(self.feed(self.norm_feed(hidden))), available


class IADR(nn.Module):
    """Intra-modal deficiency-resistant module: transformer blocks with Intra-Attn, then attention pooling.

    Name and purpose are those of T2DR (Findings of ACL 2025); depth, blocks and pooling are ours.

    Args:
        width: Features of a position.
        heads: Attention heads; must divide `width`.
        depth: Number of blocks.
        variant: Variant of Intra-Attn; the pooling treats missing positions in the same way.
        floor: Initial value of the learned floors.
        dropout: Dropout in the attention and after both halves of a block.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 2,
        variant: Variant = "A",
        floor: float = 0.1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.variant = variant
        self.blocks = nn.ModuleList(_Block(width, heads, variant, floor, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.pool = nn.Linear(width, 1, bias=False)
        self.pool_floor_logit = floor_logit(1, floor, variant)

    def forward(self, hidden: Tensor, available: Tensor, valid: Tensor) -> Tensor:
        """Encode and pool.

        Args:
            hidden: Positions from the stem [B, T, width].
            available: Availability of each position, 0 to 1 [B, T].
            valid: False at padding [B, T].

        Returns:
            One vector for each sample [B, width]; finite also if nothing is available or nothing is valid.
        """
        return self.pooled(*self.sequence(hidden, available, valid), valid)

    def sequence(self, hidden: Tensor, available: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Encode without pooling. The arguments are those of `forward`.

        Returns:
            Encoded positions [B, T, width], and their availability after the blocks [B, T].
        """
        for block in self.blocks:
            hidden, available = block(hidden, available, valid)
        return self.norm(hidden), available

    def pooled(self, hidden: Tensor, available: Tensor, valid: Tensor) -> Tensor:
        """Pool encoded positions to [B, width]. The arguments are those of `forward`."""
        bias = floor_bias(available, valid, self.pool_floor_logit.sigmoid(), self.variant)[:, 0]
        weight = (self.pool(hidden).squeeze(-1) + bias).softmax(1)
        # without this, a sample without valid positions would average its padding, whose length depends on the batch
        weight = weight.masked_fill(~valid, 0)
        return torch.einsum("bt,btd->bd", weight, hidden)

    def floors(self) -> list[float]:
        """Return the learned floors: one for each head of each block, then that of the pooling."""
        heads = [value for block in self.blocks for value in block.attention.floor.tolist()]  # type: ignore[union-attr,operator]
        return [*heads, *self.pool_floor_logit.sigmoid().tolist()]
