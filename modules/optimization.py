"""Optimizer groups and the learning-rate schedule."""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

Schedule = Literal["cosine", "constant"]


def check_optimization(learning_rate: float, weight_decay: float, schedule: str, **fractions: float) -> None:
    """Refuse settings of which no optimizer or schedule can be made.

    Args:
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay per unit of learning rate.
        schedule: What comes after the warm-up.
        fractions: Shares of the run or of the rate, by the names of their settings.

    Raises:
        ValueError: Names the setting and its value.
    """
    for name, value in fractions.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: must lie between 0 and 1, but is {value}")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate: must be above 0, but is {learning_rate}")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay: must be at least 0, but is {weight_decay}")
    if schedule not in get_args(Schedule):
        raise ValueError(f"schedule: must be 'cosine' or 'constant', but is {schedule!r}")


def adamw(model: nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float]) -> AdamW:
    """Build AdamW with weight decay on matrices only, not on norms and biases.

    Args:
        model: Parameters that need no gradient are left out.
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay per unit of learning rate.
        betas: Decay rates of the two moments.

    Returns:
        The optimizer.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            # a parameter that ZeRO-3 has partitioned is flat and keeps its shape elsewhere
            shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
            (decayed if len(shape) >= 2 else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return AdamW([group for group in groups if group["params"]], lr=learning_rate, betas=betas)


def warmup_schedule(
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    total_steps: float,
    warmup_fraction: float,
    final_fraction: float,
) -> LambdaLR:
    """Build a schedule that is stepped after every optimizer step.

    Args:
        optimizer: To be scheduled.
        schedule: "cosine" falls from the peak to `final_fraction` of it at the last step, "constant" stays at the peak.
        total_steps: Optimizer steps of the whole run; infinite when the trainer has no limit.
        warmup_fraction: Share of the steps in which the rate rises linearly to the peak.
        final_fraction: Last rate divided by the peak, for "cosine".

    Returns:
        The scheduler.

    Raises:
        ValueError: The run has no known length, and the schedule needs one.
    """
    return LambdaLR(optimizer, warmup_factor(schedule, total_steps, warmup_fraction, final_fraction))


def warmup_factor(
    schedule: Schedule, total_steps: float, warmup_fraction: float, final_fraction: float
) -> Callable[[int], float]:
    """Make what `warmup_schedule` multiplies the peak rate with at each step; its arguments and errors are the same."""
    if not math.isfinite(total_steps):
        if schedule == "cosine" or warmup_fraction > 0:
            raise ValueError(
                "schedule: 'cosine' and a warm-up need the length of the run; set trainer.max_steps or"
                " trainer.max_epochs, or use schedule=constant with warmup_fraction=0"
            )
        total_steps = 1
    warmup = round(warmup_fraction * total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if schedule == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor
