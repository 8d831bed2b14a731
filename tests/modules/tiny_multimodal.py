"""A small multimodal data module and models for tests."""

import torch

from saccade.datamodules import MultimodalBatch, MultimodalSentiment, SyntheticSentiment
from saccade.datamodules.missing_data import Condition, erase
from saccade.modules.multimodal import DataFacts, MultimodalModule

CLIPS = (96, 32, 48)


def tiny_data(**settings) -> MultimodalSentiment:
    generator = SyntheticSentiment(clips=CLIPS, text_width=12, audio_width=4, vision_width=6)
    data = MultimodalSentiment(**{"generator": generator, "batch_size": 32, **settings})
    data.prepare_data()
    data.setup("fit")
    return data


def facts_of(data: MultimodalSentiment) -> DataFacts:
    return DataFacts(
        dict(data.widths),
        {name: pair[0] for name, pair in data.statistics.items()},
        {name: pair[1] for name, pair in data.statistics.items()},
        data.task,
        data.label_range,
        data.classes,
    )


def built(module: MultimodalModule, data: MultimodalSentiment) -> MultimodalModule:
    module.build(facts_of(data))
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
