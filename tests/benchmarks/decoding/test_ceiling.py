"""The benchmark of the ceiling of parallel speculation."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.decoding import ceiling
from tests.support.models import copy_layers, plant_constant, tiny_model


@pytest.mark.figures
def test_rows_and_figure(tmp_path: Path) -> None:
    target = tiny_model()
    draft = copy_layers(target, 3)
    for model in (target, draft):
        plant_constant(model, 7)
    prompts = {"chat": [[7] * 9], "code": [[7] * 5, [1, 7, 7, 7]]}
    ratio, gamma, found = ceiling.measured(target, draft, prompts, 25, 1, 4)
    assert 1 <= gamma <= 4
    made = ceiling.rows_of("tiny", ratio, 2, found)
    assert {(item["method"], item["case"]) for item in made} == {
        (name, f"tiny, {kind}") for name in ("Pearl", "Double") for kind in prompts
    }
    assert all(item["same_texts"] and item["bound"] == ratio for item in made)
    for item in made:
        if item["method"] == "Pearl":
            assert item["tokens_a_round"] <= gamma + 1e-9
        else:
            assert item["tokens_a_round"] > gamma
    ceiling.figure(made, tmp_path / "ceiling.png")
    assert (tmp_path / "ceiling.png").stat().st_size > 1000
