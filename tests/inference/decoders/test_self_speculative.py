"""Settings of self-speculative decoding; its method is tested property by property in ``test_draft_verify.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saccade.inference import SelfSpeculative
from saccade.inference.drafting.skip_sets import write_skip_file
from tests.support.models import prompts, tiny_model


def test_a_skip_set_comes_from_a_file_or_a_mapping(tmp_path: Path) -> None:
    model = tiny_model(layers=6)
    write_skip_file(tmp_path / "skip.json", model, attention=[4, 1], mlp=[2])
    assert SelfSpeculative(skip=str(tmp_path / "skip.json")).skip_set(model) == {"attention": [1, 4], "mlp": [2]}
    assert SelfSpeculative(skip={"mlp": [3]}).skip_set(model) == {"attention": [], "mlp": [3]}
    assert SelfSpeculative().skip_set(model) == {"attention": [], "mlp": []}, "before it has seen a prompt"


@pytest.mark.parametrize("gamma", [0.05, 0.99])
def test_a_higher_threshold_drafts_less(gamma: float) -> None:
    model = tiny_model(residual=0.3)
    batch = prompts(model, [5])
    free = SelfSpeculative(skip={"mlp": [1]}, draft_length=6, gamma=0.0, adaptive=False)
    bound = SelfSpeculative(skip={"mlp": [1]}, draft_length=6, gamma=gamma, adaptive=False)
    stats = [decoder.generate(model, **batch, max_new_tokens=40).stats for decoder in (free, bound)]
    mean = [item.drafted / item.verify_steps for item in stats]
    assert mean[1] <= mean[0]
    assert gamma < 0.9 or mean[1] == pytest.approx(1.0), "a tiny random model is never that sure"


def test_without_carry_calls_do_not_know_of_each_other() -> None:
    model = tiny_model(residual=0.3)
    ids = torch.tensor([[1, 2, 3]])
    fresh = SelfSpeculative(skip={"mlp": [1]}, gamma=0.2, beta2=0.0, epsilon=0.2, carry=False)
    first, second = (fresh.generate(model, ids, max_new_tokens=40).stats for _ in range(2))
    assert (first.drafted, first.acceptance_histogram) == (second.drafted, second.acceptance_histogram)
