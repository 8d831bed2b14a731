"""Files and folders are complete or absent, also when writing fails half-way."""

import json
import os
import stat
from pathlib import Path

import pytest

from saccade.common.files import replacing, replacing_folder, write_json, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def refuse(*_):
    raise OSError(28, "No space left on device")


def test_write_json_replaces_and_reads_back(tmp_path):
    path = tmp_path / "new" / "x.json"
    write_json(path, {"a": [1, 2.5, None], "ü": "é"})
    write_json(path, {"b": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": 1}
    assert names(path.parent) == ["x.json"]


def test_others_may_read_the_file(tmp_path):
    write_json(tmp_path / "x.json", {})
    (tmp_path / "y.json").touch()
    assert stat.S_IMODE((tmp_path / "x.json").stat().st_mode) == stat.S_IMODE((tmp_path / "y.json").stat().st_mode)


@pytest.mark.parametrize("bad", [object(), {"x": float("nan")}, {(1, 2): 3}])
def test_what_json_does_not_know_leaves_the_old_file(tmp_path, bad):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    with pytest.raises(ValueError, match=r"x\.json"):
        write_json(path, bad)
    assert json.loads(path.read_text()) == {"old": 1}
    assert names(tmp_path) == ["x.json"]


def test_text_is_written_as_it_is(tmp_path):
    write_text(tmp_path / "x.txt", "é\r\n\n")
    assert (tmp_path / "x.txt").read_bytes() == b"\xc3\xa9\r\n\n"


def test_failing_replacement_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ValueError, match=r"^cannot write .*x\.txt \(No space left on device\): choose a folder"):
        write_text(tmp_path / "x.txt", "text")
    assert names(tmp_path) == []


def test_unwritable_place_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for write in (lambda: write_json(tmp_path / "file" / "x.json", {}), lambda: fill(tmp_path / "file" / "x")):
        with pytest.raises(ValueError, match="cannot write") as error:
            write()
        assert "\n" not in str(error.value)
    assert names(tmp_path) == ["file"]


def test_the_old_file_is_there_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with replacing(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".bin"
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["x.bin"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_writer_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")

    def interrupted():
        with replacing(path) as temporary:
            temporary.write_bytes(b"ne")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x.bin"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="No space left on device"), replacing(path):
        refuse()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x.bin"]


def test_content_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    calls = []
    flush, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("flush"), flush(handle)))
    monkeypatch.setattr(os, "replace", lambda *places: (calls.append("replace"), replace(*places)))
    write_text(tmp_path / "x.txt", "text")
    fill(tmp_path / "folder", "a", "b")
    assert calls == ["flush", "replace", "flush", "flush", "replace"]


def fill(folder: Path, *files: str, **settings):
    with replacing_folder(folder, **settings) as temporary:
        for file in files:
            (temporary / file).write_text(file)


def test_a_folder_is_replaced_with_all_that_is_in_it(tmp_path):
    fill(tmp_path / "new" / "x", "a", "b")
    fill(tmp_path / "new" / "x", "c")
    assert names(tmp_path / "new" / "x") == ["c"]
    assert names(tmp_path / "new") == ["x"]


def test_an_interrupted_folder_leaves_the_old_one(tmp_path):
    fill(tmp_path / "x", "a")

    def interrupted():
        with replacing_folder(tmp_path / "x") as temporary:
            (temporary / "b").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert names(tmp_path / "x") == ["a"]
    assert names(tmp_path) == ["x"]


def test_of_two_that_fill_one_folder_the_first_is_kept(tmp_path):
    with replacing_folder(tmp_path / "x", keep=True) as temporary:
        (temporary / "a").touch()
        fill(tmp_path / "x", "b", keep=True)
    assert names(tmp_path / "x") == ["b"]
    assert names(tmp_path) == ["x"]


def test_the_advice_ends_the_message(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"\(Not a directory\): set cache_dir\.$"):
        fill(tmp_path / "file" / "x", advice="set cache_dir")
