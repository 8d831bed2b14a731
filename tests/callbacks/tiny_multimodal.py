"""A multimodal model of a few weights, samples for it, and evaluations that one and two processes must agree on."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from saccade.datamodules.multimodal.batch import MODALITIES, Modality, MultimodalBatch
from saccade.datamodules.multimodal.missing.base import Condition, MissingProtocol

WIDTHS = {"text": 4, "audio": 3, "vision": 2}


def samples(count: int, length: int = 9, seed: int = 0, classes: int | None = None) -> MultimodalBatch:
    """Sequences of unequal length, [CLS] and [SEP] around the text; labels in steps of 0.2, some of them 0."""
    source = torch.Generator().manual_seed(seed)
    label = torch.randint(-15, 16, (count,), generator=source) / 5
    if classes is not None:
        label = torch.randint(classes, (count,), generator=source)
    ends = torch.randint(4, length + 1, (count, 1), generator=source)
    modalities = {}
    for name, width in WIDTHS.items():
        valid = torch.arange(length)[None] < ends
        special = torch.zeros_like(valid)
        if name == "text":
            special[:, 0] = True
            special.scatter_(1, ends - 1, True)
        values = torch.randn(count, length, width, generator=source) + label.float()[:, None, None] / 2
        modalities[name] = Modality(values * valid[..., None], valid, valid.float(), special)
    return MultimodalBatch(modalities, label, torch.arange(count) * 7919 + 5)


def take(batch: MultimodalBatch, rows: list[int]) -> MultimodalBatch:
    modalities = {
        name: Modality(one.values[rows], one.valid[rows], one.available[rows], one.special[rows])
        for name, one in batch.modalities.items()
    }
    return MultimodalBatch(modalities, batch.label[rows], batch.key[rows])


class Samples(Dataset):
    def __init__(self, batch: MultimodalBatch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch)

    def __getitem__(self, index: int) -> int:
        return index


def loader(batch: MultimodalBatch, batch_size: int = 3, shuffle: bool = False) -> DataLoader:
    return DataLoader(Samples(batch), batch_size=batch_size, shuffle=shuffle, collate_fn=lambda rows: take(batch, rows))


@dataclass
class Prediction:
    value: Tensor
    weights: Tensor | None = None


class TinyMultimodal(LightningModule):
    """Means of what is available, mixed by observed shares."""

    def __init__(self, classes: int | None = None, weighted: bool = True) -> None:
        super().__init__()
        self.task = "regression" if classes is None else "classification"
        self.label_range, self.classes, self.weighted = 3.0, classes, weighted
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.heads = nn.ModuleDict({name: nn.Linear(width, classes or 1) for name, width in WIDTHS.items()})
            self.dropout = nn.Dropout(0.5)

    def forward(self, batch: MultimodalBatch) -> Prediction:
        if batch.complete is not None or (batch.label is not None and not self.training and not self.validating):
            raise RuntimeError("the model was given the answer")
        if not self.training:
            torch.rand(1)  # what a model that samples does to the global generator
        results = []
        for name, one in batch.modalities.items():
            mask = (one.available * one.valid)[..., None]
            mean = (one.values * mask).sum(1) / mask.sum(1).clamp(min=1)
            results.append(self.heads[name](self.dropout(mean)))
        weights = torch.softmax(4 * batch.observed, 1)
        value = (torch.stack(results, 1) * weights[..., None]).sum(1)
        return Prediction(value if self.classes else value[:, 0], weights if self.weighted else None)

    validating = False

    def step(self, batch: MultimodalBatch) -> Tensor:
        self.validating = True
        value = self(MultimodalBatch(batch.modalities, batch.label, batch.key)).value
        self.validating = False
        return nn.functional.cross_entropy(value, batch.label) if self.classes else (value - batch.label).abs().mean()

    def training_step(self, batch: MultimodalBatch, index: int) -> Tensor:
        return self.step(batch)

    def validation_step(self, batch: MultimodalBatch, index: int) -> None:
        self.log("val_loss", self.step(batch), batch_size=len(batch))

    def test_step(self, batch: MultimodalBatch, index: int) -> None:
        self.log("test_loss", self.step(batch), batch_size=len(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def condition(name: str, group: str, x: float = 0.0, rate: float = 0.0, present: tuple = MODALITIES) -> Condition:
    return Condition(name=name, group=group, x=x, random=rate > 0, present=present, rates=(rate,) * 3)


def bench() -> list[Condition]:
    curve = [condition(f"r={rate}", "intra", rate, rate) for rate in (0.0, 0.3, 0.6)]
    patterns = [
        condition("+".join(kept), "inter", present=kept) for kept in (("text",), ("audio", "vision"), MODALITIES)
    ]
    mixed = [
        condition(f"{kept} r={rate}", "mixed", rate, rate, (kept,))
        for kept in ("text", "audio")
        for rate in (0.2, 0.4, 0.6)
    ]
    return [*curve, *patterns, *mixed]


@dataclass
class TinyProtocol(MissingProtocol):
    """Two rates and the complete data, three patterns, two patterns at three rates."""

    chosen: list[Condition] = field(default_factory=bench)

    def training(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        return batch

    def conditions(self) -> list[Condition]:
        return self.chosen


SHARES = {
    # the distributed sampler pads 7 samples to 8: its duplicate must not count twice
    "padded": 7,
    # one sample: the other rank is given a copy
    "one": 1,
    # 11 samples, of which the second rank has none
    "empty": 11,
}


class FirstRankOnly(IterableDataset):
    """Batches of 3 for the first rank, none for others; without a length, which Lightning would compare over ranks."""

    def __init__(self, batch: MultimodalBatch, rank: int) -> None:
        self.batch, self.rank = batch, rank

    def __iter__(self) -> Iterator[MultimodalBatch]:
        if self.rank == 0:
            rows = list(range(len(self.batch)))
            yield from (take(self.batch, rows[start : start + 3]) for start in range(0, len(rows), 3))
