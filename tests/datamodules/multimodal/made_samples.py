"""Samples whose masks are easy to count: aligned, without rows of zeros, of the size of CMU-MOSI's test part."""

from __future__ import annotations

from dataclasses import replace

import torch

from saccade.datamodules.multimodal.batch import MODALITIES, Modality, MultimodalBatch

SAMPLES = 686


def samples(count: int = SAMPLES, tokens: bool = False, length: int = 30) -> MultimodalBatch:
    """Aligned samples without rows of zeros; the text has a [CLS] and a [SEP]."""
    draw = torch.Generator().manual_seed(5)
    lengths = torch.randint(8, length - 1, (count,), generator=draw)
    made = {}
    for name in MODALITIES:
        ends = lengths + (2 if name == "text" else 0)
        valid = torch.arange(length)[None] < ends[:, None]
        special = torch.zeros_like(valid)
        values = torch.rand(count, length, 4, generator=draw) + 0.5
        if name == "text":
            special[:, 0] = True
            special[torch.arange(count), ends - 1] = True
            if tokens:
                values = torch.randint(1000, 2000, (count, length), generator=draw)
        values = values.masked_fill(~(valid if values.dim() == 2 else valid[..., None]), 0)
        made[name] = Modality(values, valid, valid.float(), special)
    keys = torch.randint(0, 2**62, (count,), generator=draw)
    return MultimodalBatch(made, torch.zeros(count), keys)


def with_rows_for_specials(batch: MultimodalBatch) -> MultimodalBatch:
    """The samples as in a file that MMSA aligned: row t is token t's, and those of [CLS] and [SEP] are zeros."""
    text, made = batch.modalities["text"], {}
    for name in ("audio", "vision"):
        values = batch.modalities[name].values.roll(1, 1)
        available = (text.valid & (values != 0).any(-1)).float()
        made[name] = Modality(values, text.valid, available, torch.zeros_like(text.special))
    return replace(batch, modalities={**batch.modalities, **made})


def rows(batch: MultimodalBatch, chosen: torch.Tensor, device: str = "cpu") -> MultimodalBatch:
    """Some of the samples, without labels."""
    parts = {
        name: Modality(*(part[chosen].to(device) for part in (item.values, item.valid, item.available, item.special)))
        for name, item in batch.modalities.items()
    }
    return MultimodalBatch(parts, None, batch.key[chosen].to(device))


def erased(batch: MultimodalBatch, name: str) -> torch.Tensor:
    """Content that is not there, [B, T]."""
    modality = batch.modalities[name]
    return (modality.available == 0) & modality.content


def rate(batch: MultimodalBatch, name: str) -> float:
    """Share of the content that is not there."""
    return float(erased(batch, name).sum() / batch.modalities[name].content.sum())
