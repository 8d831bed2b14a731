"""Intra-Attn: self-attention that favours what is there, and does not push what is missing down too far."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Variant = Literal["none", "none+marker", "hard", "A", "B", "C"]
"""How attention treats missing positions; see `IntraAttn`."""

VARIANTS: tuple[Variant, ...] = ("none", "none+marker", "hard", "A", "B", "C")

_OUT = -1e9  # padding: exp of it is 0 in every precision that has it
_HARD = -1e4  # missing keys under `hard`
_FILLED = 0.5  # variant C: how much of what was filled from observed keys counts as available afterwards


def floor_bias(available: Tensor, valid: Tensor, floor: Tensor, variant: Variant) -> Tensor:
    """Compute what is added to the attention scores of each key.

    With score + log(a + (1 - a) g), a missing key gets g times the weight that it would have if it were observed.

    Args:
        available: Availability a of the keys, 0 to 1 [B, T].
        valid: False at padding [B, T].
        floor: g of each head, in 0 to 1 [H].
        variant: See `IntraAttn`.

    Returns:
        Bias [B, H, T]; a very negative number at padding.
    """
    batch, length = available.shape
    heads = len(floor)
    if variant in ("none", "none+marker"):
        bias = available.new_zeros(batch, heads, length)
    elif variant == "hard":
        # where nothing is available there is nothing to prefer
        bias = (1 - available) * _HARD * (available > 0).any(1, keepdim=True)
        bias = bias[:, None].expand(batch, heads, length)
    else:
        gate = floor[None, :].expand(batch, heads)
        if variant == "B":
            observed = available.sum(1, keepdim=True)
            missing = (valid.to(available.dtype) - available).sum(1, keepdim=True)
            budget = (gate * observed / missing.clamp(min=1)).clamp(max=1)
            gate = torch.where(observed > 0, budget, torch.ones_like(budget))
        share = available[:, None] + (1 - available[:, None]) * gate[..., None]
        bias = share.clamp(min=1e-12).log()
    return bias.masked_fill(~valid[:, None], _OUT)


def floor_logit(heads: int, floor: float, variant: Variant) -> Tensor:
    """Make the number behind a learned floor, which is its sigmoid.

    Args:
        heads: How many floors.
        floor: First value, in 0 to 1.
        variant: A floor that the variant does not use is no parameter: every parameter of a module takes part.

    Returns:
        A parameter, or a plain tensor [heads].
    """
    start = torch.full((heads,), math.log(floor / (1 - floor)))
    return nn.Parameter(start) if variant in ("A", "B", "C") else start


class IntraAttn(nn.Module):
    """Multi-head self-attention over one modality of which parts are missing.

    Name and purpose are those of T2DR (Findings of ACL 2025); the formula is ours. Each head has a learned floor g in
    0 to 1, and log(a + (1 - a) g) is added to the scores of a key with availability a. Towards g = 0 missing keys are
    cut off, at g = 1 they count like observed ones; between, attention keeps to the data but leaves a path, and
    gradients, to missing positions. Missing positions still ask, so they are rewritten from observed ones.

    Args:
        width: Features of a position.
        heads: Attention heads; must divide `width`.
        variant: `A` is the formula above. `B` divides the floor by the odds of being missing, so that missing keys get
            the same total weight at every rate. `C` counts what was filled from observed keys as half available in the
            next layer. `hard` cuts missing keys off. `none` and `none+marker` are plain attention (the marker is the
            stem's).
        floor: First value of g.
        dropout: Of the attention weights.

    Raises:
        ValueError: A setting is impossible.
    """

    def __init__(
        self, width: int, heads: int, variant: Variant = "A", floor: float = 0.1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads: must divide width, but width is {width} and heads is {heads}")
        if variant not in VARIANTS:
            raise ValueError(f"variant: must be one of {', '.join(VARIANTS)}, but is {variant!r}")
        if not 0 < floor < 1:
            raise ValueError(f"floor: must lie between 0 and 1, but is {floor}")
        self.heads, self.variant, self.dropout = heads, variant, dropout
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.floor_logit = floor_logit(heads, floor, variant)

    @property
    def floor(self) -> Tensor:
        """The learned floor of each head [H]."""
        return self.floor_logit.sigmoid()

    def forward(self, hidden: Tensor, available: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            hidden: [B, T, width].
            available: Availability of each position, 0 to 1 [B, T].
            valid: False at padding [B, T].

        Returns:
            The attended positions [B, T, width], and the availability for the next layer [B, T], which only variant C
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
            # one more value for each key says whether it is missing: its mean is the weight on missing keys
            missing = (1 - available).to(value.dtype)[:, None, :, None].expand(batch, self.heads, length, 1)
            with torch.no_grad():
                mass = F.scaled_dot_product_attention(query, key, missing, attn_mask=bias).mean(1).squeeze(-1)
            filled = available + (1 - available) * _FILLED * (1 - mass)
            after = torch.where(valid, filled, available)
        else:
            after = available
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width)), after
