"""The stem of a modality: standardises features, marks missing positions, and projects to the model's width."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_CLIP = 10.0  # published feature files have columns with values above a thousand


class Stem(nn.Module):
    """Project the features of one modality to positions of the model's width. Ours.

    Features are standardised with the statistics of the training split and clipped to +-10. A missing position is
    replaced by a learned marker, so that its features have no effect: h = a (W x + b) + (1 - a) marker, with
    availability a. Position codes are added last.

    Args:
        features: Width of the input.
        width: Width of the model.
        mean: Mean of each feature over the available rows of the training split [features].
        std: Standard deviation of the same rows [features].
        marker: Whether missing positions are replaced by the marker; otherwise they are projected like all others.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: int, width: int, mean: Tensor, std: Tensor, marker: bool = True) -> None:
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())
        self.project = nn.Linear(features, width)
        self.marker = nn.Parameter(0.02 * torch.randn(width)) if marker else None

    def forward(self, values: Tensor, available: Tensor) -> Tensor:
        """Project features to positions.

        Args:
            values: Features, not standardised [B, T, features].
            available: Availability of each position, 0 to 1 [B, T].

        Returns:
            Positions [B, T, width].
        """
        hidden = self.project(self.scaled(values, available))
        if self.marker is not None:
            share = available[..., None].to(hidden.dtype)
            hidden = share * hidden + (1 - share) * self.marker
        places = torch.arange(hidden.shape[1], device=hidden.device, dtype=hidden.dtype)
        return hidden + codes(places, hidden.shape[2])

    def scaled(self, values: Tensor, available: Tensor) -> Tensor:
        """Return standardised and clipped features, zeros at missing rows. The arguments are those of `forward`."""
        # missing rows are zeros, which are no measurements: standardising them would make them look like values
        there = (available > 0)[..., None]
        return torch.where(there, ((values - self.mean) / self.std).clamp(-_CLIP, _CLIP), torch.zeros_like(values))


def codes(moments: Tensor, width: int) -> Tensor:
    """Compute sine and cosine position codes (Vaswani et al., 2017).

    Args:
        moments: Positions or times [..., T].
        width: Features of a code.

    Returns:
        Codes [..., T, width].
    """
    half = (width + 1) // 2
    rate = torch.exp(torch.arange(half, device=moments.device, dtype=moments.dtype) * (-math.log(10000.0) / half))
    angle = moments[..., None] * rate
    return torch.cat([angle.sin(), angle.cos()], -1)[..., :width]
