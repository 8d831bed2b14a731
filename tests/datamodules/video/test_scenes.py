"""The world of moving digits: deterministic, its parts disjoint, and every fact to be seen in the frames."""

from dataclasses import replace

import numpy as np
import pytest

from saccade.datamodules.text.files import PARTS
from saccade.datamodules.video.scenes import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    SIZES,
    Scene,
    _background,
    make_scene,
    render,
)


def _scenes(part: str, count: int = 300, seed: int = 0) -> list[Scene]:
    return [make_scene(seed, part, index) for index in range(count)]


def _ink(scene: Scene, frames: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The film of a scene on a plain background, and where its digits are [F, H, W]."""
    film = render(replace(scene, background="plain"), frames, side, side).astype(float)
    # digits cover less than half of the picture
    background = np.median(film.reshape(-1, 3), axis=0)
    return film, np.abs(film - background).max(-1) > 60


def test_a_scene_follows_from_seed_part_and_index() -> None:
    assert make_scene(3, "test", 5) == make_scene(3, "test", 5)
    others = (make_scene(4, "test", 5), make_scene(3, "validation", 5), make_scene(3, "test", 6))
    assert all(other != make_scene(3, "test", 5) for other in others)
    film = render(make_scene(3, "test", 5), 8, 56, 56)
    np.testing.assert_array_equal(film, render(make_scene(3, "test", 5), 8, 56, 56))


def test_parts_share_no_scan_and_no_combination_of_facts_for_any_seeds() -> None:
    scans: dict[str, set[int]] = {}
    facts: dict[str, set[tuple[str, ...]]] = {}
    for seed, part in enumerate(PARTS):
        # scenes of one digit have few combinations, so that parts drawn without care would meet
        scenes = [make_scene(seed, part, index, max_digits=1) for index in range(1500)] + _scenes(part, 300, seed)
        scans[part] = {digit.scan for scene in scenes for digit in scene.digits}
        facts[part] = {tuple(scene.facts.values()) for scene in scenes}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not scans[one] & scans[other]
        assert not facts[one] & facts[other]
    assert len(scans["validation"]) > 150


def test_all_facts_occur_about_equally_often_in_every_part() -> None:
    for part in PARTS:
        scenes = _scenes(part, 600)
        assert [sum(len(scene.digits) == n for scene in scenes) for n in (1, 2, 3, 4)] == pytest.approx(
            [150] * 4, rel=0.3
        )
        digits = [digit for scene in scenes for digit in scene.digits]
        for name, values in (("label", range(10)), ("size", SIZES), ("colour", COLOURS), ("direction", DIRECTIONS)):
            counts = [sum(getattr(digit, name) == value for digit in digits) for value in values]
            assert min(counts) > 0.6 * len(digits) / len(counts), (part, name, counts)
        counts = [sum(scene.background == background for scene in scenes) for background in BACKGROUNDS]
        assert min(counts) > 0.6 * len(scenes) / len(BACKGROUNDS)


@pytest.mark.parametrize(("frames", "height", "width"), [(4, 16, 16), (8, 56, 56), (9, 57, 131), (8, 112, 84)])
def test_any_size_can_be_rendered(frames: int, height: int, width: int) -> None:
    for scene in _scenes("train", 20):
        film = render(scene, frames, height, width)
        assert film.shape == (frames, height, width, 3)
        assert film.dtype == np.uint8


def test_digits_are_as_tall_as_their_size_says_and_wholly_in_the_picture() -> None:
    heights: dict[str, list[int]] = {"small": [], "large": []}
    for index in range(60):
        scene = make_scene(0, "train", index, max_digits=1)
        (digit,) = scene.digits
        for ink in _ink(scene, 8, 56)[1]:
            rows = np.flatnonzero(ink.any(1))
            heights[digit.size].append(int(rows[-1] - rows[0] + 1))
    # a digit that left the picture would be cut
    assert min(heights["small"]) >= 18
    assert np.mean(heights["small"]) >= 20
    assert 1.25 * max(heights["small"]) < min(heights["large"])


def test_the_motion_is_that_of_the_facts_and_digits_come_in_their_order() -> None:
    for scene in _scenes("train", 60):
        film, ink = _ink(scene, 2 * len(scene.digits), 112)
        for number, digit in enumerate(scene.digits):
            own = range(2 * number, 2 * number + 2)
            centres = [np.argwhere(ink[frame]).mean(0) for frame in own]
            colours = [np.median(film[frame][ink[frame]], axis=0) for frame in own]
            steps = DIRECTIONS[digit.direction]
            moved = np.round((centres[1] - centres[0]) / 112, 2)
            for axis in (0, 1):
                assert moved[axis] == pytest.approx(0.19 * steps[axis], abs=0.02)
            nearest = min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) - colours[0]).sum())
            assert nearest == digit.colour


def test_every_tint_stands_out_from_every_background() -> None:
    for scene in _scenes("train", 60):
        assert _background(scene, 56, 56).max() <= 120
        brightest = render(scene, 8, 56, 56).reshape(8, -1).max(1)
        assert (brightest >= 180).all()


def test_wrong_settings_are_refused() -> None:
    scene = next(scene for scene in _scenes("train") if len(scene.digits) == 4)
    with pytest.raises(ValueError, match="part must be train, validation or test, got 'val'"):
        make_scene(0, "val", 0)
    with pytest.raises(ValueError, match="max_digits must be from 1 to 4, got 5"):
        make_scene(0, "train", 0, max_digits=5)
    with pytest.raises(ValueError, match="frames must be at least 4"):
        render(scene, 3, 56, 56)
    with pytest.raises(ValueError, match="at least 16 pixels"):
        render(scene, 8, 56, 15)
