"""Running something in the middle of a training without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Puts a module in evaluation mode without gradients, and restores what training depends on afterwards.

    Restored, also after an exception: the mode of every submodule (a frozen part may be in evaluation mode while
    the rest trains), and the random states of Python, NumPy and torch on every device.

    Args:
        module: The module that is about to be used.
    """
    modes = [(part, part.training) for part in module.modules()]
    failure: BaseException | None = None
    with isolate_rng(), torch.no_grad():
        module.eval()
        try:
            yield
        except BaseException as error:  # isolate_rng does not restore when an exception passes through it
            failure = error
    for part, mode in modes:
        part.training = mode
    if failure is not None:
        raise failure


@contextmanager
def where_it_trained(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Puts a module back on the device of its training for what a callback does in ``on_fit_end``.

    Lightning has moved it to the CPU by then: there NCCL cannot add what the ranks found, and nothing is as fast as
    where it will be used.

    Args:
        trainer: Whose fit has ended.
        module: Left on the CPU again.
    """
    module.to(trainer.strategy.root_device)
    try:
        yield
    finally:
        module.cpu()
