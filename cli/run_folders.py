"""Run folders ``runs/<name>/<time>``: create them, and find earlier ones."""

import json
import os
import re
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

from saccade.cli.errors import UsageError

CHECKPOINTS = "checkpoints"
MODEL = "model"
LATEST = "latest"

_TIME = re.compile(r"(\d{8}-\d{6})(?:-(\d+))?")
# files that a run writes before it has results
_RECORDS = {"config.yaml", "provenance.json", "hparams.yaml"}


def check_name(name: str) -> str:
    """Refuse a run name that is not a plain folder name.

    Args:
        name: Name of the run.

    Returns:
        The same name.

    Raises:
        UsageError: The name is empty, or contains other characters than letters, digits, dot, dash and underscore.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(
            f"--name must be a plain folder name, got {name!r}: use letters, digits, '.', '-' and '_' only."
        )
    return name


def create_run_folder(runs_folder: str, name: str) -> Path:
    """Create the folder of a new run; two runs that start in the same second get different folders.

    Args:
        runs_folder: Folder of all runs.
        name: Name of the run.

    Returns:
        A new, empty folder ``<runs_folder>/<name>/<YYYYmmdd-HHMMSS>``, followed by ``-1``, ``-2``, ... if it exists.

    Raises:
        UsageError: The folder cannot be created.
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
            f"cannot create the run folder {parent} ({error.strerror}): choose another folder with --runs_folder."
        ) from error


def discard_if_without_results(folder: Path) -> bool:
    """Remove the folder of a run that failed before it had results.

    Args:
        folder: Folder of the run.

    Returns:
        Whether it was removed. It is kept if it contains more than the files that are written at the start.
    """
    if any(path.is_file() and path.name not in _RECORDS for path in folder.rglob("*")):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    for parent in list(folder.parents)[:1]:
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()
    return True


def earlier_runs(runs_folder: str, name: str) -> list[Path]:
    """Return the folders of the runs with a name, the newest first.

    Args:
        runs_folder: Folder of all runs.
        name: Name of the runs.
    """
    parent = Path(runs_folder) / name
    found: list[tuple[str, int, Path]] = []
    for folder in parent.iterdir() if parent.is_dir() else ():
        match = _TIME.fullmatch(folder.name)
        if match and folder.is_dir():
            found.append((match[1], int(match[2] or 0), folder))
    return [folder for *_, folder in sorted(found, reverse=True)]


def find_checkpoint(runs_folder: str, name: str, which: str) -> Path:
    """Find the checkpoint for ``--ckpt_path last`` or ``--ckpt_path best``.

    Args:
        runs_folder: Folder of all runs.
        name: Name of the run.
        which: ``last`` or ``best``.

    Returns:
        The checkpoint of the newest fit with this name; a folder if DeepSpeed wrote it. If that fit was continued from
        a checkpoint and ended before it saved one, this is the checkpoint from which it was continued, or the best of
        the fit to which that one belongs.

    Raises:
        UsageError: No fit with this name has one, or the newest has none and an older one has.
    """
    fits = [folder for folder in earlier_runs(runs_folder, name) if _was_fit(folder)]
    if found := _newest(fits[0], which) if fits else None:
        return found
    for folder in fits:
        checkpoint = folder / CHECKPOINTS / f"{which}.ckpt"
        if checkpoint.exists():
            raise UsageError(
                f"--ckpt_path {which} needs {which}.ckpt of the newest fit, {fits[0]}, which ended before it saved one:"
                f" give the one of an older fit as --ckpt_path {checkpoint}, or remove the folder of the newest."
            )
    if which == "best" and any((folder / CHECKPOINTS / "last.ckpt").exists() for folder in fits):
        raise UsageError(
            f"--ckpt_path best needs best.ckpt of a fit, got none in {Path(runs_folder) / name}: a validation saves it"
            " if it logs the metric of the model, which is val_loss for most; validate in fit, or use --ckpt_path last."
        )
    raise UsageError(
        f"--ckpt_path {which} needs a run with {which}.ckpt, got none in {Path(runs_folder) / name}: run `saccade fit`"
        " first, or name the run with --name."
    )


def _newest(folder: Path, which: str) -> Path | None:
    """Find a checkpoint in the folder of a fit, or of the fit that it continued."""
    checkpoint = folder / CHECKPOINTS / f"{which}.ckpt"
    if checkpoint.exists():
        return checkpoint
    origin = _record(folder).get("checkpoint")
    if not origin or not Path(origin).exists():
        return None
    return Path(origin) if which == "last" else _newest(Path(origin).parents[1], which)


def _record(folder: Path) -> dict[str, Any]:
    """Read the provenance of a run; empty if there is none."""
    try:
        found = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _was_fit(folder: Path) -> bool:
    return (folder / CHECKPOINTS).exists() or _record(folder).get("subcommand") == "fit"


def point_latest_at(folder: Path) -> None:
    """Make ``runs/<name>/latest`` a link to this run, so that settings can name its exported model.

    If the file system does not support links, there is no such link; nothing else depends on it.

    Args:
        folder: Folder of a finished fit.
    """
    link = folder.parent / LATEST
    temporary = folder.parent / f".{LATEST}.{os.getpid()}"
    try:
        temporary.symlink_to(folder.name, target_is_directory=True)
        os.replace(temporary, link)
    except OSError:
        temporary.unlink(missing_ok=True)
