"""The weights between which a search goes back and forth, and an optimizer that remembers none of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor


def place_weights(module: LightningModule, state: Mapping[str, Tensor], optimizers: Iterable[Any]) -> None:
    """Gives a module other weights while it is being trained, and its optimizers a fresh start from there.

    DeepSpeed's ZeRO stages 1 and 2 leave the whole weights in the module, in the precision of training, but step on
    float32 copies of their own, flat and divided among the ranks, and then write those over the module's. So the
    copies are taken anew from the weights; without that, the first step of a child would bring back the trial before
    it. What is lost is what float32 holds beyond the precision of training: a child goes on from its parent as it was
    measured.

    Args:
        module: Its parameters are written in place: DDP and DeepSpeed hold the same tensors.
        state: All of its weights.
        optimizers: Those of the trainer, torch's or DeepSpeed's. Every rank calls this.
    """
    module.load_state_dict(dict(state))
    given = list(optimizers)
    for optimizer in given:
        refresh = getattr(optimizer, "refresh_fp32_params", None)  # DeepSpeed's name in all its stages
        if refresh is not None:
            refresh()
    forget(given)


def forget(optimizers: Iterable[Any]) -> None:
    """Empties what optimizers remember of former steps: moments and counts, not the learning rate.

    The optimizer around which DeepSpeed puts its own keeps its state by the flat float32 copies, so that it has to be
    found first. The scale of the loss in 16-bit floating point is no memory of the weights and stays.

    Args:
        optimizers: Those of the trainer.
    """
    for optimizer in optimizers:
        inner = optimizer
        while hasattr(inner, "optimizer"):
            inner = inner.optimizer
        inner.state.clear()
        for group in inner.param_groups:
            if "step" in group:  # where fused optimizers count for all weights together
                group["step"] = 0
