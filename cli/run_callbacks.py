"""Callbacks that every run of the ``saccade`` command has, in addition to ``trainer.callbacks``."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar, RichProgressBar

from saccade.callbacks.checkpoints.intervals import SaveInterval
from saccade.callbacks.checkpoints.run_checkpoints import BestCheckpoint, LastCheckpoint
from saccade.callbacks.export import ModelExport
from saccade.callbacks.prediction_table import PredictionTable
from saccade.cli.run_folders import CHECKPOINTS, MODEL
from saccade.modules.exact_resume import ExactResume


class RunProgressBar(RichProgressBar):
    """Lightning's progress bar without the version number and without an unknown number of epochs."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the logged values to show beside the bar, without `v_num`: every run has its own folder."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def _get_train_description(self, current_epoch: int) -> str:
        """Remove Lightning's "/-2" if the number of epochs is not limited."""
        text = super()._get_train_description(current_epoch)
        return text.replace("/-2", "").ljust(len(self.validation_description))


class RunFolder(Callback):
    """Give all ranks the run folder of the first rank, if they were not started by Lightning."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the first rank's folder before any other callback uses it."""
        folder = trainer.strategy.broadcast(trainer.default_root_dir)
        # Lightning offers no other way to change it once the trainer is built
        trainer._default_root_dir = folder  # type: ignore[attr-defined]


def run_callbacks(
    folder: Path,
    subcommand: str,
    trainer_settings: dict[str, Any],
    given: list[Any],
    model: LightningModule,
    save_every: int | str | None = None,
) -> list[Callback]:
    """Make the callbacks that a run has in addition to the user's.

    Args:
        folder: Folder of the run. A `ModelCheckpoint` among the given callbacks that names no other folder saves in its
            ``checkpoints``, where ``--ckpt_path last`` and ``best`` look.
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        trainer_settings: The trainer's arguments; its switches for checkpoints, progress bar and logger are respected.
        given: The user's own callbacks; a progress bar or prediction table among them replaces ours, and so does a
            `ModelCheckpoint` that writes ``best.ckpt``.
        model: The module; those of saccade attach `ExactResume` themselves. Its `best_metric` says what is best.
        save_every: Interval of the saves within an epoch; see `SaveInterval.parse`.

    Returns:
        New callbacks.

    Raises:
        ValueError: The interval is neither a number of steps nor a time.
    """
    callbacks: list[Callback] = [RunFolder()]
    attached = model.configure_callbacks()
    attached = list(attached) if isinstance(attached, Sequence) else [attached]
    if not any(isinstance(callback, ExactResume) for callback in attached):
        callbacks.append(ExactResume())
    interval = SaveInterval.parse(save_every)
    checkpoints = os.path.realpath(folder / CHECKPOINTS)
    saving = [callback for callback in given if isinstance(callback, ModelCheckpoint)]
    for callback in saving:
        if callback.dirpath is None:
            callback.dirpath = checkpoints
    shows_progress = trainer_settings.get("enable_progress_bar") is not False
    if shows_progress and not any(isinstance(callback, ProgressBar) for callback in given):
        callbacks.append(RunProgressBar())
    if subcommand == "predict" and not any(isinstance(callback, PredictionTable) for callback in given):
        callbacks.append(PredictionTable())
    if subcommand == "fit":
        if trainer_settings.get("logger") is not False:
            callbacks.append(LearningRateMonitor(logging_interval="step"))
        callbacks.append(ModelExport(MODEL))
        if trainer_settings.get("enable_checkpointing") is not False:
            if not any(callback.filename == "best" and callback.dirpath == checkpoints for callback in saving):
                callbacks.append(BestCheckpoint(Path(checkpoints), model))
            callbacks.append(LastCheckpoint(Path(checkpoints) / "last.ckpt", interval))
    return callbacks
