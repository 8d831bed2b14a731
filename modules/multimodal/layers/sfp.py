"""SFP, first part of T2DR's second tier: a preliminary filling of what is missing from what is shared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.modules.multimodal.layers.perceptron import mlp
from saccade.modules.multimodal.layers.stem import codes

Filling = Literal["zero", "mean", "full", "shared"]
"""What stands at missing positions after the first tier; see `SFP`."""

FILLINGS: tuple[Filling, ...] = ("zero", "mean", "full", "shared")
_MOMENTUM = 0.01
_TEMPERATURE = 0.1  # of the alignment's similarities
_SPAN = 50.0  # length to which all sequences are scaled, so that the same moment has the same code in all modalities


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
    def known(self) -> Tensor:
        """Content positions of which at least a part is available, bool [B, T]."""
        return (self.available > 0) & self.content

    @property
    def moments(self) -> Tensor:
        """When each position is, from 0 at the first content position to 50 behind the last [B, T]."""
        count = self.content.sum(1, keepdim=True).clamp(min=1)
        place = self.content.cumsum(1) - 1
        return place.clamp(min=0).to(self.hidden.dtype) * (_SPAN / count)


def mean_over(features: Tensor, where: Tensor) -> Tensor:
    """Mean of features [B, T, width] over the positions `where` [B, T] is true, [B, width]; zeros where none is."""
    share = where[..., None].to(features.dtype)
    return (features * share).sum(1) / share.sum(1).clamp(min=1)


@dataclass
class Guess:
    """What the other modalities tell of one modality.

    Args:
        positions: Predicted encoded positions [B, T, width].
        shared: Predicted shared features of these positions [B, T, width]; None where a filling learns nothing.
    """

    positions: Tensor
    shared: Tensor | None = None


class SFP(nn.Module):
    """Shared feature prediction: fill missing positions with what the other modalities share with them.

    Name, purpose and "preliminary" are those of T2DR (Findings of ACL 2025); the formula is ours. One map S, the same
    for all modalities, takes encoded positions into a shared space. A missing position asks, by its moment and its own
    modality, the available positions of the other modalities there, and a decoder of its modality turns the answer into
    a position. A modality that is absent as a whole is filled in the same way, position by position. Observed
    positions stay as they are. `alignment` teaches S to keep what a clip's modalities share: without it the encoders
    keep what serves the label and little else, and there is nothing to fill with.

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
            self.expect = nn.Linear(width, width)
            self.decode = nn.ModuleList(mlp(2 * width, 2 * width, width) for _ in range(modalities))

    def forward(self, sequences: list[Sequence]) -> list[Guess]:
        """Predict every position of every modality from the other modalities.

        Args:
            sequences: The encoded modalities, in their order.

        Returns:
            What is guessed of each modality.
        """
        if not self.learns:
            return [Guess(self._constant(place, sequence)) for place, sequence in enumerate(sequences)]
        keys = []
        for place, sequence in enumerate(sequences):
            shared = self.shared_features(place, sequence)
            code = codes(sequence.moments, shared.shape[-1])
            keys.append((shared, code, sequence.known))
        return [self._asked(place, sequence, keys) for place, sequence in enumerate(sequences)]

    def shared_features(self, place: int, sequence: Sequence) -> Tensor:
        """Shared features [B, T, width] of the positions of modality number `place`."""
        features: Tensor = self.shared[place % len(self.shared)](sequence.hidden)
        return features

    def alignment(self, guesses: list[Guess], complete: list[Sequence]) -> Tensor:
        """Contrast what is guessed of a clip's shared features with those of all clips (InfoNCE; ours).

        A clip's vector is the mean over its available positions; both directions count. Clips of which a modality has
        nothing are left out there.

        Args:
            guesses: Of samples with missing parts.
            complete: The encoded complete samples; gradients reach them, which keeps shared content in the encoders.

        Returns:
            Mean cross-entropy over modalities in nats, a scalar; ln B is chance.
        """
        terms = []
        for place, (guess, whole) in enumerate(zip(guesses, complete, strict=True)):
            if guess.shared is None:
                continue
            has = whole.known
            some = has.any(1)
            # out-of-place clips keep their column, at a similarity that nobody looks at: shapes stay fixed
            wanted = F.normalize(mean_over(self.shared_features(place, whole), has), dim=-1)
            guessed = F.normalize(mean_over(guess.shared, has), dim=-1)
            scores = (guessed @ wanted.T).float() / _TEMPERATURE
            scores = scores.masked_fill(~(some[:, None] & some), -1e4)
            own = torch.arange(len(scores), device=scores.device)
            both = F.cross_entropy(scores, own, reduction="none") + F.cross_entropy(scores.T, own, reduction="none")
            terms.append((both / 2 * some).sum() / some.sum().clamp(min=1))
        return torch.stack(terms).mean()

    def _asked(self, place: int, sequence: Sequence, keys: list[tuple[Tensor, Tensor, Tensor]]) -> Guess:
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
        return Guess(self.decode[place](torch.cat([answer, query], -1)), self.expect(answer))

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


def filling_loss(guesses: list[Guess], sequences: list[Sequence], complete: list[Sequence]) -> Tensor:
    """Compute how far predictions are from the positions of the complete samples, which are a fixed target.

    Args:
        guesses: Of each modality, from samples with missing parts.
        sequences: Those samples.
        complete: The same samples before anything was taken away.

    Returns:
        Mean over modalities of the mean squared distance at positions that are missing but known; a scalar.
    """
    terms = []
    for guess, part, whole in zip(guesses, sequences, complete, strict=True):
        wanted = ((whole.available - part.available).clamp(min=0) * whole.content).to(guess.positions.dtype)
        distance = ((guess.positions - whole.hidden.detach()) ** 2).mean(-1)
        terms.append((distance * wanted).sum() / wanted.sum().clamp(min=1))
    return torch.stack(terms).mean()
