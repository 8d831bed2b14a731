"""Two processes: losses and slot accuracy as on one, every sequence and clip once, one export."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.modules.language import ddp_script, ddp_vision_script
from tests.modules.language.tiny import trainer
from tests.modules.language.tiny_video import CONFIGS, TinyVideo, video_model
from tests.support.processes import run_ranks


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    ddp_script.run(tmp_path, devices=1)
    run_ranks("tests.modules.language.ddp_script", tmp_path)
    one, first, second = (json.loads((tmp_path / f"results{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert first["logged"] == second["logged"] == pytest.approx(one["logged"], rel=1e-5)
    assert len(first["predicted"]) - len(second["predicted"]) in (0, 1)
    assert sorted(first["predicted"] + second["predicted"]) == pytest.approx(sorted(one["predicted"]), rel=1e-5)
    AutoModelForCausalLM.from_pretrained(tmp_path / "model2")


def test_two_processes_agree_with_one_on_videos(tmp_path: Path) -> None:
    for family in CONFIGS:
        module = video_model(family, learning_rate=5e-3, slot_scenes=0)
        trainer(tmp_path, max_epochs=4, limit_val_batches=0).fit(module, TinyVideo(family))
        module.save_pretrained(tmp_path / family)
    ddp_vision_script.run(tmp_path, devices=1)
    run_ranks("tests.modules.language.ddp_vision_script", tmp_path)
    one, first, second = (json.loads((tmp_path / f"results{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    for family in CONFIGS:
        whole, *parts = (result[family].pop("told") for result in (one, first, second))
        assert whole == parts[0] | parts[1]
        assert len(parts[0]) == len(parts[1]) == 4
        assert first[family] == second[family] == pytest.approx(one[family], rel=1e-5)
        assert 0 < one[family]["val_slot_accuracy"] < 1  # a mean of the two ranks' shares would differ
