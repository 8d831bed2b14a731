"""Where a run keeps its results."""

from __future__ import annotations

import os
from pathlib import Path

from lightning.pytorch import Trainer


def run_folder(trainer: Trainer) -> Path:
    """The folder of this run: ``trainer.default_root_dir``, created when it is missing.

    Args:
        trainer: The trainer of the run. Under the ``saccade`` command its root is ``runs/<name>/<time>``.

    Returns:
        An existing folder that can be written to.

    Raises:
        ValueError: The folder cannot be created or written to.
    """
    folder = Path(trainer.default_root_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"run folder {folder} cannot be created ({error.strerror}): choose another with --runs_folder."
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"run folder {folder} is not writable: choose another with --runs_folder.")
    return folder
