"""The command, run inside the test's own folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from saccade.cli.main import main

SETTINGS = {
    "model": {"class_path": "tests.cli.toy.ToyModel"},
    "data": {"class_path": "tests.cli.toy.ToyData"},
    "trainer": {
        "max_epochs": 2,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    },
}


@dataclass
class Outcome:
    status: int
    out: str
    err: str
    new_folders: list[Path]

    @property
    def text(self) -> str:
        return self.out + self.err

    @property
    def folder(self) -> Path:
        assert len(self.new_folders) == 1, (self.new_folders, self.text)
        return self.new_folders[0]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with nothing but toy.yaml in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("SACCADE_RUN_FOLDER", "SACCADE_CKPT_PATH", "PL_GLOBAL_SEED", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(SETTINGS))
    return tmp_path


@pytest.fixture
def saccade(toy: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs `saccade ...` and tells its exit status, its words and which run folders are new."""

    def folders() -> set[Path]:
        return {path for path in toy.glob("runs*/*/*") if path.is_dir() and not path.is_symlink()}

    def run(*arguments: str) -> Outcome:
        before = folders()
        capfd.readouterr()
        try:
            status = main(arguments)
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capfd.readouterr()
        return Outcome(status, out, err, sorted(folders() - before))

    return run
