"""The record names what a result depends on and nothing about the machine's owner; files are whole or not there."""

import json
import socket
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
import torch

from saccade.common import provenance as module
from saccade.common.files import write_json, write_text
from saccade.common.provenance import git_state, provenance
from tests.support.processes import TIME_LIMIT


def git(folder, *arguments):
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    (tmp_path / ".gitignore").write_text("ignored\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_commit_and_dirty(repository):
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert git_state() == (head, False)
    (repository / "ignored").touch()
    assert git_state() == (head, False)
    (repository / "new").touch()
    assert git_state() == (head, True)
    (repository / "new").unlink()
    (repository / "a").write_text("2")
    assert git_state() == (head, True)


def test_outside_of_git_before_a_commit_and_without_git(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state() == (None, None)
    git(tmp_path, "init", "-q")
    assert git_state() == (None, None)
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    assert git_state() == (None, None)
    assert provenance()["commit"] is None


def test_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/home/someone/bin/saccade", "fit", "--config=x.yaml"])
    record = provenance(seed=3)
    assert record["seed"] == 3
    assert record["command"] == ["saccade", "fit", "--config=x.yaml"]
    assert record["versions"]["torch"] == torch.__version__
    assert {"python", "saccade", "lightning", "transformers", "peft"} <= set(record["versions"])
    age = datetime.now(UTC) - datetime.fromisoformat(record["date"])
    assert timedelta(0) <= age < timedelta(seconds=TIME_LIMIT)
    assert record["device"]
    text = json.dumps(record)
    assert socket.gethostname() not in text
    assert "/home" not in text
    assert str(tmp_path) not in text


def test_write_json_replaces_and_reads_back(tmp_path):
    path = tmp_path / "new" / "x.json"
    write_json(path, {"a": [1, 2.5, None], "ü": "é"})
    write_json(path, {"b": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": 1}
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]


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
    assert len(list(tmp_path.iterdir())) == 1


def test_failing_replacement_leaves_nothing_behind(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "replace", refuse)
    with pytest.raises(ValueError, match="No space left on device"):
        write_text(tmp_path / "x.txt", "text")
    assert list(tmp_path.iterdir()) == []


def test_unwritable_place_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write") as error:
        write_json(tmp_path / "file" / "x.json", {})
    assert "\n" not in str(error.value)
