"""``saccade export``: write the model folder of a checkpoint, as the end of a fit does."""

import os
import warnings
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from saccade.cli.commands.trained_module import read_checkpoint, trained_module
from saccade.cli.errors import UsageError, one_line, raised_by_us
from saccade.cli.quiet import quieten
from saccade.cli.run_folders import CHECKPOINTS, MODEL, check_name, find_checkpoint


def export(ckpt: str, to: str | None = None, name: str | None = None, runs_folder: str = "runs") -> Path:
    """Write the model folder of a checkpoint. No configuration is needed: a checkpoint holds class and settings.

    Args:
        ckpt: The checkpoint: a file, a folder that DeepSpeed wrote, or `last` or `best` of the newest run of `name`
            that has one.
        to: Folder to write; it must be new or empty. The default is `model-last`, `model-best`, ... in the run's
            folder, after the name of the checkpoint; an earlier one is replaced.
        name: Name of the run, for `last` and `best`.
        runs_folder: Folder of all runs.

    Returns:
        The folder.

    Raises:
        UsageError: The checkpoint is missing, incomplete or not one of a run, its module cannot be exported, or the
            folder cannot be written.
    """
    checkpoint = _find(ckpt, name, runs_folder)
    target = _target(checkpoint, to)
    content = read_checkpoint(checkpoint)
    module = trained_module(content)
    save: Any = getattr(module, "save_pretrained", None)
    if save is None:
        raise UsageError(
            f"CKPT must be one of a module with save_pretrained, got one of {type(module).__name__}: add the method, or"
            " use the checkpoint itself with --ckpt_path."
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        save(target)
    if not target.is_dir():
        reasons = "; ".join(one_line(item.message) for item in caught if isinstance(item.message, Warning))
        raise UsageError(f"CKPT gives no model folder ({reasons}): use the checkpoint itself with --ckpt_path.")
    step, epoch = content.get("global_step", "unknown"), content.get("epoch", "unknown")
    print(f"the model of {checkpoint} (step {step}, epoch {epoch}) is exported to {target}")
    return target


def _find(ckpt: str, name: str | None, runs_folder: str) -> Path:
    if ckpt not in ("last", "best"):
        if name is not None:
            raise UsageError(f"--name must be given with last or best only, got {name} with {ckpt}: leave it out.")
        return Path(ckpt)
    if name is None:
        raise UsageError(f"--name must be given with {ckpt}, got none: name the run, or give the path of a checkpoint.")
    try:
        return find_checkpoint(runs_folder, check_name(name), ckpt)
    except UsageError as error:
        raise UsageError(str(error).replace("--ckpt_path", "CKPT")) from error


def _target(checkpoint: Path, to: str | None) -> Path:
    """Choose the folder to write, and refuse one that would replace something else or cannot be written."""
    if to is None:
        folder = checkpoint.absolute().parent
        run = folder.parent if folder.name == CHECKPOINTS else folder
        target = Path(os.path.relpath(run)) / f"{MODEL}-{checkpoint.stem}"
    else:
        target = Path(to)
        if target.is_file():
            raise UsageError(f"--to must be a folder, got the file {target}: choose another name.")
        if target.is_dir() and any(target.iterdir()):
            raise UsageError(f"--to must be a new or empty folder, got {target}: choose another, or remove it first.")
    existing = next(place for place in (target.absolute(), *target.absolute().parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"--to must be in a folder that can be written to, got {target}: choose another.")
    return target


def run(arguments: Sequence[str]) -> None:
    """Export the checkpoint of the command line.

    Args:
        arguments: Arguments after the subcommand.

    Raises:
        UsageError: An argument is wrong, or the checkpoint cannot be exported.
    """
    quieten()
    if not arguments:
        raise UsageError(
            "CKPT must be given, got none: name a checkpoint, for example runs/NAME/latest/checkpoints/best.ckpt."
        )
    parser = ArgumentParser(
        prog="saccade export",
        exit_on_error=False,
        allow_abbrev=False,
        description=(export.__doc__ or "").split("Args:")[0],
    )
    parser.add_function_arguments(export, as_positional=True)
    try:
        settings = parser.parse_args(list(arguments))
    except (ArgumentError, TypeError, ValueError) as error:
        raise UsageError(one_line(error, signature(export).parameters)) from error
    try:
        export(**settings.as_dict())
    except ValueError as error:
        if raised_by_us(error):
            raise UsageError(one_line(error)) from error
        raise
