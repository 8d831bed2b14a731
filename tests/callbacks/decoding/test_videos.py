"""Decoders measured on videos: whole prompts with their clips, facts counted, whatever the batch size."""

from __future__ import annotations

import json

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from saccade.callbacks import DecodingEvaluation
from saccade.callbacks.decoding.prompts import PromptPool, joined_visual, rows_of_visual
from saccade.datamodules import VideoCaptions
from saccade.inference import HybridKV, LVSpec, SnapKV, SpecVLM
from saccade.modules import VisionLanguageModel

CONFIG = {
    "model_type": "qwen2_5_vl",
    "text_config": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
    },
    "vision_config": {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2},
}


@pytest.fixture(scope="module")
def clips() -> VideoCaptions:
    data = VideoCaptions(
        vocab_size=512,
        frames=4,
        height=56,
        width=56,
        max_digits=1,
        scenes=4,
        validation_scenes=5,
        test_scenes=2,
        max_tokens=400,
        batch_size=2,
    )
    data.prepare_data()
    data.setup("fit")
    return data


def evaluate(folder, clips: VideoCaptions, **settings: object) -> list[dict]:
    callback = DecodingEvaluation(
        {"specvlm": SpecVLM(prune_ratio=0.5), "lvspec": LVSpec(draft_length=4)},
        max_new_tokens=12,
        max_prompts=3,
        **settings,  # type: ignore[arg-type]
    )
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        callbacks=[callback],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = VisionLanguageModel(config=CONFIG, seed=1, slot_scenes=0)
    trainer.validate(module, clips, verbose=False)
    assert isinstance(module, LightningModule)
    return callback.rows


def test_decoders_read_whole_prompts_with_their_clips(tmp_path, clips):
    rows = evaluate(tmp_path, clips)
    assert [row["name"] for row in rows] == ["autoregressive", "specvlm", "lvspec"]
    written = json.loads(next(tmp_path.rglob("decoding.json")).read_text())
    assert [row["name"] for row in written] == [row["name"] for row in rows]
    for row in rows:
        assert row["statistics"]["requests"] == 3
        assert row["statistics"]["prompt_tokens"] > 3 * 8  # placeholders of 8 video tokens and more
        assert row["quality"]["slot_accuracy"] is not None
    assert rows[1]["agreement"]["differing_rows"] == rows[1]["agreement"]["near_tie_rows"]
    assert rows[2]["lossless"] is False
    assert rows[2]["statistics"]["relaxed"] > 0
    # the first token is the target's own: the rest of an answer may differ, the beginning may not
    assert rows[2]["statistics"]["relaxed"] <= rows[2]["statistics"]["new_tokens"] - 3


def test_totals_do_not_depend_on_the_batch_size(tmp_path, clips):
    alone, together = (evaluate(tmp_path / str(size), clips, batch_size=size) for size in (1, 3))
    for one, many in zip(alone, together, strict=True):
        for name in ("new_tokens", "verify_steps", "drafted", "accepted", "relaxed"):
            assert one["statistics"][name] == many["statistics"][name], (one["name"], name)
        assert one["quality"] == many["quality"]


def test_clips_are_split_and_joined(clips):
    batch = next(iter(clips.val_dataloader()))
    parts = rows_of_visual(batch, 2)
    sizes = batch["video_grid_thw"].prod(-1).tolist()
    assert [len(part["pixel_values_videos"]) for part in parts] == sizes
    pool = PromptPool(4, 5)
    for each in clips.val_dataloader():
        pool.add(each)
    prompts = pool.own()
    assert sorted(prompt.item for prompt in prompts) == [0, 1, 2, 3, 4]
    assert len({prompt.key for prompt in prompts}) == 5
    joined = joined_visual(prompts, torch.device("cpu"))
    assert len(joined["video_grid_thw"]) == 5
    for prompt in prompts:
        assert prompt.length > 4  # the batch's own word counts


def test_another_number_of_videos_than_rows_is_refused(clips):
    batch = next(iter(clips.val_dataloader()))
    with pytest.raises(ValueError, match="one image or video for each of the 3 prompts, got 2"):
        rows_of_visual(batch, 3)


def test_compressed_caches_of_videos(tmp_path, clips: VideoCaptions) -> None:
    """Lossless decoders that draft from videos write what autoregressive decoding writes on the same cache."""
    kinds = {"snap": SnapKV(budget=0.4), "hybrid": HybridKV(budget=0.8, theta=2.0, recent=4, chunk=4)}
    rows = evaluate(tmp_path, clips, compressors=kinds)
    by_name = {row["name"]: row for row in rows}
    for kind in kinds:
        agreement = by_name[f"specvlm+{kind}"]["agreement"]
        assert agreement["differing_rows"] == agreement["near_tie_rows"] < 3
        assert by_name[f"specvlm+{kind}"]["compression"]["lossless_on_it"] is True
        assert by_name[f"lvspec+{kind}"]["compression"]["lossless_on_it"] is False
        assert 0 < by_name[f"autoregressive+{kind}"]["compression"]["tokens_as_full"] <= 1
        assert by_name[f"autoregressive+{kind}"]["quality"]["slot_accuracy"] is not None
