"""Clips from every kind of file, and manifests: one clear line for every kind of broken one."""

import json
from pathlib import Path

import pytest
from PIL import Image

from saccade.datamodules.video.frames import sample_positions
from saccade.datamodules.video.reading import clip_size, read_clip, read_manifest
from tests.datamodules.video.made_clips import grey_film, greys, write_manifest, write_video
from tests.support.errors import one_line


def test_positions_are_spread_evenly() -> None:
    assert sample_positions(10, 10) == list(range(10))
    assert sample_positions(10, 4) == [0, 2, 5, 7]
    assert sample_positions(3, 6) == [0, 0, 1, 1, 2, 2]
    for total, count in ((377, 16), (1000, 7)):
        # the rule of transformers' video processors
        assert sample_positions(total, count) == [int(place * total / count) for place in range(count)]


def test_every_kind_of_clip_gives_the_same_frames(tmp_path: Path) -> None:
    film = grey_film()
    folder = tmp_path / "frames"
    folder.mkdir()
    images = [Image.fromarray(frame) for frame in film]
    for number, image in enumerate(images):
        image.save(folder / f"{number:03d}.png")
    (folder / "notes.txt").write_text("not a frame")
    images[0].save(tmp_path / "clip.gif", save_all=True, append_images=images[1:])
    images[4].convert("L").save(tmp_path / "one.PNG")
    write_video(tmp_path / "clip.mp4", film)
    for name in ("frames", "clip.gif", "clip.mp4"):
        for count in (1, 4, 10, 25):
            clip = read_clip(tmp_path / name, count)
            assert clip.shape == (count, 24, 32, 3)
            assert clip.dtype.name == "uint8"
            assert greys(clip) == sample_positions(10, count), (name, count)
        assert clip_size(tmp_path / name) == (24, 32)
    assert greys(read_clip(tmp_path / "one.PNG", 3)) == [4, 4, 4]


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
        ("binary.jsonl", "binary.jsonl, line 1: text must be UTF-8"),
        ("none.jsonl", "cannot read .*none.jsonl"),
    ):
        with pytest.raises(ValueError, match=message):
            read_manifest(str(tmp_path / name))


def test_lines_of_a_manifest_end_at_newlines_alone(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    answers = ["one\u2028two\u0085three", "form\x0cfeed\x1cseparator", "last\u2029"]
    rows = [{"video": "a.png", "prompt": "What?", "answer": answer} for answer in answers]
    for start, end in (("", "\n"), ("\ufeff", "\r\n")):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (tmp_path / "clips.jsonl").write_bytes((start + end.join(lines)).encode())
        found = read_manifest(str(tmp_path / "clips.jsonl"))
        assert [row.answer for row in found] == answers
        assert [row.line for row in found] == [1, 2, 3]


def test_rows_have_ids_of_their_own_or_the_paths_of_their_clips(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    row = {"video": "a.png", "prompt": "What?", "answer": "That."}
    rows = read_manifest(write_manifest(tmp_path / "m.jsonl", [row, {**row, "id": "second"}, row]))
    assert [row.id for row in rows] == ["a.png", "second", "a.png"]
    path = write_manifest(tmp_path / "m.jsonl", [{**row, "id": "x"}, row, {**row, "id": "x"}])
    one_line(lambda: read_manifest(path), f"{path}, line 3: id must be unique, got 'x', the id of line 1: rename it.")
    path = write_manifest(tmp_path / "m.jsonl", [{**row, "id": 7}])
    one_line(lambda: read_manifest(path), f"{path}, line 1: id must be a text that is not empty, got 7: correct it.")


def test_paths_that_no_file_can_have_are_refused(tmp_path: Path) -> None:
    for name in ("~nobody-of-this-name/a.png", "a\0.png", "x" * 5000, "https://example.com/a.mp4"):
        path = write_manifest(tmp_path / "m.jsonl", [{"video": name, "prompt": "What?", "answer": "x"}])
        one_line(lambda path=path: read_manifest(path), "m.jsonl, line 1: video must exist, got ")  # type: ignore[misc]
    one_line(lambda: read_clip("/dev/null", 1), "video must be a file or a folder, got /dev/null, which is neither: ")
