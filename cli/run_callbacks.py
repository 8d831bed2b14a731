"""The callbacks that every run of the ``saccade`` command has, whatever ``trainer.callbacks`` says."""

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
    """Keep the weights with the lowest `val_loss` as ``checkpoints/best.ckpt``; nothing where that is not logged."""

    def __init__(self, dirpath: Path) -> None:
        super().__init__(
            dirpath=dirpath, filename="best", monitor="val_loss", mode="min", save_top_k=1, enable_version_counter=False
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation that logged the loss."""
        if self._is_told(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after an epoch whose validation logged the loss."""
        if self._is_told(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def _is_told(self, trainer: Trainer) -> bool:
        """A loss that is no number is not the best, even where there is no other."""
        loss = trainer.callback_metrics.get(str(self.monitor))
        return loss is not None and bool(loss.isfinite())

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a resumed run has a folder of its own, and its best is the best of what lies there."""
        return {}


class LastCheckpoint(Checkpoint):
    """Keep the newest state as ``checkpoints/last.ckpt``: after every epoch, every validation, and at the end.

    Ctrl-C and SIGTERM save too, on one process: on several, a rank that was not interrupted would be waited for without
    end.
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
        """Begin to count at the step from which the run goes on."""
        self._saved_step = trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save in the middle of an epoch; the one after its last batch is saved when the epoch is complete."""
        if not trainer.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save a complete epoch."""
        self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what came after the last validation."""
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save what Ctrl-C or SIGTERM would lose."""
        if isinstance(exception, (KeyboardInterrupt, SIGTERMException)) and trainer.world_size == 1:
            self._save(trainer)


class RunProgressBar(RichProgressBar):
    """Lightning's bar, without what says nothing here."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The logged values to show beside the bar; no `v_num`, every run has its own folder."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def _get_train_description(self, current_epoch: int) -> str:
        """Without Lightning's "/-2" where steps end the run and not epochs."""
        text = super()._get_train_description(current_epoch)
        return text.replace("/-2", "").ljust(len(self.validation_description))


class RunFolder(Callback):
    """Give all ranks the run folder of the first one, where the ranks were started by something else than Lightning."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over the first rank's folder before any other callback asks for it."""
        folder = trainer.strategy.broadcast(trainer.default_root_dir)
        # Lightning offers no other way to change it once the trainer is built
        trainer._default_root_dir = folder  # type: ignore[attr-defined]


def run_callbacks(folder: Path, subcommand: str, trainer_settings: dict[str, Any], given: list[Any]) -> list[Callback]:
    """Make the callbacks of a run.

    Args:
        folder: Of the run.
        subcommand: fit, validate, test or predict.
        trainer_settings: The trainer's arguments; its switches for checkpoints, progress bar and logger hold here too.
        given: The user's own callbacks; of two progress bars or tables theirs is the one.

    Returns:
        New callbacks, to be added to the user's.
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
