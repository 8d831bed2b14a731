"""SFP, the first part of T2DR's second tier: fills missing positions from features that modalities share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.modules.multimodal.layers.heads import check_heads
from saccade.modules.multimodal.layers.perceptron import mlp
from saccade.modules.multimodal.layers.stem import codes

Filling = Literal["zero", "mean", "full", "shared"]
"""How missing positions are filled after the first tier; see `SFP`."""

FILLINGS: tuple[Filling, ...] = ("zero", "mean", "full", "shared")
_MOMENTUM = 0.01  # of the running mean of the filling `mean`
_TEMPERATURE = 0.1  # divides the similarities in the alignment loss
_SPAN = 50.0  # common length of all modalities, so that the same moment has the same position code in each of them


@dataclass
class EncodedModality:
    """One modality of a batch after the first tier.

    Args:
        hidden: Encoded positions [B, T, width].
        available: Availability of each position, 0 to 1 [B, T].
        content: True at positions that can hold content, bool [B, T].
    """

    hidden: Tensor
    available: Tensor
    content: Tensor

    @property
    def known(self) -> Tensor:
        """True at content positions that are at least partly available, bool [B, T]."""
        return (self.available > 0) & self.content

    @property
    def moments(self) -> Tensor:
        """Time of each position, from 0 at the first content position to 50 after the last one [B, T]."""
        count = self.content.sum(1, keepdim=True).clamp(min=1)
        place = self.content.cumsum(1) - 1
        return place.clamp(min=0).to(self.hidden.dtype) * (_SPAN / count)


def mean_over(features: Tensor, where: Tensor) -> Tensor:
    """Average features over selected positions.

    Args:
        features: Features of each position [B, T, width].
        where: True at the positions to average, bool [B, T].

    Returns:
        Means [B, width]; zeros if no position is selected.
    """
    share = where[..., None].to(features.dtype)
    return (features * share).sum(1) / share.sum(1).clamp(min=1)


@dataclass
class Guess:
    """Prediction of one modality from the other modalities.

    Args:
        positions: Predicted encoded positions [B, T, width].
        shared: Predicted shared features of these positions [B, T, width]; None for fillings without parameters.
    """

    positions: Tensor
    shared: Tensor | None = None


class SFP(nn.Module):
    """Shared feature prediction: fill missing positions with features shared with the other modalities.

    Name and purpose are those of T2DR (Findings of ACL 2025); the formula is ours. One map S, the same for all
    modalities, projects encoded positions into a shared space. A missing position attends there to the available
    positions of the other modalities, with a query made of its time and its modality, and a decoder of its modality
    converts the result to an encoded position. A modality that is missing as a whole is filled in the same way,
    position by position. Observed positions do not change. The `alignment` loss trains S to keep what the modalities of
    a clip share; without it, the encoders keep little more than the label needs, and filling has no effect.

    Args:
        width: Features of a position.
        heads: Attention heads; must divide `width`.
        modalities: Number of modalities.
        filling: `shared` is the formula above. The others are for comparison: `full` uses a separate map for each
            modality instead of S, `mean` the running mean of the modality's available positions, `zero` zeros.

    Raises:
        ValueError: A setting is out of range; the message names it.
    """

    mean: Tensor

    def __init__(self, width: int, heads: int = 4, modalities: int = 3, filling: Filling = "shared") -> None:
        super().__init__()
        if filling not in FILLINGS:
            raise ValueError(f"filling must be one of {', '.join(FILLINGS)}, got {filling!r}: choose one of them.")
        check_heads(heads, width)
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
            self.default = nn.Parameter(torch.zeros(modalities, width))
            self.expect = nn.Linear(width, width)
            self.decode = nn.ModuleList(mlp(2 * width, 2 * width, width) for _ in range(modalities))

    def forward(self, encoded: list[EncodedModality]) -> list[Guess]:
        """Predict every position of every modality from the other modalities.

        Args:
            encoded: The encoded modalities, in their order.

        Returns:
            A prediction of each modality.
        """
        if not self.learns:
            return [Guess(self._constant(place, own)) for place, own in enumerate(encoded)]
        keys = []
        for place, own in enumerate(encoded):
            shared = self.shared_features(place, own)
            keys.append((shared, codes(own.moments, shared.shape[-1]), own.known))
        return [self._predict(place, own, keys) for place, own in enumerate(encoded)]

    def shared_features(self, place: int, encoded: EncodedModality) -> Tensor:
        """Compute the shared features [B, T, width] of the positions of modality number `place`."""
        features: Tensor = self.shared[place % len(self.shared)](encoded.hidden)
        return features

    def alignment(self, guesses: list[Guess], complete: list[EncodedModality]) -> Tensor:
        """Contrast the predicted shared features of a clip with the shared features of all clips (InfoNCE; ours).

        The vector of a clip is the mean over its available positions, and the loss is symmetric. For each modality,
        clips without any available position are left out.

        Args:
            guesses: Predictions for samples with missing parts.
            complete: The encoded complete samples. They get gradients, so that the encoders keep shared content.

        Returns:
            Mean cross-entropy over modalities in nats, a scalar; chance level is ln B.
        """
        terms = []
        for place, (guess, whole) in enumerate(zip(guesses, complete, strict=True)):
            if guess.shared is None:
                continue
            has = whole.known
            some = has.any(1)
            # clips that are left out keep their row and column with a very low similarity, so that shapes stay fixed
            wanted = F.normalize(mean_over(self.shared_features(place, whole), has), dim=-1)
            guessed = F.normalize(mean_over(guess.shared, has), dim=-1)
            scores = (guessed @ wanted.T).float() / _TEMPERATURE
            scores = scores.masked_fill(~(some[:, None] & some), -1e4)
            own = torch.arange(len(scores), device=scores.device)
            both = F.cross_entropy(scores, own, reduction="none") + F.cross_entropy(scores.T, own, reduction="none")
            terms.append((both / 2 * some).sum() / some.sum().clamp(min=1))
        return torch.stack(terms).mean()

    def _predict(self, place: int, encoded: EncodedModality, keys: list[tuple[Tensor, Tensor, Tensor]]) -> Guess:
        others = [item for other, item in enumerate(keys) if other != place]
        shared = torch.cat([item[0] for item in others], 1)
        when = torch.cat([item[1] for item in others], 1)
        readable = torch.cat([item[2] for item in others], 1)
        batch, length, width = encoded.hidden.shape
        code = keys[place][1]
        # the last key is always available, with a learned value: attention is defined if the others are all missing
        key, value = self.pair(torch.cat([shared, when], -1)).chunk(2, -1)
        default = self.default[place].expand(batch, 1, width)
        key, value = torch.cat([key, torch.zeros_like(default)], 1), torch.cat([value, default], 1)
        readable = torch.cat([readable, torch.ones_like(readable[:, :1])], 1)
        query = self.query(torch.cat([encoded.hidden + self.identity[place], code], -1))

        def split(part: Tensor) -> Tensor:
            return part.view(batch, part.shape[1], self.heads, -1).transpose(1, 2)

        answer = F.scaled_dot_product_attention(
            split(query), split(key), split(value), attn_mask=readable[:, None, None]
        )
        answer = answer.transpose(1, 2).reshape(batch, length, width)
        return Guess(self.decode[place](torch.cat([answer, query], -1)), self.expect(answer))

    def _constant(self, place: int, encoded: EncodedModality) -> Tensor:
        if self.filling == "mean" and self.training:
            with torch.no_grad():
                share = (encoded.available * encoded.content)[..., None]
                seen = (encoded.hidden * share).sum((0, 1)) / share.sum((0, 1)).clamp(min=1)
                self.mean[place].lerp_(seen, _MOMENTUM)
        return self.mean[place].expand_as(encoded.hidden)


def filled(encoded: EncodedModality, predicted: Tensor) -> Tensor:
    """Replace missing positions by predictions.

    Args:
        encoded: The modality after the first tier.
        predicted: Predicted positions [B, T, width].

    Returns:
        Positions [B, T, width]; fully observed ones are equal to the encoded ones bit for bit.
    """
    share = encoded.available[..., None].to(predicted.dtype)
    mixed = share * encoded.hidden + (1 - share) * predicted
    return torch.where(share >= 1, encoded.hidden, mixed)


def filling_loss(guesses: list[Guess], encoded: list[EncodedModality], complete: list[EncodedModality]) -> Tensor:
    """Compute the distance of predictions from the positions of the complete samples, which get no gradient.

    Args:
        guesses: Predictions of each modality, from samples with missing parts.
        encoded: The samples with missing parts after the first tier.
        complete: The same samples before anything was removed.

    Returns:
        Mean over modalities of the mean squared distance at positions that were removed; a scalar.
    """
    terms = []
    for guess, part, whole in zip(guesses, encoded, complete, strict=True):
        wanted = ((whole.available - part.available).clamp(min=0) * whole.content).to(guess.positions.dtype)
        distance = ((guess.positions - whole.hidden.detach()) ** 2).mean(-1)
        terms.append((distance * wanted).sum() / wanted.sum().clamp(min=1))
    return torch.stack(terms).mean()
