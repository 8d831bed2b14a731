"""Run something in the middle of a training without changing the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode without gradients, and restore afterwards what training depends on.

    Restored are the mode of every submodule (a frozen part may be in evaluation mode while the rest trains), and the
    random states of Python, NumPy and torch on every device; also after an exception.

    Args:
        module: The module to use in the block.
    """
    modes = [(part, part.training) for part in module.modules()]
    failure: BaseException | None = None
    with isolate_rng(), torch.no_grad():
        module.eval()
        try:
            yield
        except BaseException as error:  # isolate_rng does not restore the states after an exception
            failure = error
    for part, mode in modes:
        part.training = mode
    if failure is not None:
        raise failure


@contextmanager
def where_it_trained(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Move a module back to the device of its training, for the work of a callback in ``on_fit_end``.

    Lightning moves the module to the CPU before it calls ``on_fit_end``. There, NCCL cannot reduce tensors, and timings
    are not those of the training device.

    Args:
        trainer: The trainer, at the end of its fit.
        module: The module; it is moved to the CPU again at the end of the block.
    """
    module.to(trainer.strategy.root_device)
    try:
        yield
    finally:
        module.cpu()
