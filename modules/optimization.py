"""AdamW with parameter groups, and the learning-rate schedule."""

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from saccade.common.checks import check_number, check_share

Schedule = Literal["cosine", "constant"]


class ParameterGroup(NamedTuple):
    """What the parameters of an optimizer group have in common.

    Attributes:
        learning_rate: Peak learning rate.
        decays: Whether weight decay applies. Norms and biases never decay, whatever this says.
        part: Part of the model, for a schedule that treats parts differently.
    """

    learning_rate: float
    decays: bool = True
    part: str = ""


def check_positive_rate(name: str, value: float) -> None:
    """Validate a learning rate or a multiplier of one: finite and above 0.

    Args:
        name: Name of the setting.
        value: Its value.

    Raises:
        ValueError: The value is not a number, not finite, or not above 0.
    """
    check_number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be above 0, got {value}: choose a positive finite number.")


def check_weight_decay(name: str, value: float) -> None:
    """Validate a weight decay: finite and at least 0.

    Args:
        name: Name of the setting.
        value: Its value.

    Raises:
        ValueError: The value is not a number, not finite, or negative.
    """
    check_number(name, value)
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be at least 0, got {value}: choose 0 for no decay, or for example 0.1.")


def check_optimization(learning_rate: float, weight_decay: float, schedule: str, **fractions: float) -> None:
    """Validate the settings of an optimizer and its schedule.

    Args:
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay per unit of learning rate.
        schedule: What follows the warm-up.
        fractions: Fractions of the run or of the peak rate, by the names of their settings.

    Raises:
        ValueError: A setting is out of range; the message names it.
    """
    for name, value in fractions.items():
        check_share(name, value)
    check_positive_rate("learning_rate", learning_rate)
    check_weight_decay("weight_decay", weight_decay)
    if schedule not in get_args(Schedule):
        raise ValueError(f"schedule must be cosine or constant, got {schedule!r}: choose one of them.")


def parameter_groups(
    model: nn.Module, group_of: Callable[[str], ParameterGroup]
) -> dict[ParameterGroup, list[nn.Parameter]]:
    """Sort the trainable parameters of a model into groups. Only matrices decay, norms and biases do not.

    Args:
        model: The model; parameters that need no gradient are left out.
        group_of: Returns the group of a parameter from its name.

    Returns:
        The parameters of each group, in the order of the model.
    """
    groups: dict[ParameterGroup, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # a parameter that ZeRO-3 has partitioned is flat; its full shape is in `ds_shape`
            shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
            group = group_of(name)
            group = group._replace(decays=group.decays and len(shape) >= 2)
            groups.setdefault(group, []).append(parameter)
    return groups


def adamw(
    groups: Mapping[ParameterGroup, list[nn.Parameter]], weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)
) -> AdamW:
    """Build AdamW for the groups of `parameter_groups`.

    Args:
        groups: Parameters of each group.
        weight_decay: Decoupled weight decay per unit of learning rate, for the groups that decay.
        betas: Decay rates of the two moments.

    Returns:
        The optimizer, with one parameter group for each entry of `groups`, in the same order.
    """
    return AdamW(
        [
            {"params": members, "lr": group.learning_rate, "weight_decay": weight_decay if group.decays else 0.0}
            for group, members in groups.items()
        ],
        betas=betas,
    )


def warmup_schedule(
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    total_steps: float,
    warmup_fraction: float,
    final_fraction: float,
) -> LambdaLR:
    """Build a learning-rate scheduler that is stepped after every optimizer step.

    Args:
        optimizer: The optimizer.
        schedule: "cosine" decays from the peak to `final_fraction` of it at the last step, "constant" stays at the
            peak.
        total_steps: Optimizer steps of the whole run; infinite when the trainer has no limit.
        warmup_fraction: Fraction of the steps in which the rate rises linearly to the peak.
        final_fraction: Last rate divided by the peak, for "cosine".

    Returns:
        The scheduler.

    Raises:
        ValueError: The length of the run is unknown, and the schedule needs it.
    """
    return LambdaLR(optimizer, schedule_multiplier(schedule, total_steps, warmup_fraction, final_fraction))


def schedule_multiplier(
    schedule: Schedule, total_steps: float, warmup_fraction: float, final_fraction: float
) -> Callable[[int], float]:
    """Return the learning-rate multiplier of `warmup_schedule` as a function of the step.

    Args:
        schedule: As for `warmup_schedule`.
        total_steps: As for `warmup_schedule`.
        warmup_fraction: As for `warmup_schedule`.
        final_fraction: As for `warmup_schedule`.

    Returns:
        A function from the number of finished steps to a multiplier of the peak rate, 0 to 1.

    Raises:
        ValueError: The length of the run is unknown, and the schedule needs it.
    """
    if not math.isfinite(total_steps):
        if schedule == "cosine" or warmup_fraction > 0:
            raise ValueError(
                f"schedule must be constant and warmup_fraction 0 in a run without a length, got {schedule!r} and"
                f" {warmup_fraction}: set trainer.max_steps or trainer.max_epochs, or change the two settings."
            )
        total_steps = 1
    warmup = round(warmup_fraction * total_steps)

    def multiplier(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if schedule == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))

    return multiplier
