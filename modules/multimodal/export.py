"""Export a trained multimodal model as a stand-alone program with the masks as inputs, and load such a program."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.export import Dim

from saccade.common.files import replacing_folder
from saccade.datamodules.multimodal.batch import MODALITIES, Modality, MultimodalBatch

PROGRAM, SETTINGS = "model.pt2", "settings.json"
_PARTS = ("values", "valid", "available", "special")


class _OfTensors(nn.Module):
    """The model as a function of tensors, four for each modality."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        size = len(_PARTS)
        modalities = {
            name: Modality(*tensors[size * place : size * (place + 1)]) for place, name in enumerate(MODALITIES)
        }
        key = torch.zeros_like(tensors[1][:, 0], dtype=torch.int64)
        found = self.model(MultimodalBatch(modalities, None, key))
        return (found.value,) if found.weights is None else (found.value, found.weights)


def inputs_of(batch: MultimodalBatch) -> tuple[Tensor, ...]:
    """Return the inputs of an exported program in their order.

    Args:
        batch: A batch of any size and lengths.

    Returns:
        For each of text, audio and vision: features, float [B, T, D], or token ids, long [B, T]; valid, bool [B, T],
        False at padding; availability, float 0 to 1 [B, T]; special, bool [B, T], True at [CLS] and [SEP].
    """
    return tuple(getattr(batch.modalities[name], part) for name in MODALITIES for part in _PARTS)


def write_program(model: Any, folder: Path) -> None:
    """Write `model.pt2` (torch.export, any batch size and lengths up to 4096) and `settings.json`.

    If torch.export cannot trace the text encoder, or the weights are partitioned over ranks, a warning is issued and
    nothing is written, so that a finished run does not fail.

    Args:
        model: A built `saccade.modules.MultimodalModule`.
        folder: Target folder. An existing one is replaced; it is never left half written.

    Raises:
        ValueError: The folder cannot be written.
    """
    facts = model.facts
    tokens = model.text_encoder_settings is not None
    settings = {
        "model": type(model).__name__,
        "task": facts.task,
        "label_range": facts.label_range,
        "classes": facts.classes,
        "widths": facts.widths,
        "text": "tokens" if tokens else "features",
        "inputs": [f"{name}.{part}" for name in MODALITIES for part in _PARTS],
        "outputs": ["value", "weights"],
    }
    try:
        if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
            raise TypeError("its weights are partitioned over ranks")
        program = _program(model, _example(facts.widths, tokens))
    except Exception as error:  # tracing fails with many types of errors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        rank_zero_warn(f"{PROGRAM} is not exported because torch.export cannot trace the model ({reason}).")
        return
    with replacing_folder(folder) as unfinished:
        torch.export.save(program, unfinished / PROGRAM)
        (unfinished / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _example(widths: dict[str, int], tokens: bool) -> tuple[Tensor, ...]:
    modalities = {}
    for name, length in zip(MODALITIES, (5, 6, 7), strict=True):
        shape = (2, length) if name == "text" and tokens else (2, length, widths[name])
        values = torch.ones(shape, dtype=torch.int64 if len(shape) == 2 else torch.float32)
        valid = torch.ones(2, length, dtype=torch.bool)
        modalities[name] = Modality(values, valid, valid.float(), torch.zeros_like(valid))
    return inputs_of(MultimodalBatch(modalities, None, torch.zeros(2, dtype=torch.int64)))


def _program(model: Any, example: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    batch = Dim("batch", max=4096)
    limits = dict.fromkeys(MODALITIES, 4096)
    if model.text_encoder_settings is not None:
        limits["text"] = min(4096, getattr(model.text_encoder.model.config, "max_position_embeddings", 4096))
    lengths = {name: Dim(f"{name}_length", max=limit) for name, limit in limits.items()}
    shapes = tuple({0: batch, 1: lengths[name]} for name in MODALITIES for _ in _PARTS)
    # finding an operation of symbolic sizes in the cache of its results takes longer than computing its result
    no_cache = torch._dynamo.config.patch(fake_tensor_cache_enabled=False)
    training, device, owner = model.training, model.device, model._trainer
    # detached during tracing, which would otherwise include the trainer
    model._trainer = None
    try:
        with torch.no_grad(), no_cache:
            return torch.export.export(_OfTensors(model.eval().cpu()), example, dynamic_shapes=(shapes,))
    finally:
        model._trainer = owner
        model.to(device).train(training)


def load_exported(folder: str | Path) -> Callable[[MultimodalBatch], tuple[Tensor, ...]]:
    """Load an exported program.

    Args:
        folder: A folder that `save_pretrained` wrote.

    Returns:
        A function of a batch, which returns predictions [B] or logits [B, C] and, if the model has them, the weights of
        the modalities [B, 3].

    Raises:
        ValueError: The folder contains no program.
    """
    path = Path(folder) / PROGRAM
    if not path.is_file():
        raise ValueError(f"folder must contain {PROGRAM}, got {folder}: give the folder that fit exported.")
    program = torch.export.load(path).module()

    def run(batch: MultimodalBatch) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = program(*inputs_of(batch))
        return found

    return run
