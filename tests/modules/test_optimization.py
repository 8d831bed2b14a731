"""Weight decay on matrices only; the schedule's shape."""

import itertools
import math

import pytest
import torch
from torch import nn

from saccade.modules.optimization import Schedule, adamw, warmup_schedule


def test_norms_and_biases_are_not_decayed_and_frozen_weights_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    model[2].weight.requires_grad_(False)
    decayed, plain = adamw(model, 0.1, 0.3, (0.8, 0.9)).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3)]
    assert [tuple(p.shape) for p in plain["params"]] == [(4,), (4,), (4,)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert decayed["betas"] == (0.8, 0.9)


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
    with pytest.raises(ValueError, match="schedule: 'cosine' and a warm-up need the length of the run"):
        warmup_schedule(optimizer, schedule, math.inf, warmup, 0.1)
    assert warmup_schedule(optimizer, "constant", math.inf, 0.0, 0.1).get_last_lr() == [2.0]
