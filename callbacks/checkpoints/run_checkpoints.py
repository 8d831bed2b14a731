"""LastCheckpoint and BestCheckpoint: the two checkpoints of every run of ``saccade fit``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from saccade.callbacks.checkpoints.intervals import SaveInterval
from saccade.callbacks.checkpoints.stop_signals import StopSignals
from saccade.modules.exact_resume import ExactResume, Position

_STEPS_BETWEEN_CLOCKS = 50  # with several processes, which have to agree


class BestCheckpoint(ModelCheckpoint):
    """Save the weights that were best in a validation as ``checkpoints/best.ckpt``, if their metric is logged.

    The metric is the module's class attribute `best_metric`: its name in the log, and whether the lowest value (`min`)
    or the highest (`max`) is the best. Without this attribute it is the lowest `val_loss`.

    Args:
        dirpath: The folder.
        model: The module.
    """

    def __init__(self, dirpath: Path, model: LightningModule) -> None:
        metric, mode = getattr(model, "best_metric", ("val_loss", "min"))
        super().__init__(
            dirpath=dirpath, filename="best", monitor=metric, mode=mode, save_top_k=1, enable_version_counter=False
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation that logged the metric."""
        if self._is_logged(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after an epoch whose validation logged the metric."""
        if self._is_logged(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def _is_logged(self, trainer: Trainer) -> bool:
        """Whether a finite value was logged: infinity and NaN are never the best, even if there is no other value."""
        value = trainer.callback_metrics.get(str(self.monitor))
        return value is not None and bool(value.isfinite())

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: a resumed run has its own folder, and its best checkpoint is the best of that folder."""
        return {}


class LastCheckpoint(Checkpoint):
    """Save the newest state of a training as ``checkpoints/last.ckpt``.

    It is saved after every epoch and every validation, at the end, and in between after the interval `save_every`.
    With one process it is also saved whenever something else ends the training: Ctrl-C and SIGTERM take effect at the
    end of the optimizer step, and after an error the state of the last finished step is saved. With several processes,
    saving after an error would wait forever for a process that had none.

    Args:
        path: The file.
        save_every: Optimizer steps or time between two saves within an epoch; None saves none there.

    Attributes:
        saved_step: Optimizer steps at the last save; None before the first.
    """

    def __init__(self, path: Path, save_every: SaveInterval | None = None) -> None:
        self.path = path
        self.saved_step: int | None = None
        self._interval = save_every
        self._saved: Position | None = None
        self._signals = StopSignals()
        self._failed = False

    def _save(self, trainer: Trainer) -> None:
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not fitting or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        resume = ExactResume.of(trainer)
        position = resume.position(trainer)
        if position is None or position.steps == resume.first_step or position == self._saved:
            return
        self._failed = True
        trainer.save_checkpoint(self.path)
        self._failed, self._saved, self.saved_step = False, position, position.steps
        if self._interval is not None:
            self._interval.restart(position.steps)

    def _save_if_due(self, trainer: Trainer) -> None:
        if self._interval is None:
            return
        if self._interval.seconds is None or trainer.world_size == 1:
            due = self._interval.is_over(trainer.global_step)
        elif trainer.global_step % _STEPS_BETWEEN_CLOCKS:
            return
        else:  # clocks differ, and all ranks save or none
            due = trainer.strategy.broadcast(self._interval.is_over(trainer.global_step))
        if due:
            self._save(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and handle signals."""
        if self._interval is not None:
            self._interval.restart(trainer.global_step)
        if trainer.world_size == 1:
            self._signals.install()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop between two epochs."""
        self._signals.raise_if_received()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save or stop between two optimizer steps."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._signals.raise_if_received()
            self._save_if_due(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save or stop before a validation, which may take long."""
        if not trainer.sanity_checking:
            self._signals.raise_if_received()
            self._save_if_due(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop within a validation."""
        self._signals.raise_if_received()

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
        self._signals.remove()
        self._signals.raise_if_received()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the last finished step, whatever ended the training."""
        self._signals.remove()
        if trainer.world_size > 1 or self._failed:
            return
        try:
            self._save(trainer)
        except Exception as error:  # of any kind: the first error is the one to report
            print(f"saccade: the last steps are not saved: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
