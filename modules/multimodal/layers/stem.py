"""The stem of a modality: standardise, mark what is missing, project to the model's width."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_CLIP = 10.0  # real feature files have columns with values of over a thousand


class Stem(nn.Module):
    """Turn the features of one modality into positions of the model's width. Ours.

    Features are standardised with the training split's statistics and clipped to +-10. A missing position becomes a
    learned marker, so that nothing can be read from what stands there: h = a (W x + b) + (1 - a) marker, with
    availability a. Position codes are added last.

    Args:
        features: Width of the input.
        width: Width of the model.
        mean: Mean of each feature over available rows of the training split [features].
        std: Standard deviation of the same [features].
        marker: Whether missing positions are marked; without, they are read as they are.
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
        """Project.

        Args:
            values: Features as the file has them [B, T, features].
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
        """Standardised and clipped features, zeros where nothing is available; arguments as in `forward`."""
        # zeros in the place of missing rows are no measurements: standardised, they would look like some
        there = (available > 0)[..., None]
        return torch.where(there, ((values - self.mean) / self.std).clamp(-_CLIP, _CLIP), torch.zeros_like(values))


def codes(moments: Tensor, width: int) -> Tensor:
    """Sine and cosine codes of moments (Vaswani et al., 2017).

    Args:
        moments: Any numbers, positions for example [..., T].
        width: Features of a code.

    Returns:
        Codes [..., T, width].
    """
    half = (width + 1) // 2
    rate = torch.exp(torch.arange(half, device=moments.device, dtype=moments.dtype) * (-math.log(10000.0) / half))
    angle = moments[..., None] * rate
    return torch.cat([angle.sin(), angle.cos()], -1)[..., :width]
