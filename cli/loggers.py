"""Loggers by name: their files go into the run's folder, and a package that is missing is named."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch
from jsonargparse import ActionConfigFile, Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger, MLFlowLogger

from saccade.cli.errors import UsageError

_FOLDER = "save_dir"
_LOGS = "logs"
_NAME = "lightning_logs"  # Lightning's default; it would only add a level to a folder that has one run
# by logger: the packages of which one is needed, by their names for `import` and for `pip install`
_PACKAGES = {
    "TensorBoardLogger": {"tensorboard": "tensorboard", "tensorboardX": "tensorboardX"},
    "WandbLogger": {"wandb": "wandb"},
    "CometLogger": {"comet_ml": "comet-ml"},
    "MLFlowLogger": {"mlflow": "mlflow"},
}


class RunParser(LightningArgumentParser):
    """Lightning's parser; a logger that is named without its folder, `save_dir`, is accepted."""

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        """Add the arguments of a class; those of a logger with `save_dir` optional."""
        if not (args and _has_folder(args[0])):
            return list(super().add_class_arguments(*args, **kwargs))
        skipped = {*(kwargs.pop("skip", None) or ()), _FOLDER}
        added = list(super().add_class_arguments(*args, skip=skipped, **kwargs))
        self.add_argument(
            f"--{_FOLDER}", type=str | None, default=None, help="Folder of the logs. The default is the run's folder."
        )
        return [*added, _FOLDER]


def _has_folder(kind: Any) -> bool:
    """Return whether a class is a logger that writes files of one run; MLflow's folder is a store of all runs."""
    logger = inspect.isclass(kind) and issubclass(kind, Logger) and not issubclass(kind, MLFlowLogger)
    return logger and _FOLDER in inspect.signature(kind).parameters


def make_parser(**kwargs: Any) -> RunParser:
    """Make a parser of the command, as LightningCLI makes its own.

    Args:
        kwargs: Arguments of the parser.
    """
    kwargs.setdefault("dump_header", [f"lightning.pytorch=={lightning.pytorch.__version__}"])
    kwargs.setdefault("allow_abbrev", False)  # a new option would change what a shortened one means
    parser = RunParser(**kwargs)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="Path to a configuration file in YAML format.")
    return parser


def _loggers(setting: Any) -> Iterator[Namespace]:
    """Yield the loggers of `trainer.logger`, which is a class with its arguments, a list of such, or a switch."""
    for item in setting if isinstance(setting, list) else [setting]:
        if isinstance(item, Namespace) and "class_path" in item:
            yield item


def check_loggers(setting: Any) -> None:
    """Refuse loggers whose package is not installed.

    Args:
        setting: The parsed setting `trainer.logger`.

    Raises:
        UsageError: A package is missing.
    """
    for logger in _loggers(setting):
        name = str(logger.class_path).rpartition(".")[2]
        packages = _PACKAGES.get(name, {})
        if packages and not any(importlib.util.find_spec(package) for package in packages):
            wanted = next(iter(packages.values()))
            raise UsageError(
                f"--trainer.logger {name} needs the package {wanted}, which is not installed: run `pip install"
                f" {wanted}`, or leave the logger out to log into a CSV file."
            )


def place_loggers(setting: Any, folder: Path) -> None:
    """Give loggers without a folder that of the run: they write into its `logs`, or as their service does.

    Args:
        setting: The parsed setting `trainer.logger`; it is changed in place.
        folder: The run's folder.
    """
    for logger in _loggers(setting):
        arguments = logger.get("init_args") or Namespace()
        if _FOLDER not in arguments or arguments[_FOLDER] is not None:
            continue
        arguments[_FOLDER] = str(folder)
        if arguments.get("name") == _NAME and arguments.get("version") is None:
            arguments.name, arguments.version = "", _LOGS
