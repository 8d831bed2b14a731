"""Clips are opened before training: all of them, quickly, and one line names those that are broken."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade.datamodules.video import clip_checks
from saccade.datamodules.video.clip_checks import check_clips
from saccade.datamodules.video.reading import ManifestRow, read_manifest
from tests.datamodules.video.made_clips import grey_film, write_manifest, write_sound, write_video
from tests.support.errors import one_line


def _manifest(folder: Path, count: int = 8) -> list[ManifestRow]:
    """Rows of pictures, each asked about twice, with a video at the end."""
    for number in range(count):
        Image.new("L", (30 + number, 20)).save(folder / f"{number}.png")
    write_video(folder / "film.mp4", grey_film())
    names = [*(f"{number}.png" for number in range(count)), "film.mp4"] * 2
    rows = [{"video": name, "prompt": "What?", "answer": "Grey."} for name in names]
    return read_manifest(write_manifest(folder / "m.jsonl", rows))


def test_sizes_of_all_clips_are_read(tmp_path: Path) -> None:
    sizes = check_clips(_manifest(tmp_path))
    assert sizes == {tmp_path / f"{n}.png": (20, 30 + n) for n in range(8)} | {tmp_path / "film.mp4": (24, 32)}


def test_the_first_broken_clip_is_described_and_the_others_are_listed(tmp_path: Path) -> None:
    rows = _manifest(tmp_path)
    (tmp_path / "3.png").write_bytes(b"no picture")
    one_line(lambda: check_clips(rows), f"{tmp_path}/m.jsonl, line 4: video {tmp_path / '3.png'} cannot be read as an")
    (tmp_path / "0.png").unlink()
    write_sound(tmp_path / "sound.mkv")
    (tmp_path / "film.mp4").write_bytes((tmp_path / "sound.mkv").read_bytes())
    one_line(lambda: check_clips(rows), "m.jsonl, line 1: video must exist, got ", "2 more clips, in lines 4, 9.")
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(b"")
    one_line(lambda: check_clips(rows), "m.jsonl, line 1: ", "8 more clips, in lines 2, 3, 4, 5, 6 ...")


def test_a_bar_is_shown_for_many_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _manifest(tmp_path)
    shown = []
    whole = clip_checks.progress_bar
    monkeypatch.setattr(clip_checks, "progress_bar", lambda *a, enabled, **k: shown.append(enabled) or whole(*a, **k))
    check_clips(rows)
    monkeypatch.setattr(clip_checks, "_MANY", 9)
    check_clips(rows)
    assert shown == [False, True]


def test_pixels_are_not_decoded(tmp_path: Path) -> None:
    """A picture of which only the header is there passes: it is found when it is read."""
    rows = _manifest(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "2.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:1000])
    assert check_clips(rows)[tmp_path / "2.png"] == (200, 200)
