"""A small multimodal data module and models for tests."""

from dataclasses import replace

import torch

from saccade.datamodules import MultimodalBatch, MultimodalSentiment, SyntheticSentiment
from saccade.datamodules.multimodal.batch import Modality
from saccade.datamodules.multimodal.missing.base import Condition, erase
from saccade.modules.multimodal.base import DataFacts, MultimodalModule

CLIPS = (96, 32, 48)


def tiny_data(**settings) -> MultimodalSentiment:
    generator = SyntheticSentiment(clips=CLIPS, text_width=12, audio_width=4, vision_width=6)
    data = MultimodalSentiment(**{"generator": generator, "batch_size": 32, **settings})
    data.prepare_data()
    data.setup("fit")
    return data


def built(module: MultimodalModule, data: MultimodalSentiment) -> MultimodalModule:
    module.build(DataFacts.of(data))
    return module.eval()


def first_batch(data: MultimodalSentiment) -> MultimodalBatch:
    return next(iter(data.test_dataloader()))


def with_missing(batch: MultimodalBatch, rate: float = 0.4, present=("text", "audio", "vision")) -> MultimodalBatch:
    return erase(batch, Condition("x", "x", rates=(rate,) * 3, present=present), seed=0)


def steps(module: MultimodalModule, data: MultimodalSentiment, count: int) -> list[float]:
    """Losses of a few optimizer steps on corrupted batches."""
    batches = [with_missing(first_batch(data), 0.3, kept) for kept in (("text", "audio", "vision"), ("audio",))]
    torch.manual_seed(3)
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3)
    trace = []
    for step in range(count):
        loss = torch.stack(list(module.losses(batches[step % 2]).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trace.append(float(loss.detach()))
    return trace


def longer(batch: MultimodalBatch, count: int) -> MultimodalBatch:
    """The same samples with more padding, which holds something."""

    def grown(part: torch.Tensor, value: float = 0) -> torch.Tensor:
        more = torch.full((part.shape[0], count, *part.shape[2:]), value, dtype=part.dtype)
        return torch.cat([part, more], 1)

    modalities = {
        name: Modality(grown(part.values, 9), grown(part.valid), grown(part.available), grown(part.special))
        for name, part in batch.modalities.items()
    }
    return replace(batch, modalities=modalities, complete=None)


def shuffled(batch: MultimodalBatch, order: torch.Tensor) -> MultimodalBatch:
    """The same samples in another order, or some of them."""
    modalities = {
        name: Modality(part.values[order], part.valid[order], part.available[order], part.special[order])
        for name, part in batch.modalities.items()
    }
    label = None if batch.label is None else batch.label[order]
    return MultimodalBatch(modalities, label, batch.key[order])
