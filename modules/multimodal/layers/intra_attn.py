"""Intra-Attn: self-attention that prefers available positions and keeps a learned minimum for missing ones."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.modules.multimodal.layers.heads import check_heads

Variant = Literal["none", "none+marker", "hard", "A", "B", "C"]
"""How attention treats missing positions; see `IntraAttn`."""

VARIANTS: tuple[Variant, ...] = ("none", "none+marker", "hard", "A", "B", "C")

_OUT = -1e9  # bias of padding; its exponential is 0 in every precision
_HARD = -1e4  # bias of missing keys with `hard`
_FILLED = 0.5  # variant C: availability after a layer of a position that was filled from observed keys only


def floor_bias(available: Tensor, valid: Tensor, floor: Tensor, variant: Variant) -> Tensor:
    """Compute the bias that is added to the attention scores of each key.

    With score + log(a + (1 - a) g), a missing key gets g times the weight that it would have if it were observed.

    Args:
        available: Availability a of the keys, 0 to 1 [B, T].
        valid: False at padding [B, T].
        floor: Floor g of each head, 0 to 1 [H].
        variant: See `IntraAttn`.

    Returns:
        Bias [B, H, T]; a very negative number at padding.
    """
    batch, length = available.shape
    heads = len(floor)
    if variant in ("none", "none+marker"):
        bias = available.new_zeros(batch, heads, length)
    elif variant == "hard":
        # no bias in samples without any available key
        bias = (1 - available) * _HARD * (available > 0).any(1, keepdim=True)
        bias = bias[:, None].expand(batch, heads, length)
    else:
        least = floor[None, :].expand(batch, heads)
        if variant == "B":
            observed = available.sum(1, keepdim=True)
            missing = (valid.to(available.dtype) - available).sum(1, keepdim=True)
            budget = (least * observed / missing.clamp(min=1)).clamp(max=1)
            least = torch.where(observed > 0, budget, torch.ones_like(budget))
        share = available[:, None] + (1 - available[:, None]) * least[..., None]
        bias = share.clamp(min=1e-12).log()
    return bias.masked_fill(~valid[:, None], _OUT)


def floor_logit(heads: int, floor: float, variant: Variant) -> Tensor:
    """Create the logits of learned floors; a floor is the sigmoid of its logit.

    Args:
        heads: Number of floors.
        floor: Initial value of the floors, between 0 and 1.
        variant: See `IntraAttn`. If it uses no floor, the result is no parameter, so that no parameter is unused.

    Returns:
        A parameter, or a plain tensor [heads].
    """
    start = torch.full((heads,), math.log(floor / (1 - floor)))
    return nn.Parameter(start) if variant in ("A", "B", "C") else start


class IntraAttn(nn.Module):
    """Multi-head self-attention over one modality with missing parts.

    Name and purpose are those of T2DR (Findings of ACL 2025); the formula is ours. Each head has a learned floor g
    between 0 and 1, and log(a + (1 - a) g) is added to the attention scores of a key with availability a. As g
    approaches 0, missing keys are excluded; at g = 1 they count like observed ones. In between, attention prefers
    observed keys, and gradients still reach missing positions. Missing positions are queries too, so their contents
    are computed from observed positions.

    Args:
        width: Features of a position.
        heads: Attention heads; must divide `width`.
        variant: `A` is the formula above. `B` divides the floor by the odds of being missing, so that missing keys get
            the same total weight at every missing rate. `C` counts positions that were filled from observed keys as
            half available in the next layer. `hard` excludes missing keys. `none` and `none+marker` are plain
            attention; with `none`, the stem also has no marker for missing positions.
        floor: Initial value of g, above 0 and below 1.
        dropout: Dropout of the attention weights.

    Raises:
        ValueError: A setting is out of range; the message names it.
    """

    def __init__(
        self, width: int, heads: int, variant: Variant = "A", floor: float = 0.1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_heads(heads, width)
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}: choose one of them.")
        if not 0 < floor < 1:
            raise ValueError(f"floor must be above 0 and below 1, got {floor}: choose for example 0.1.")
        self.heads, self.variant, self.dropout = heads, variant, dropout
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.floor_logit = floor_logit(heads, floor, variant)

    @property
    def floor(self) -> Tensor:
        """The learned floor of each head [H]."""
        return self.floor_logit.sigmoid()

    def forward(self, hidden: Tensor, available: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Compute self-attention.

        Args:
            hidden: Positions [B, T, width].
            available: Availability of each position, 0 to 1 [B, T].
            valid: False at padding [B, T].

        Returns:
            The new positions [B, T, width], and the availability for the next layer [B, T], which only variant C
            changes.
        """
        batch, length, width = hidden.shape
        query, key, value = (
            part.view(batch, length, self.heads, -1).transpose(1, 2) for part in self.project(hidden).chunk(3, -1)
        )
        bias = floor_bias(available, valid, self.floor, self.variant)[:, :, None].to(hidden.dtype)
        bias = bias.expand(batch, self.heads, length, length)
        dropout = self.dropout if self.training else 0.0
        if self.variant == "C":
            # attention over values that are 1 for missing keys gives the total weight on missing keys
            missing = (1 - available).to(value.dtype)[:, None, :, None].expand(batch, self.heads, length, 1)
            with torch.no_grad():
                mass = F.scaled_dot_product_attention(query, key, missing, attn_mask=bias).mean(1).squeeze(-1)
            filled = available + (1 - available) * _FILLED * (1 - mass)
            after = torch.where(valid, filled, available)
        else:
            after = available
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width)), after
