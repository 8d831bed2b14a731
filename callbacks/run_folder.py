"""The folder in which a run keeps its results."""

from __future__ import annotations

import os
from pathlib import Path

from lightning.pytorch import Trainer


def run_folder(trainer: Trainer) -> Path:
    """Return the folder of this run, ``trainer.default_root_dir``, and create it if it is missing.

    Args:
        trainer: The trainer of the run. The ``saccade`` command sets its root folder to ``runs/<name>/<time>``.

    Returns:
        The folder, which exists and can be written to.

    Raises:
        ValueError: The folder cannot be created or written to.
    """
    folder = Path(trainer.default_root_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"cannot create the run folder {folder} ({error.strerror}): choose another folder with --runs_folder."
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write to the run folder {folder}: choose another folder with --runs_folder.")
    return folder
