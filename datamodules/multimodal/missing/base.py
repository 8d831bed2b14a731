"""Erasing of data from a batch: conditions, their application, and the base class of missing-data protocols."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from saccade.common.checks import check_choice
from saccade.datamodules.multimodal.batch import MODALITIES, Modality, MultimodalBatch
from saccade.datamodules.multimodal.missing.random_masks import uniform

UNKNOWN_TOKEN = 100
"""Token id of an erased word: [UNK] of BERT."""

Kind = Literal["random", "block", "same_steps", "same_block"]

PATTERNS: tuple[tuple[str, ...], ...] = (
    ("text",),
    ("audio",),
    ("vision",),
    ("text", "audio"),
    ("text", "vision"),
    ("audio", "vision"),
)
"""The six patterns in which at least one modality is missing and at least one is present."""


@dataclass(frozen=True)
class Condition:
    """A test condition: which data is erased.

    Args:
        name: Name of its row in tables.
        group: Name of the conditions with which it is averaged.
        x: Position on the curve of the group, usually the rate.
        random: Whether masks are drawn at random; other conditions need only one mask seed.
        present: Modalities that are kept; the others are erased completely.
        rates: Share of the content that is erased in text, audio and vision, 0 to 1.
        kind: `random`: each position independently. `block`: one contiguous block of that share. `same_steps`: the same
            positions in all modalities. `same_block`: one block with that share of the words, the same in all
            modalities.
        absent: Shares of the samples that lose one and two modalities, drawn at random, 0 to 1.

    Raises:
        ValueError: A modality or kind does not exist, or a share is outside of 0 to 1.
    """

    name: str
    group: str
    x: float = 0.0
    random: bool = False
    present: tuple[str, ...] = MODALITIES
    rates: tuple[float, float, float] = (0.0, 0.0, 0.0)
    kind: Kind = "random"
    absent: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if not set(self.present) <= set(MODALITIES):
            raise ValueError(
                f"present must be some of {', '.join(MODALITIES)}, got {list(self.present)}: correct the names."
            )
        if len(self.rates) != len(MODALITIES) or not all(0 <= rate <= 1 for rate in self.rates):
            raise ValueError(f"rates must be three numbers between 0 and 1, got {list(self.rates)}: correct them.")
        check_choice("kind", self.kind, get_args(Kind))
        # the sum of computed shares may differ from 1 by rounding
        if len(self.absent) != 2 or min(self.absent) < 0 or sum(self.absent) > 1 + 1e-6:
            raise ValueError(f"absent must be two shares with a sum of at most 1, got {list(self.absent)}: lower them.")


def curve(rates: Iterable[float], group: str, kind: Kind = "random") -> list[Condition]:
    """Make conditions with the same rate in all modalities, one for each rate."""
    return [Condition(f"r={rate:g}", group, rate, 0 < rate < 1, MODALITIES, (rate,) * 3, kind) for rate in rates]


def patterns(group: str, rates: Iterable[float] = (0.0,), complete: bool = True) -> list[Condition]:
    """Make conditions with completely erased modalities, and with partly erased others if there are rates.

    Args:
        group: Group of the conditions.
        rates: Share of the content that is erased in the other modalities; one condition for each rate and pattern.
        complete: Include the pattern with all modalities.
    """
    found = []
    for pattern in (*PATTERNS, *([MODALITIES] if complete else [])):
        for rate in rates:
            name = "+".join(pattern) + (f" r={rate:g}" if rate else "")
            found.append(Condition(name, group, rate, rate > 0, pattern, (rate,) * 3))
    return found


def triple(rates: tuple[float, float, float], group: str) -> Condition:
    """Make a condition with different rates for text, audio and vision."""
    name = ", ".join(f"{modality} {rate:g}" for modality, rate in zip(MODALITIES, rates, strict=True))
    return Condition(name, group, sum(rates) / 3, any(0 < rate < 1 for rate in rates), MODALITIES, rates)


def erase(batch: MultimodalBatch, condition: Condition, seed: int) -> MultimodalBatch:
    """Apply a condition.

    Args:
        batch: Samples with all their data.
        condition: The condition.
        seed: Seed of the masks. The masks of a sample depend only on the seed and on the key of the sample.

    Returns:
        The samples without the erased data; their `complete` is the given batch.
    """
    size, device = len(batch), batch.key.device
    rates = torch.tensor(condition.rates, device=device, dtype=torch.float32).expand(size, -1)
    present = torch.tensor([name in condition.present for name in MODALITIES], device=device).expand(size, -1)
    if any(condition.absent):
        one, two = condition.absent
        chance = uniform(batch.key, "absent", seed, 0, 1)[:, 0]
        number = (chance < one + two).long() + (chance < two).long()
        present = present & without_some(uniform(batch.key, "which", seed, 0, len(MODALITIES)), number)
    return take_away(batch, rates, present, condition.kind, seed)


def without_some(draws: Tensor, number: Tensor) -> Tensor:
    """Choose which modalities are kept.

    Args:
        draws: A random number for each modality [B, 3].
        number: How many modalities to erase [B]: those with the smallest draws.

    Returns:
        The modalities that are kept, bool [B, 3].
    """
    # stable, so that the order of equal draws does not depend on the device
    places = draws.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return places >= number[:, None]


def take_away(
    batch: MultimodalBatch,
    rates: Tensor,
    present: Tensor,
    kind: Kind = "random",
    seed: int = 0,
    epoch: int = 0,
    spare: bool = False,
) -> MultimodalBatch:
    """Erase parts of modalities and whole modalities, with separate rates for each sample.

    A position is erased if its random number is below the rate, so what is erased at one rate is also erased at every
    higher one.

    Args:
        batch: Samples with all their data.
        rates: Share of the content to erase in each modality [B, 3], on any device.
        present: Modalities to keep, bool [B, 3].
        kind: Kind of the erasure (`Condition`).
        seed: Seed of the masks.
        epoch: Epoch of the training; masks differ between epochs.
        spare: Do not change a sample of which nothing would be left, because a model learns nothing from it.

    Returns:
        The samples without the erased data; their `complete` is the given batch.
    """
    # always float32, so that the precision of the model does not change the masks
    rates, present = rates.to(batch.key.device, torch.float32), present.to(batch.key.device)
    masks = {}
    nothing = torch.ones_like(batch.key, dtype=torch.bool)
    for place, name in enumerate(MODALITIES):
        modality = batch.modalities[name]
        content = modality.content
        rate = rates[:, place, None]
        if kind == "block":
            place_in_content = content.int().cumsum(1) - 1
            gone = _block(batch.key, name, place_in_content, content.sum(1, keepdim=True), rate, seed, epoch)
        elif kind == "same_block":
            text = batch.modalities["text"]
            words = text.content
            # the step of the first word is 1 if the other modalities have a row for [CLS], else 0
            first_word = _step(text, _steps(batch, text)).gather(1, words.int().argmax(1, keepdim=True))
            step = _step(modality, _steps(batch, modality)) - first_word
            gone = _block(batch.key, "steps", step, words.sum(1, keepdim=True), rate, seed, epoch)
        else:
            stream = "steps" if kind == "same_steps" else name
            step = _step(modality, _steps(batch, modality) if kind == "same_steps" else content).clamp(min=0)
            gone = uniform(batch.key, stream, seed, epoch, content.shape[1]).gather(1, step) < rate
        masks[name] = content & (gone | ~present[:, place, None])
        nothing &= ~((modality.available > 0) & content & ~masks[name]).any(1)
    if spare:
        masks = {name: mask & ~nothing[:, None] for name, mask in masks.items()}
    return batch.with_modalities({name: _without(batch.modalities[name], mask) for name, mask in masks.items()})


def _steps(batch: MultimodalBatch, modality: Modality) -> Tensor:
    """Positions that have a counterpart in the other modalities [B, T].

    These are the words of a text, and also [CLS] and [SEP] if audio or vision have rows for them, as in the aligned
    files of MMSA, which have rows of zeros there.
    """
    lengths = torch.stack([batch.modalities[name].valid.sum(1) for name in MODALITIES], 1)
    rows_for_all = lengths[:, 1:].amax(1) >= lengths[:, 0]
    return modality.valid & (rows_for_all[:, None] | ~modality.special)


def _step(modality: Modality, counted: Tensor) -> Tensor:
    """Distance of each position from the first counted one, negative before it, long [B, T]."""
    first = counted.int().argmax(1, keepdim=True)
    return torch.arange(modality.valid.shape[1], device=first.device)[None] - first


def _block(key: Tensor, name: str, place: Tensor, length: Tensor, rate: Tensor, seed: int, epoch: int) -> Tensor:
    """Draw one contiguous block among `length` [B, 1] places, numbered by `place` [B, T] from 0 on."""
    size = (rate * length).round()
    start = (uniform(key, f"block/{name}", seed, epoch, 1) * (length - size + 1)).floor()
    return (place >= start) & (place < start + size)


def _without(modality: Modality, gone: Tensor) -> Modality:
    values = modality.values
    if values.dim() == 2:
        values = values.masked_fill(gone, UNKNOWN_TOKEN)
    else:
        values = values.masked_fill(gone[..., None], 0)
    return Modality(values, modality.valid, modality.available.masked_fill(gone, 0), modality.special)


class MissingProtocol(ABC):
    """Which data is erased in training, validation and test. A subclass is a dataclass with a `seed`."""

    def prepare(self, keys: Tensor, split: str) -> None:  # noqa: B027 - most protocols have nothing to prepare
        """Receive the samples of a split, for protocols that meet a rate over all of them.

        Args:
            keys: Keys of all samples, long [N].
            split: `train`, `valid` or `test`.
        """

    @abstractmethod
    def training(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        """Erase data for training, with new draws in every epoch.

        Args:
            batch: Samples with all their data.
            epoch: Epoch of the training.
        """

    def validation(self, batch: MultimodalBatch) -> MultimodalBatch:
        """Erase data as for training, but the same in every epoch.

        Args:
            batch: Samples with all their data.
        """
        return self.training(batch, epoch=-1)

    @abstractmethod
    def conditions(self) -> list[Condition]:
        """Return the conditions of the test, in the order of their rows."""
