"""Parameter groups, weight decay on matrices only, and the shape of the schedule."""

import itertools
import math

import pytest
import torch
from torch import nn

from saccade.modules.optimization import ParameterGroup, Schedule, adamw, parameter_groups, warmup_schedule


def test_norms_and_biases_are_not_decayed_and_frozen_weights_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    model[2].weight.requires_grad_(False)
    groups = parameter_groups(model, lambda name: ParameterGroup(0.1))
    decayed, plain = adamw(groups, 0.3, (0.8, 0.9)).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3)]
    assert [tuple(p.shape) for p in plain["params"]] == [(4,), (4,), (4,)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert decayed["betas"] == (0.8, 0.9)


def test_groups_follow_names_rates_and_the_full_shape_of_partitioned_weights() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2))
    # ZeRO-3 leaves a flat parameter and keeps its full shape in `ds_shape`
    model[0].weight = nn.Parameter(torch.zeros(12))
    model[0].weight.ds_shape = torch.Size((4, 3))  # type: ignore[attr-defined]
    groups = parameter_groups(model, lambda name: ParameterGroup(0.1 if name[0] == "0" else 0.2, name[0] == "0"))
    assert list(groups) == [ParameterGroup(0.1, True), ParameterGroup(0.2, False)]
    assert [[tuple(p.shape) for p in members] for members in groups.values()] == [[(12,)], [(2, 4), (2,)]]
    assert [group["lr"] for group in adamw(groups, 0.3).param_groups] == [0.1, 0.2]


def _rates(schedule: Schedule, steps: int, warmup: float, final: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = warmup_schedule(optimizer, schedule, steps, warmup, final)
    rates = []
    for _ in range(steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_rises_falls_and_ends_at_its_share() -> None:
    rates = _rates("cosine", 100, 0.1, 0.25)
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(0.5 * (2.0 + 0.5))
    assert rates[100] == pytest.approx(0.5)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_constant_stays_at_the_peak() -> None:
    assert _rates("constant", 10, 0.2, 0.1) == [1.0] + [2.0] * 10
    assert _rates("constant", 5, 0.0, 0.1) == [2.0] * 6


@pytest.mark.parametrize(("schedule", "warmup"), [("cosine", 0.0), ("constant", 0.1)])
def test_a_run_without_end_needs_a_constant_rate(schedule: Schedule, warmup: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    with pytest.raises(ValueError, match="schedule must be constant and warmup_fraction 0 in a run without a length"):
        warmup_schedule(optimizer, schedule, math.inf, warmup, 0.1)
    assert warmup_schedule(optimizer, "constant", math.inf, 0.0, 0.1).get_last_lr() == [2.0]
