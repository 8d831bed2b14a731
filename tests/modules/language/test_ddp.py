"""Two processes: the same losses as one, every sequence predicted once, one export."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.modules.language import ddp_script
from tests.support.processes import run_ranks


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    ddp_script.run(tmp_path, devices=1)
    run_ranks("tests.modules.language.ddp_script", tmp_path)
    one, first, second = (json.loads((tmp_path / f"results{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert first["logged"] == second["logged"] == pytest.approx(one["logged"], rel=1e-5)
    assert len(first["predicted"]) - len(second["predicted"]) in (0, 1)
    assert sorted(first["predicted"] + second["predicted"]) == pytest.approx(sorted(one["predicted"]), rel=1e-5)
    AutoModelForCausalLM.from_pretrained(tmp_path / "model2")
