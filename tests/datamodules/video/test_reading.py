"""Clips from every kind of file, and one clear line for every kind of broken one."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade.datamodules.video.reading import read_clip, read_manifest, sample_positions
from tests.support.shared_data import shared_file


@pytest.fixture
def film() -> np.ndarray:
    """Ten frames [10, 24, 32, 3], each of its own grey."""
    return np.repeat(np.arange(10, dtype=np.uint8) * 20, 24 * 32 * 3).reshape(10, 24, 32, 3)


def _write_video(path: Path, film: np.ndarray, keyframes: int = 4, codec: str = "mpeg4") -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'saccade[video]'")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.gop_size, stream.max_b_frames = keyframes, 2
        stream.width, stream.height, stream.pix_fmt = film.shape[2], film.shape[1], "yuv420p"
        for frame in film:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _greys(clip: np.ndarray) -> list[int]:
    """Which frames of `film` these are."""
    return [round(float(frame.mean()) / 20) for frame in clip]


def test_positions_are_spread_evenly() -> None:
    assert sample_positions(10, 10) == list(range(10))
    assert sample_positions(10, 4) == [0, 2, 5, 7]
    assert sample_positions(3, 6) == [0, 0, 1, 1, 2, 2]
    for total, count in ((377, 16), (1000, 7)):
        # the rule of transformers' video processors
        assert sample_positions(total, count) == np.arange(0, total, total / count).astype(int).tolist()


def test_every_kind_of_clip_gives_the_same_frames(film: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    images = [Image.fromarray(frame) for frame in film]
    for number, image in enumerate(images):
        image.save(folder / f"{number:03d}.png")
    (folder / "notes.txt").write_text("not a frame")
    images[0].save(tmp_path / "clip.gif", save_all=True, append_images=images[1:])
    images[4].convert("L").save(tmp_path / "one.PNG")
    _write_video(tmp_path / "clip.mp4", film)
    for name in ("frames", "clip.gif", "clip.mp4"):
        for count in (1, 4, 10, 25):
            clip = read_clip(tmp_path / name, count)
            assert clip.shape == (count, 24, 32, 3)
            assert clip.dtype == np.uint8
            assert _greys(clip) == sample_positions(10, count), (name, count)
    assert _greys(read_clip(tmp_path / "one.PNG", 3)) == [4, 4, 4]


@pytest.mark.parametrize("keyframes", [1, 3, 50])
def test_seeking_gives_what_reading_from_the_start_gives(keyframes: int, tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'saccade[video]'")
    film = np.repeat(np.arange(60, dtype=np.uint8) * 4, 24 * 32 * 3).reshape(60, 24, 32, 3)
    _write_video(tmp_path / "long.mp4", film, keyframes)
    with av.open(str(tmp_path / "long.mp4")) as container:
        keys = [packet.pts for packet in container.demux() if packet.is_keyframe and packet.size]
        container.seek(0)
        everything = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    # the encoder puts some in by itself
    assert len(keys) >= 60 // keyframes
    assert len(everything) == 60
    for count in (2, 7, 30, 60):
        np.testing.assert_array_equal(read_clip(tmp_path / "long.mp4", count), everything[sample_positions(60, count)])


@pytest.mark.parametrize(("name", "codec"), [("b.avi", "mpeg4"), ("b.ts", "mpeg2video"), ("b.m2v", "mpeg2video")])
def test_files_that_cannot_be_searched_are_read_from_their_start(name: str, codec: str, tmp_path: Path) -> None:
    """Frames without times, streams that jump too far, streams without times at all."""
    film = np.repeat(np.arange(20, dtype=np.uint8) * 12, 48 * 64 * 3).reshape(20, 48, 64, 3)
    _write_video(tmp_path / name, film, 6, codec)
    import av

    with av.open(str(tmp_path / name)) as container:
        everything = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert len(everything) >= 18
    for count in (1, 5, 20):
        wanted = everything[sample_positions(len(everything), count)]
        np.testing.assert_array_equal(read_clip(tmp_path / name, count), wanted)


def test_a_real_clip_is_read() -> None:
    pytest.importorskip("av", reason="PyAV is not installed: pip install 'saccade[video]'")
    clip = read_clip(shared_file("video/car-detection.mp4"), 6)
    assert clip.shape == (6, 432, 768, 3)
    assert clip.std() > 10
    # cars pass: the frames differ, and a fixed camera sees mostly the same
    assert 0 < np.abs(clip[0].astype(int) - clip[3]).mean() < 30


def test_broken_clips_end_with_one_line(film: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.png").write_bytes(b"no picture")
    (tmp_path / "folder").mkdir()
    _write_video(tmp_path / "whole.mp4", film)
    (tmp_path / "torn.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes()[:600])
    for name, message in (
        ("noise.mp4", r"video .*noise\.mp4 cannot be decoded \(.+\): replace it"),
        ("empty.mp4", r"video .*empty\.mp4 cannot be decoded"),
        ("torn.mp4", r"video .*torn\.mp4 (cannot be decoded|has zero frames, because it has no video stream)"),
        ("noise.png", r"video .*noise\.png cannot be read as an image"),
        ("folder", "has zero frames, because the folder has no images"),
        ("nowhere.mp4", "video must exist, got .*nowhere.mp4"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            read_clip(tmp_path / name, 4)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        read_clip(tmp_path / "whole.mp4", 0)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"whole.mp4 needs the package PyAV.*pip install 'saccade\[video\]'"):
        read_clip(tmp_path / "whole.mp4", 4)


def test_a_file_without_pictures_has_zero_frames(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'saccade[video]'")
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="has zero frames, because it has no video stream"):
        read_clip(tmp_path / "sound.mkv", 4)


def test_images_of_different_sizes_are_no_clip(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    Image.new("RGB", (9, 6)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"got a\.png with 8x6 pixels and b\.png with 9x6"):
        read_clip(tmp_path, 2)


def test_a_manifest_is_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "clips" / name)
    lines = [{"video": f"clips/{name}.png", "prompt": "What?", "answer": name, "more": 1} for name in ("b", "a")]
    (tmp_path / "clips.jsonl").write_text("\n".join([json.dumps(lines[0]), "", json.dumps(lines[1]), ""]))
    rows = read_manifest(str(tmp_path / "clips.jsonl"))
    assert [row.answer for row in rows] == ["b", "a"]
    assert rows[0].video == tmp_path / "clips" / "b.png"
    assert rows[0].name == "clips/b.png"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", r"clips\.jsonl, line 2: row must be JSON, got invalid JSON \(.*\): write one"),
        ("[1, 2]", r"line 2: row must be an object, got '\[1, 2\]': write video, prompt, answer"),
        ('{"video": "a.png", "prompt": "What?"}', "line 2: answer is missing"),
        ('{"video": "a.png", "prompt": " ", "answer": "x"}', "line 2: prompt must be a text that is not empty"),
        ('{"video": 3, "prompt": "x", "answer": "x"}', "line 2: video must be a text that is not empty, got 3"),
        ('{"video": "c.png", "prompt": "x", "answer": "x"}', "line 2: video must exist, got .*c.png: give"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    good = json.dumps({"video": "a.png", "prompt": "What?", "answer": "x"})
    (tmp_path / "clips.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(ValueError, match=message) as caught:
        read_manifest(str(tmp_path / "clips.jsonl"))
    assert "\n" not in str(caught.value)


def test_a_manifest_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    for name, message in (
        ("empty.jsonl", "has no rows"),
        ("binary.jsonl", "is not UTF-8 text"),
        ("none.jsonl", "cannot read .*none.jsonl"),
    ):
        with pytest.raises(ValueError, match=message):
            read_manifest(str(tmp_path / name))
