"""What is taken away from a batch: conditions, how they are applied, and the base of the protocols."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from saccade.datamodules.multimodal.batch import MODALITIES, Modality, MultimodalBatch
from saccade.datamodules.multimodal.missing.random_masks import uniform

UNKNOWN_TOKEN = 100
"""What stands for an erased word: [UNK] of BERT."""

Kind = Literal["random", "block", "same_steps", "same_block"]

PATTERNS: tuple[tuple[str, ...], ...] = (
    ("text",),
    ("audio",),
    ("vision",),
    ("text", "audio"),
    ("text", "vision"),
    ("audio", "vision"),
)
"""The six ways in which at least one modality is missing and at least one is there."""


@dataclass(frozen=True)
class Condition:
    """One way to take data away.

    Args:
        name: Of its row in tables.
        group: Conditions that are averaged together.
        x: Place on the group's curve, usually the rate.
        random: Whether it draws at random; others need one mask seed only.
        present: Modalities that stay; the others are taken away as a whole.
        rates: Share of the content that is erased in text, audio and vision, 0 to 1.
        kind: `random`: each position by itself. `block`: one contiguous block of that share. `same_steps`: the same
            positions in all modalities. `same_block`: one block of that share of the words, the same in all modalities.
        absent: Shares of the samples that lose one and two of their modalities, drawn at random, 0 to 1.

    Raises:
        ValueError: There is no such modality or kind, or a share lies outside 0 to 1.
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
            raise ValueError(f"present: must be some of {', '.join(MODALITIES)}, but is {list(self.present)}")
        if len(self.rates) != len(MODALITIES) or not all(0 <= rate <= 1 for rate in self.rates):
            raise ValueError(f"rates: must be three numbers between 0 and 1, but is {list(self.rates)}")
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind: must be random, block, same_steps or same_block, but is {self.kind!r}")
        # shares that are computed may miss 1 by a rounding
        if len(self.absent) != 2 or min(self.absent) < 0 or sum(self.absent) > 1 + 1e-6:
            raise ValueError(f"absent: must be two shares with a sum of at most 1, but is {list(self.absent)}")


def curve(rates: Iterable[float], group: str, kind: Kind = "random") -> list[Condition]:
    """Conditions with the same rate in all modalities, one for each rate."""
    return [Condition(f"r={rate:g}", group, rate, 0 < rate < 1, MODALITIES, (rate,) * 3, kind) for rate in rates]


def patterns(group: str, rates: Iterable[float] = (0.0,), complete: bool = True) -> list[Condition]:
    """Conditions with modalities taken away as a whole, and with parts of the others if there are rates."""
    found = []
    for pattern in (*PATTERNS, *([MODALITIES] if complete else [])):
        for rate in rates:
            name = "+".join(pattern) + (f" r={rate:g}" if rate else "")
            found.append(Condition(name, group, rate, rate > 0, pattern, (rate,) * 3))
    return found


def triple(rates: tuple[float, float, float], group: str) -> Condition:
    """The condition with a rate of its own for text, audio and vision."""
    name = ", ".join(f"{modality} {rate:g}" for modality, rate in zip(MODALITIES, rates, strict=True))
    return Condition(name, group, sum(rates) / 3, any(0 < rate < 1 for rate in rates), MODALITIES, rates)


def erase(batch: MultimodalBatch, condition: Condition, seed: int) -> MultimodalBatch:
    """Apply a condition.

    Args:
        batch: Samples with all their data.
        condition: What to take away.
        seed: Of the masks. A sample's masks depend on it and on the sample's key only.

    Returns:
        The samples with what is left; `complete` is the batch as it was.
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
    """Choose modalities that go.

    Args:
        draws: A random number for each modality [B, 3].
        number: How many go [B]: those with the smallest draws.

    Returns:
        What stays, bool [B, 3].
    """
    # stable: equal draws must not be told apart by the device
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
    """Take away parts and modalities, each sample by its own rates.

    A position goes if its random number lies below the rate: what is gone at one rate is gone at every higher one.

    Args:
        batch: Samples with all their data.
        rates: Share of the content to be erased in each modality [B, 3], on any device.
        present: Modalities that stay, bool [B, 3].
        kind: Of the erasure (`Condition`).
        seed: Of the masks.
        epoch: Fresh masks for each.
        spare: Leave a sample as it is if nothing of it would be left: it would teach a model nothing.

    Returns:
        The samples with what is left; `complete` is the batch as it was.
    """
    # float32 whatever the model computes with: its precision must not change what is missing
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
            # the first word's step is 1 where the other modalities have a row for [CLS], 0 elsewhere
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
    """Positions to which the other modalities have one, too [B, T].

    They are the words of a text, and [CLS] and [SEP] as well where audio or vision have rows for them: files that MMSA
    has aligned have rows of zeros there.
    """
    lengths = torch.stack([batch.modalities[name].valid.sum(1) for name in MODALITIES], 1)
    rows_for_all = lengths[:, 1:].amax(1) >= lengths[:, 0]
    return modality.valid & (rows_for_all[:, None] | ~modality.special)


def _step(modality: Modality, counted: Tensor) -> Tensor:
    """How far each position is behind the first counted one, negative before it, long [B, T]."""
    first = counted.int().argmax(1, keepdim=True)
    return torch.arange(modality.valid.shape[1], device=first.device)[None] - first


def _block(key: Tensor, name: str, place: Tensor, length: Tensor, rate: Tensor, seed: int, epoch: int) -> Tensor:
    """One contiguous block of `length` [B, 1] places, `place` being 0 for the first of them [B, T]."""
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
    """How data goes missing in training, validation and test. A subclass is a dataclass with a `seed`."""

    def prepare(self, keys: Tensor, split: str) -> None:  # noqa: B027 - most protocols have nothing to prepare
        """Learn which samples a split has, for protocols that must meet a rate over all of them.

        Args:
            keys: Of all samples, long [N].
            split: `train`, `valid` or `test`.
        """

    @abstractmethod
    def training(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        """Take away what training does without, drawn anew in every epoch.

        Args:
            batch: Samples with all their data.
            epoch: Of the training.
        """

    def validation(self, batch: MultimodalBatch) -> MultimodalBatch:
        """Take away what training would, but the same in every epoch.

        Args:
            batch: Samples with all their data.
        """
        return self.training(batch, epoch=-1)

    @abstractmethod
    def conditions(self) -> list[Condition]:
        """The conditions of the test, in the order of their rows."""
