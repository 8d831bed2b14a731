"""What every compressor keeps to, whatever its method."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from jsonargparse import ArgumentParser

from saccade.inference import CacheCompressor
from saccade.inference.compression.observation import Observation
from tests.inference.compression.compressors import COMPRESSORS, check_plan, observation
from tests.support.models import tiny_model


@pytest.mark.parametrize("name", COMPRESSORS)
def test_plans_keep_to_the_budget(name) -> None:
    for seed, images in enumerate(((), ((20, 250), (250, 420), (440, 600)), ((0, 630),), ((620, 640),))):
        for budget in (0.15, 0.2, 0.55, 1):
            seen = observation(seed, heads=(2, 3, 1), images=images)
            compressor = dataclasses.replace(COMPRESSORS[name], budget=budget)
            if not compressor.window:
                seen = Observation.unobserved(seen.heads, seen.visual, seen.segments)
            plan = compressor.plan(seen)
            check_plan(plan, seen, budget)
            assert compressor.dynamic or not any(map(any, plan.slots))
            if budget == 1:
                assert all(kept.equal(torch.arange(640)) for layer in plan.kept for kept in layer)
            elif not compressor.dynamic and compressor.budget == budget:
                assert plan.entries == int(budget * seen.units * seen.length + 1e-6), "nothing is left over"


@pytest.mark.parametrize("name", COMPRESSORS)
def test_settings_are_read_from_yaml(name) -> None:
    given = COMPRESSORS[name]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--compressor", type=CacheCompressor)
    kind = f"{type(given).__module__}.{type(given).__name__}"
    read = parser.instantiate(parser.parse_args([f"--compressor={kind}", "--compressor.budget=0.3"])).compressor
    assert type(read) is type(given)
    assert read.budget == 0.3


@pytest.mark.parametrize("name", COMPRESSORS)
def test_models_with_windows_are_refused(name) -> None:
    given = COMPRESSORS[name]
    given.check(tiny_model())
    model = tiny_model("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(ValueError, match=r"^model must have full attention in every layer for \w+, got Qwen2ForC"):
        given.check(model)
