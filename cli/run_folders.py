"""A folder of its own for every run: ``runs/<name>/<time>``, and how to find an earlier one again."""

import os
import re
import shutil
from datetime import datetime
from pathlib import Path

from saccade.cli.errors import UsageError

CHECKPOINTS = "checkpoints"
MODEL = "model"
LATEST = "latest"

_TIME = re.compile(r"(\d{8}-\d{6})(?:-(\d+))?")
# what a run writes before it has any result
_RECORDS = {"config.yaml", "provenance.json", "hparams.yaml"}


def check_name(name: str) -> str:
    """Refuse a run name that is not one plain folder name.

    Args:
        name: Of the run.

    Returns:
        The same name.

    Raises:
        UsageError: If it is empty or has other characters than letters, digits, dot, dash and underscore.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(f"--name {name!r}: use letters, digits, '.', '-' and '_' only, it becomes a folder's name")
    return name


def create_run_folder(runs_folder: str, name: str) -> Path:
    """Make the folder of a new run; two that start in the same second get different ones.

    Args:
        runs_folder: Where all runs lie.
        name: Of the run.

    Returns:
        A new, empty folder ``<runs_folder>/<name>/<YYYYmmdd-HHMMSS>``, with ``-1``, ``-2``, ... after it when taken.

    Raises:
        UsageError: If the folder cannot be made or does not take files. Nothing is left behind then.
    """
    parent = Path(runs_folder) / name
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        attempt = 0
        while True:
            folder = parent / (f"{stamp}-{attempt}" if attempt else stamp)
            try:
                folder.mkdir()
            except FileExistsError:
                attempt += 1
                continue
            return folder
    except OSError as error:
        raise UsageError(
            f"run folder {parent} cannot be made: {error.strerror}; choose another place with --runs_folder"
        ) from error


def discard_if_without_results(folder: Path) -> bool:
    """Remove the folder of a run that failed before it had any result.

    Args:
        folder: Of the run.

    Returns:
        Whether it was removed: only when nothing but the records of the start lies in it.
    """
    if any(path.is_file() and path.name not in _RECORDS for path in folder.rglob("*")):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    for parent in list(folder.parents)[:1]:
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()
    return True


def earlier_runs(runs_folder: str, name: str) -> list[Path]:
    """Folders of the runs of one name, the newest first.

    Args:
        runs_folder: Where all runs lie.
        name: Of the runs.
    """
    parent = Path(runs_folder) / name
    found: list[tuple[str, int, Path]] = []
    for folder in parent.iterdir() if parent.is_dir() else ():
        match = _TIME.fullmatch(folder.name)
        if match and folder.is_dir():
            found.append((match[1], int(match[2] or 0), folder))
    return [folder for *_, folder in sorted(found, reverse=True)]


def find_checkpoint(runs_folder: str, name: str, which: str) -> Path:
    """Find the checkpoint that ``--ckpt_path last`` or ``--ckpt_path best`` means.

    Args:
        runs_folder: Where all runs lie.
        name: Of the run.
        which: ``last`` or ``best``.

    Returns:
        The checkpoint of the newest run of this name that has one; a folder when DeepSpeed wrote it.

    Raises:
        UsageError: If no run of this name has one.
    """
    for folder in earlier_runs(runs_folder, name):
        checkpoint = folder / CHECKPOINTS / f"{which}.ckpt"
        if checkpoint.exists():
            return checkpoint
    raise UsageError(
        f"--ckpt_path {which}: no run in {Path(runs_folder) / name} has a checkpoint '{which}'; "
        "run `saccade fit` first, or name the run with --name"
    )


def point_latest_at(folder: Path) -> None:
    """Let ``runs/<name>/latest`` lead to this run, so that other settings can name its exported model.

    Where the file system knows no links there is no such name; nothing else depends on it.

    Args:
        folder: Of a finished fit.
    """
    link = folder.parent / LATEST
    temporary = folder.parent / f".{LATEST}.{os.getpid()}"
    try:
        temporary.symlink_to(folder.name, target_is_directory=True)
        os.replace(temporary, link)
    except OSError:
        temporary.unlink(missing_ok=True)
