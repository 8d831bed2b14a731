"""Loggers by name write into the run's folder, and one whose package is missing is refused by name."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest
import yaml

from saccade.cli import loggers


def logged(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("metrics.csv")]


def test_a_logger_needs_no_folder(saccade, toy):
    run = saccade("fit", "--config", "toy.yaml", "--trainer.logger", "CSVLogger")
    assert run.status == 0, run.text
    assert logged(run.folder) == ["logs/metrics.csv"]
    assert sorted(path.name for path in toy.iterdir()) == ["runs", "toy.yaml"]
    again = saccade("fit", "--config", str(run.folder / "config.yaml"))
    assert again.status == 0, again.text
    assert logged(again.folder) == ["logs/metrics.csv"], "not into the folder of the run that wrote the settings"


@pytest.mark.parametrize(
    "setting",
    [
        {"class_path": "CSVLogger"},
        [{"class_path": "CSVLogger"}],
        [{"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"flush_logs_every_n_steps": 1}}],
    ],
)
def test_settings_in_a_file(saccade, toy, setting):
    (toy / "logger.yaml").write_text(yaml.safe_dump({"trainer": {"logger": setting}}))
    run = saccade("fit", "--config", "toy.yaml", "--config", "logger.yaml")
    assert run.status == 0, run.text
    assert logged(run.folder) == ["logs/metrics.csv"]


def test_what_is_given_is_kept(saccade, toy):
    given = ["--trainer.logger", "CSVLogger", "--trainer.logger.name=mine"]
    run = saccade("fit", "--config", "toy.yaml", *given)
    assert logged(run.folder) == ["mine/version_0/metrics.csv"]
    run = saccade("fit", "--config", "toy.yaml", *given, "--trainer.logger.save_dir=elsewhere")
    assert (logged(run.folder), logged(toy / "elsewhere")) == ([], ["mine/version_0/metrics.csv"])


def test_tensorboard(saccade, monkeypatch):
    """With a package in its place, of which Lightning needs one class."""
    package = ModuleType("tensorboardX")
    package.SummaryWriter = MagicMock()
    package.__spec__ = importlib.util.spec_from_loader("tensorboardX", None)
    summary = ModuleType("tensorboardX.summary")
    summary.hparams = lambda *_, **__: (None, None, None)
    monkeypatch.setitem(sys.modules, "tensorboardX", package)
    monkeypatch.setitem(sys.modules, "tensorboardX.summary", summary)
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"lightning.fabric.loggers.tensorboard.{name}", name == "_TENSORBOARDX_AVAILABLE")
    run = saccade("fit", "--config", "toy.yaml", "--trainer.logger", "TensorBoardLogger")
    assert run.status == 0, run.text
    (call,) = package.SummaryWriter.call_args_list
    assert Path(call.kwargs["log_dir"]).resolve() == run.folder / "logs"


@pytest.mark.parametrize("name", ["TensorBoardLogger", "WandbLogger", "CometLogger", "MLFlowLogger"])
def test_a_missing_package_is_named(saccade, monkeypatch, name):
    packages = {"no_such_package": next(iter(loggers._PACKAGES[name].values()))}
    monkeypatch.setitem(loggers._PACKAGES, name, packages)
    for form in ([f"--trainer.logger={name}"], [f"--trainer.logger=[{{class_path: {name}}}]"]):
        run = saccade("fit", "--config", "toy.yaml", *form)
        assert (run.status, run.new_folders) == (2, []), run.text
        (line,) = run.err.splitlines()
        assert (
            f"--trainer.logger {name} needs the package {packages['no_such_package']}, which is not installed" in line
        )
