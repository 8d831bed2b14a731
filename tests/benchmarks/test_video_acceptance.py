"""The acceptance study on an untrained pair and two videos: its rows say what was done."""

from __future__ import annotations

import pytest

from benchmarks import video_acceptance
from saccade.datamodules import VideoCaptions
from saccade.inference.relaxation import Strict, VisualRelaxation
from saccade.modules import VisionLanguageModel

CONFIG = {
    "model_type": "qwen2_5_vl",
    "text_config": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
    },
    "vision_config": {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 1},
}


def test_rows(tmp_path, monkeypatch, capsys):
    data = VideoCaptions(
        vocab_size=512, frames=4, height=56, width=56, max_digits=1, max_tokens=400, scenes=2, validation_scenes=1,
        test_scenes=1,
    )  # fmt: skip
    data.setup("fit")
    module = VisionLanguageModel(config=CONFIG, seed=0)
    module.build_for(data)
    module.save_pretrained(tmp_path)
    rows: list[dict] = []
    monkeypatch.setattr(video_acceptance, "replace", rows.extend)
    monkeypatch.setattr(video_acceptance, "RATIOS", (0.5,))
    monkeypatch.setattr(video_acceptance, "SELECTORS", ("uniform", "two_stage"))
    monkeypatch.setattr(video_acceptance, "RULES", {"strict": Strict(), "LVSpec 0.7": VisualRelaxation()})
    monkeypatch.setattr(video_acceptance, "_HALVINGS", 2)
    arguments = (
        "--target", str(tmp_path), "--videos", "2", "--frames", "4", "--size", "56", "--max-digits", "1",
        "--new-tokens", "12", "--device", "cpu",
    )  # fmt: skip
    monkeypatch.setattr("sys.argv", ["video_acceptance", *arguments])
    video_acceptance.main()
    methods = [row["method"] for row in rows]
    assert methods[:5] == [
        "SpecVLM, none", "SpecVLM, uniform, 0.5", "SpecVLM, two_stage, 0.5", "strict", "LVSpec 0.7",
    ]  # fmt: skip
    assert methods[5].startswith("random ")
    for row in rows[:4]:  # lossless: the texts are the target's own
        assert (row["same_texts"], row["relaxed_share"], row["retention_interval"]) in [
            (2, 0.0, (1.0, 1.0)), (2, 0.0, (0.0, 0.0)),
        ]  # fmt: skip
    assert rows[0]["of_reference"] == 1.0
    # without pruning the target is its own perfect draft: every tree is accepted to its full depth or to the limit
    assert rows[0]["value"] == pytest.approx((5 + 5 - 1) / 2, abs=0.51)
    assert rows[4]["value"] >= rows[3]["value"]
    assert "2 held-out videos" in capsys.readouterr().out


def test_ratios_resample_videos():
    value, low, high = video_acceptance.ratio([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert value == low == high == 0.5  # the same share in every video leaves nothing to chance
    value, low, high = video_acceptance.ratio([0.0, 4.0], [2.0, 2.0])
    assert (value, low, high) == (1.0, 0.0, 2.0)
