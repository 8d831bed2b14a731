"""Callbacks that every run of the ``saccade`` command has, in addition to ``trainer.callbacks``."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor, ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from saccade.callbacks.export import ModelExport
from saccade.callbacks.prediction_table import PredictionTable
from saccade.cli.run_folders import CHECKPOINTS, MODEL


class BestCheckpoint(ModelCheckpoint):
    """Save the weights with the lowest `val_loss` as ``checkpoints/best.ckpt``, if `val_loss` is logged."""

    def __init__(self, dirpath: Path) -> None:
        super().__init__(
            dirpath=dirpath, filename="best", monitor="val_loss", mode="min", save_top_k=1, enable_version_counter=False
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation that logged the loss."""
        if self._has_loss(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after an epoch whose validation logged the loss."""
        if self._has_loss(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def _has_loss(self, trainer: Trainer) -> bool:
        """Whether a finite loss was logged: infinity and NaN are never the best, even if there is no other loss."""
        loss = trainer.callback_metrics.get(str(self.monitor))
        return loss is not None and bool(loss.isfinite())

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: a resumed run has its own folder, and its best checkpoint is the best of that folder."""
        return {}


class LastCheckpoint(Checkpoint):
    """Save the newest state as ``checkpoints/last.ckpt``: after every epoch, after every validation, and at the end.

    Ctrl-C and SIGTERM save too if there is one process. With several, saving would wait forever for a rank that was not
    interrupted.
    """

    def __init__(self) -> None:
        self._saved_step = 0

    def _save(self, trainer: Trainer) -> None:
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not fitting or trainer.fast_dev_run or trainer.global_step == self._saved_step:  # type: ignore[attr-defined]
            return
        trainer.save_checkpoint(Path(trainer.default_root_dir) / CHECKPOINTS / "last.ckpt")
        self._saved_step = trainer.global_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step at which the run starts or resumes."""
        self._saved_step = trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation in the middle of an epoch; at its end, ``on_train_epoch_end`` saves."""
        if not trainer.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after an epoch."""
        self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the steps after the last validation."""
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save after Ctrl-C or SIGTERM."""
        if isinstance(exception, (KeyboardInterrupt, SIGTERMException)) and trainer.world_size == 1:
            self._save(trainer)


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


def run_callbacks(folder: Path, subcommand: str, trainer_settings: dict[str, Any], given: list[Any]) -> list[Callback]:
    """Make the callbacks that a run has in addition to the user's.

    Args:
        folder: Folder of the run.
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        trainer_settings: The trainer's arguments; its switches for checkpoints, progress bar and logger are respected.
        given: The user's own callbacks; a progress bar or prediction table among them replaces ours.

    Returns:
        New callbacks.
    """
    callbacks: list[Callback] = [RunFolder()]
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
            callbacks += [BestCheckpoint(folder / CHECKPOINTS), LastCheckpoint()]
    return callbacks
