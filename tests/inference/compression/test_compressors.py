"""What every compressor keeps to, whatever its method."""

from __future__ import annotations

import dataclasses
import json
import pickle

import pytest
import torch
from jsonargparse import ArgumentParser

from saccade.inference import CacheCompressor, FullKV, HeadKV
from saccade.inference.compression.observation import Observation
from tests.inference.compression.compressors import COMPRESSORS, check_plan, observation
from tests.support.models import tiny_model

IMAGES = ((), ((20, 250), (250, 420), (440, 600)), ((0, 630),), ((620, 640),))

WRONG = {
    "budget": 0, "window": -1, "alive_share": 2, "pool": 4, "pool_kind": "sum", "beta": 0.5, "alpha": -1, "merge": "no",
    "recent_share": 2, "sinks": -1, "chunk": 0, "representative": "max", "scores": [[-1.0]],
    "host_bits": 3, "kept_bits": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("images", IMAGES)
def test_plans_keep_to_the_budget(name, images) -> None:
    for seed, budget in enumerate((0.15, 0.2, 0.55, 1)):
        given = COMPRESSORS[name]
        compressor = given if isinstance(given, FullKV) else dataclasses.replace(given, budget=budget)
        seen = observation(seed, images=images)
        if not compressor.window:
            seen = Observation.unobserved(seen.heads, seen.visual, seen.segments)
        plan = compressor.plan(seen)
        check_plan(plan, seen, compressor.budget)
        assert compressor.dynamic or not any(map(any, plan.slots))
        if compressor.budget == 1:
            assert all(kept.equal(torch.arange(640)) for layer in plan.kept for kept in layer)
        elif not compressor.dynamic:
            assert plan.entries == int(budget * seen.units * seen.length + 1e-6), "nothing is left over"


@pytest.mark.parametrize("name", [name for name in COMPRESSORS if name not in ("StreamingLLM", "RandomKV", "Quest")])
def test_static_heads_keep_what_is_attended_to(name) -> None:
    seen = observation(images=())
    for scores in seen.mean:
        scores[:] = 1e-6
        scores[:, 345] = 0.5
    for scores in seen.late:
        scores[:] = 0
        scores[:, 345] = 1
    plan = COMPRESSORS[name].plan(seen)
    heads = [head for kept, slots in zip(plan.kept, plan.slots, strict=True) for head in zip(kept, slots, strict=True)]
    found = [345 in kept.tolist() for kept, slots in heads if not slots]
    assert found
    assert all(found)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_settings_are_read_from_yaml(name) -> None:
    given = COMPRESSORS[name]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--compressor", type=CacheCompressor)
    settings = {field.name: getattr(given, field.name) for field in dataclasses.fields(given) if field.init}
    kind = f"{type(given).__module__}.{type(given).__name__}"
    content = {"compressor": {"class_path": kind, "init_args": settings}}
    assert parser.instantiate(parser.parse_string(json.dumps(content))).compressor == given
    assert pickle.loads(pickle.dumps(given)) == given  # noqa: S301 - as copies for other processes are made


@pytest.mark.parametrize("name", COMPRESSORS)
def test_models_with_windows_are_refused(name) -> None:
    given = COMPRESSORS[name]
    if isinstance(given, HeadKV):
        given = dataclasses.replace(given, scores=[[1, 1]] * 3)
    given.check()
    given.check(tiny_model())
    model = tiny_model("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(ValueError, match=r"^model must have full attention in every layer for \w+, got Qwen2ForC"):
        given.check(model)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_settings_that_cannot_work_are_refused(name) -> None:
    given, names = COMPRESSORS[name], {field.name for field in dataclasses.fields(COMPRESSORS[name]) if field.init}
    for setting in names & set(WRONG):
        with pytest.raises(ValueError, match=f"^{setting} must be "):
            dataclasses.replace(given, **{setting: WRONG[setting]})
