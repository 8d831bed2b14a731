"""When frames are shown, and how Qwen3-VL is told: times and marks around every pair of frames."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from saccade.datamodules import VideoCaptions
from saccade.datamodules.video.preprocessing import FORMATS
from saccade.datamodules.video.reading import clip_times
from saccade.datamodules.video.tokenization import (
    image_place,
    prompt_ids,
    train_video_tokenizer,
    video_place,
    video_prompt,
    visual_format,
)
from tests.datamodules.video.made_clips import grey_film, write_video

TEXTS = ["what is it?", "a red fox", "0.1 seconds"]


def test_times_are_places_divided_by_the_rate(tmp_path: Path) -> None:
    pictures = [Image.fromarray(frame) for frame in grey_film(6)]
    (tmp_path / "folder").mkdir()
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / "folder" / f"{number}.png")
    pictures[0].save(tmp_path / "moving.gif", save_all=True, append_images=pictures[1:])
    for name in ("folder", "moving.gif"):
        assert clip_times(tmp_path / name, 3) == [0, 2 / 24, 4 / 24]
    assert clip_times(tmp_path / "folder" / "0.png", 2) == [0, 0]
    write_video(tmp_path / "film.mp4", grey_film(10))
    assert clip_times(tmp_path / "film.mp4", 5) == [0, 2 / 25, 4 / 25, 6 / 25, 8 / 25]


@pytest.mark.parametrize("frames", [1, 4, 5])
def test_the_text_is_that_of_the_processor(frames: int) -> None:
    tokenizer = train_video_tokenizer(TEXTS, 300, "qwen3_vl")
    visual = visual_format(tokenizer, "qwen3_vl", 32, 32, patch_size=8)
    assert (visual.mean, visual.std) == ((0.5,) * 3, (0.5,) * 3)
    indices = [7 * frame for frame in range(frames)]
    grid = torch.tensor([[-(-frames // 2), 4, 4]])
    tokens = {f"{name}_token": f"<|{name}|>" for name in ("vision_start", "vision_end")}
    itself = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2),
        _calculate_timestamps=lambda *given: Qwen3VLProcessor._calculate_timestamps(None, *given),  # type: ignore[arg-type]
        **(tokens | {"video_token": "<|video_pad|>"}),
    )
    metadata = SimpleNamespace(fps=10.0, frames_indices=indices)
    right = Qwen3VLProcessor.replace_video_token(
        itself,  # type: ignore[arg-type]
        {"video_grid_thw": grid, "video_metadata": [metadata]},
        0,
    )
    times = [index / 10 for index in indices]
    text = video_place(visual, times)
    assert text.replace("<|video_pad|>", "<|video_pad|>" * 4) == right
    ids = prompt_ids(tokenizer, visual, "what is it?", int(grid.prod()) // 4, times)
    assert right in tokenizer.decode(ids)


def test_other_families_have_one_place() -> None:
    for family in set(FORMATS) - {"qwen3_vl"}:
        tokenizer = train_video_tokenizer(TEXTS, 300, family)  # type: ignore[arg-type]
        visual = visual_format(tokenizer, family, 28, 28)  # type: ignore[arg-type]
        assert video_place(visual, [0.0, 1.0, 2.0]) == image_place(visual, visual.video_token)
        inputs = video_prompt(tokenizer, visual, np.zeros((2, 28, 28, 3), np.uint8), "what is it?")
        assert ("mm_token_type_ids" in inputs) == (family != "llava_onevision")


def test_batches_of_clips_have_times() -> None:
    data = VideoCaptions(
        family="qwen3_vl", vocab_size=300, frames=4, height=32, width=32, patch_size=8, max_digits=1, scenes=2,
        validation_scenes=1, test_scenes=0, batch_size=2,
    )  # fmt: skip
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["video_grid_thw"].tolist() == [[2, 4, 4]] * 2
    for ids, length, kinds in zip(batch["input_ids"], batch["prompt_length"], batch["mm_token_type_ids"], strict=True):
        text = data.tokenizer.decode(ids[: int(length)])
        frame = "<|vision_start|>" + "<|video_pad|>" * 4 + "<|vision_end|>"
        assert f"user\n<0.0 seconds>{frame}<0.1 seconds>{frame}" in text
        assert int((kinds == 2).sum()) == 8
