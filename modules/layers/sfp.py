"""SFP, first part of T2DR's second tier: a preliminary filling of what is missing from what is shared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.modules.layers.stem import codes

Filling = Literal["zero", "mean", "full", "shared"]
"""What stands at missing positions after the first tier; see `SFP`."""

FILLINGS: tuple[Filling, ...] = ("zero", "mean", "full", "shared")
_MOMENTUM = 0.01
_SPAN = 50.0  # length to which all sequences are scaled, so that the same moment has the same code in all modalities


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two linear maps with a ReLU between them.

    Args:
        inputs: Width of the input.
        hidden: Width between the maps.
        outputs: Width of the output.
    """
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


@dataclass
class Sequence:
    """One encoded modality.

    Args:
        hidden: Positions after the first tier [B, T, width].
        available: Availability of each position, 0 to 1 [B, T].
        content: Positions that can hold content, bool [B, T].
    """

    hidden: Tensor
    available: Tensor
    content: Tensor

    @property
    def moments(self) -> Tensor:
        """When each position is, from 0 at the first content position to 50 behind the last [B, T]."""
        count = self.content.sum(1, keepdim=True).clamp(min=1)
        place = self.content.cumsum(1) - 1
        return place.clamp(min=0).to(self.hidden.dtype) * (_SPAN / count)


class SFP(nn.Module):
    """Shared feature prediction: fill missing positions with what the other modalities share with them.

    Name, purpose and "preliminary" are those of T2DR (Findings of ACL 2025); the formula is ours. One map S, the same
    for all modalities, takes encoded positions into a shared space. A missing position asks, by its moment and its own
    modality, the available positions of the other modalities there, and a decoder of its modality turns the answer into
    a position. A modality that is absent as a whole is filled in the same way, position by position. Observed
    positions stay as they are.

    Args:
        width: Features of a position.
        heads: Attention heads; must divide `width`.
        modalities: Number of modalities.
        filling: `shared` is the formula above; `full` has a map of its own for each modality in the place of S; `mean`
            puts the running mean of the modality's available positions; `zero` puts zeros. For comparison, all but the
            first.
    """

    mean: Tensor

    def __init__(self, width: int, heads: int = 4, modalities: int = 3, filling: Filling = "shared") -> None:
        super().__init__()
        if filling not in FILLINGS:
            raise ValueError(f"filling: must be one of {', '.join(FILLINGS)}, but is {filling!r}")
        if heads < 1 or width % heads:
            raise ValueError(f"heads: must divide width, but width is {width} and heads is {heads}")
        self.filling, self.heads = filling, heads
        self.register_buffer("mean", torch.zeros(modalities, width))
        self.learns = filling in ("full", "shared")
        if self.learns:
            maps = 1 if filling == "shared" else modalities
            self.shared = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) for _ in range(maps)
            )
            self.identity = nn.Parameter(0.02 * torch.randn(modalities, width))
            self.query, self.pair = nn.Linear(2 * width, width), nn.Linear(2 * width, 2 * width)
            self.nobody = nn.Parameter(torch.zeros(modalities, width))
            self.decode = nn.ModuleList(mlp(2 * width, 2 * width, width) for _ in range(modalities))

    def forward(self, sequences: list[Sequence]) -> list[Tensor]:
        """Predict every position of every modality from the other modalities.

        Args:
            sequences: The encoded modalities, in their order.

        Returns:
            Predicted positions [B, T, width] of each modality.
        """
        if not self.learns:
            return [self._constant(place, sequence) for place, sequence in enumerate(sequences)]
        keys = []
        for place, sequence in enumerate(sequences):
            shared = self.shared[place % len(self.shared)](sequence.hidden)
            code = codes(sequence.moments, shared.shape[-1])
            keys.append((shared, code, (sequence.available > 0) & sequence.content))
        return [self._asked(place, sequence, keys) for place, sequence in enumerate(sequences)]

    def _asked(self, place: int, sequence: Sequence, keys: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        others = [item for other, item in enumerate(keys) if other != place]
        shared = torch.cat([item[0] for item in others], 1)
        when = torch.cat([item[1] for item in others], 1)
        readable = torch.cat([item[2] for item in others], 1)
        batch, length, width = sequence.hidden.shape
        code = keys[place][1]
        # a last key that is always there says that nobody knows
        key, value = self.pair(torch.cat([shared, when], -1)).chunk(2, -1)
        nobody = self.nobody[place].expand(batch, 1, width)
        key, value = torch.cat([key, torch.zeros_like(nobody)], 1), torch.cat([value, nobody], 1)
        readable = torch.cat([readable, torch.ones_like(readable[:, :1])], 1)
        query = self.query(torch.cat([sequence.hidden + self.identity[place], code], -1))

        def split(part: Tensor) -> Tensor:
            return part.view(batch, part.shape[1], self.heads, -1).transpose(1, 2)

        answer = F.scaled_dot_product_attention(
            split(query), split(key), split(value), attn_mask=readable[:, None, None]
        )
        answer = answer.transpose(1, 2).reshape(batch, length, width)
        predicted: Tensor = self.decode[place](torch.cat([answer, query], -1))
        return predicted

    def _constant(self, place: int, sequence: Sequence) -> Tensor:
        if self.filling == "mean" and self.training:
            with torch.no_grad():
                share = (sequence.available * sequence.content)[..., None]
                seen = (sequence.hidden * share).sum((0, 1)) / share.sum((0, 1)).clamp(min=1)
                self.mean[place].lerp_(seen, _MOMENTUM)
        return self.mean[place].expand_as(sequence.hidden)


def filled(sequence: Sequence, predicted: Tensor) -> Tensor:
    """Put predictions at the missing positions [B, T, width]; observed positions come through bit for bit."""
    share = sequence.available[..., None].to(predicted.dtype)
    mixed = share * sequence.hidden + (1 - share) * predicted
    return torch.where(share >= 1, sequence.hidden, mixed)


def filling_loss(predicted: list[Tensor], sequences: list[Sequence], complete: list[Sequence]) -> Tensor:
    """Compute how far predictions are from the positions of the complete samples, which are a fixed target.

    Args:
        predicted: Positions of each modality [B, T, width], from samples with missing parts.
        sequences: Those samples.
        complete: The same samples before anything was taken away.

    Returns:
        Mean over modalities of the mean squared distance at positions that are missing but known; a scalar.
    """
    terms = []
    for guess, part, whole in zip(predicted, sequences, complete, strict=True):
        wanted = ((whole.available - part.available).clamp(min=0) * whole.content).to(guess.dtype)
        distance = ((guess - whole.hidden.detach()) ** 2).mean(-1)
        terms.append((distance * wanted).sum() / wanted.sum().clamp(min=1))
    return torch.stack(terms).mean()
