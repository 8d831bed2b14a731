"""Frames become what transformers' own processors make of them; token counts are those of the models."""

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from saccade.datamodules.video.preprocessing import (
    CLIP_STD,
    VisualFormat,
    resize_frames,
    smart_resize,
    visual_batch,
    visual_inputs,
)
from saccade.datamodules.video.scenes import make_scene, render

QWEN = VisualFormat("qwen2_5_vl", 14, 2, 2, 56, 56, None, "<|video_pad|>", 0, 1, 2, 3)
LLAVA = VisualFormat("llava_onevision", 14, 2, 1, 384, 384, None, "<video>", 0, 1)
SIZES = [(56, 84), (90, 131), (61, 300), (20, 20), (400, 250)]


def _film(height: int, width: int, frames: int = 5) -> np.ndarray:
    return render(make_scene(0, "train", height + width, max_digits=2), frames, height, width)


def _assert_like_pillow(ours: torch.Tensor, theirs: torch.Tensor, resized: bool) -> None:
    """Equal where nothing is resized; else Pillow rounds otherwise and cuts overshooting off between its two passes."""
    assert ours.shape == theirs.shape
    level = 1 / 255 / min(CLIP_STD)
    off = (ours - theirs).abs()
    assert off.max() < (8 * level if resized else 1e-6)
    assert (off > 1.1 * level).float().mean() < 0.002


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_qwen_frames_are_those_of_the_image_processor(height: int, width: int) -> None:
    """An image is a video of one frame that is repeated; the limits differ only in their defaults."""
    limits = {"shortest_edge": 4 * 28 * 28, "longest_edge": 24 * 28 * 28}
    frame = _film(height, width)[:1]
    wanted = Qwen2VLImageProcessorPil(size=limits)(frame[0], return_tensors="pt")
    inputs, tokens = visual_inputs(frame, replace(QWEN, max_pixels=limits["longest_edge"]))
    assert inputs["video_grid_thw"].tolist() == wanted["image_grid_thw"].tolist()
    assert tokens == len(wanted["pixel_values"]) // 4
    _assert_like_pillow(inputs["pixel_values_videos"], wanted["pixel_values"], (height, width) != (56, 84))


@pytest.mark.parametrize(("height", "width"), [*SIZES, (384, 384)])
def test_llava_frames_are_those_of_the_image_processor(height: int, width: int) -> None:
    """The first piece of an image is the whole of it at the model's size."""
    film = _film(height, width, 2)
    inputs, tokens = visual_inputs(film, LLAVA)
    for frame, values in zip(film, inputs["pixel_values_videos"][0], strict=True):
        wanted = LlavaOnevisionImageProcessorPil()(frame, return_tensors="pt")["pixel_values"][0, 0]
        _assert_like_pillow(values, wanted, (height, width) != (384, 384))
    assert tokens == 2 * 196 + 1


@pytest.mark.skipif(find_spec("torchvision") is None, reason="transformers' video processors need torchvision")
@pytest.mark.parametrize(("height", "width"), [*SIZES, (384, 384)])
@pytest.mark.parametrize("frames", [4, 5])
def test_videos_are_those_of_the_video_processors(frames: int, height: int, width: int) -> None:
    """The last bits of a float32 may differ, because the processors fold the factor 1/255 in otherwise."""
    from transformers.models.llava_onevision.video_processing_llava_onevision import LlavaOnevisionVideoProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    noise = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    for film in (_film(height, width, frames), noise):
        video = torch.from_numpy(film).permute(0, 3, 1, 2)
        limits = {"shortest_edge": 4 * 28 * 28, "longest_edge": 24 * 28 * 28}
        qwen: Any = Qwen2VLVideoProcessor(size=limits)
        # newer versions want to be told whether they shall shrink long videos
        cap = {"cap_pixels_per_frame": False} if hasattr(qwen, "cap_pixels_per_frame") else {}
        wanted = qwen(video, return_tensors="pt", **cap)
        inputs, _ = visual_inputs(film, replace(QWEN, max_pixels=limits["longest_edge"]))
        assert inputs["video_grid_thw"].tolist() == wanted["video_grid_thw"].tolist()
        torch.testing.assert_close(inputs["pixel_values_videos"], wanted["pixel_values_videos"], rtol=0, atol=1e-6)
        llava = LlavaOnevisionVideoProcessor()(video, return_tensors="pt")["pixel_values_videos"]
        torch.testing.assert_close(visual_inputs(film, LLAVA)[0]["pixel_values_videos"], llava, rtol=0, atol=1e-6)


def test_patches_of_a_token_stand_together_and_pairs_of_frames_are_one() -> None:
    # a film whose pixel values say where they are, with nothing taken off
    frames, side, patch = 3, 56, 14
    film = np.zeros((frames, side, side, 3), np.uint8)
    film[..., 0] = (np.arange(side) // patch)[:, None]
    film[..., 1] = np.arange(side) // patch
    film[..., 2] = np.arange(frames)[:, None, None]
    plain = replace(QWEN, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
    inputs, tokens = visual_inputs(film, plain)
    assert inputs["video_grid_thw"].tolist() == [[2, 4, 4]]
    assert tokens == 2 * 2 * 2
    values = inputs["pixel_values_videos"].reshape(2, 2, 2, 2, 2, 3, 2, patch, patch).round()
    for time, row, column, r, c in np.ndindex(2, 2, 2, 2, 2):
        piece = values[time, row, column, r, c]
        assert piece[0].unique().tolist() == [2 * row + r]
        assert piece[1].unique().tolist() == [2 * column + c]
        # the third frame fills the second pair alone
        assert piece[2].mean((1, 2)).tolist() == ([0, 1] if time == 0 else [2, 2])


def test_a_batch_is_its_videos_one_after_another() -> None:
    films = [_film(56, 56, 4), _film(84, 56, 6)]
    keep = replace(QWEN, max_pixels=10**6)
    both, counts = visual_batch(films, keep)
    singles = [visual_inputs(film, keep) for film in films]
    assert counts == [count for _, count in singles] == [2 * 4, 3 * 6]
    for name in ("pixel_values_videos", "video_grid_thw"):
        assert torch.equal(both[name], torch.cat([inputs[name] for inputs, _ in singles]))


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((56, 56), (56, 56)),
        ((70, 42), (56, 56)),
        ((1000, 500), (168, 84)),
        ((10, 10), (56, 56)),
        ((15, 300), (28, 308)),
    ],
)
def test_sizes_become_multiples_within_the_limits(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    # Python rounds 2.5 to 2 and 1.5 to 2
    assert smart_resize(*size, 28, 4 * 784, 24 * 784) == wanted


def test_token_counts() -> None:
    assert LLAVA.tokens(64) == 12_545  # 196 * 64 + 1, of the published models
    assert replace(LLAVA, height=56, width=56).tokens(8) == 8 * 4 + 1
    assert replace(LLAVA, height=70, width=70).tokens(1) == 3 * 3 + 1  # rounded up
    assert replace(QWEN, height=224, width=224).tokens(32) == 1024
    assert QWEN.tokens(5) == 3 * 4
    assert replace(QWEN, patch_size=7, merge_size=4).tokens(2) == 4
    assert QWEN.tokens(2, 112, 84) == 12


def test_frames_of_the_right_size_are_left_alone() -> None:
    film = _film(56, 56)
    assert resize_frames(film, 56, 56) is film
    before = film.copy()
    visual_inputs(film, QWEN)
    np.testing.assert_array_equal(film, before)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), r"at least one frame, got uint8 \[0, 8, 8, 3\]"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"must be uint8 \[F, H, W, 3\]"),
        (np.zeros((2, 8, 8, 3), np.float32), "got float32"),
        (np.zeros((8, 8, 3), np.uint8), "convert them to RGB"),
    ],
)
def test_what_is_no_film_is_refused(frames: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        visual_inputs(frames, QWEN)


def test_films_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="got frames of 402x2 pixels"):
        visual_inputs(np.zeros((1, 2, 402, 3), np.uint8), replace(QWEN, max_pixels=10**6))
    with pytest.raises(ValueError, match=r"for llava_onevision, got \[4, 5\]"):
        visual_batch([_film(56, 56, 4), _film(56, 56, 5)], LLAVA)
