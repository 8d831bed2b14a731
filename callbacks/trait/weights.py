"""Load other weights into a module during training, and reset its optimizers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor


def place_weights(module: LightningModule, state: Mapping[str, Tensor], optimizers: Iterable[Any]) -> None:
    """Load other weights into a module while it is being trained, and reset its optimizers.

    DeepSpeed's ZeRO stages 1 and 2 keep the whole weights in the module, in the precision of training. Their optimizers
    update flat float32 copies, which are divided among the ranks, and write them over the module's weights. So these
    copies are made again from the new weights; otherwise the first step of a child would restore the weights of the
    previous trial. The float32 digits beyond the precision of training are lost: a child starts from its parent's
    weights as they were evaluated.

    Args:
        module: Its parameters are changed in place, because DDP and DeepSpeed hold the same tensors.
        state: All weights of the module.
        optimizers: Optimizers of the trainer, torch's or DeepSpeed's. Every rank must call this.
    """
    module.load_state_dict(dict(state))
    given = list(optimizers)
    for optimizer in given:
        refresh = getattr(optimizer, "refresh_fp32_params", None)  # a method of DeepSpeed's optimizers in all stages
        if refresh is not None:
            refresh()
    clear_state(given)


def clear_state(optimizers: Iterable[Any]) -> None:
    """Clear the state of optimizers: moments and step counts, but not the learning rate.

    DeepSpeed wraps the optimizer that holds the state, so the innermost one is cleared. The loss scale of 16-bit
    floating point does not depend on the weights and is kept.

    Args:
        optimizers: Optimizers of the trainer.
    """
    for optimizer in optimizers:
        inner = optimizer
        while hasattr(inner, "optimizer"):
            inner = inner.optimizer
        inner.state.clear()
        for group in inner.param_groups:
            if "step" in group:  # fused optimizers count the steps of all weights together
                group["step"] = 0
