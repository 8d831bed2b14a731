"""ExactResume: a fit that continues from a checkpoint computes what it would have computed without the interruption."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from saccade.modules.random_states import RandomStates, set_random_states, storable

_KEY = "saccade_position"


@dataclass(frozen=True)
class Position:
    """A place in a training at which no optimizer step is half done.

    Attributes:
        epoch: Epochs that are finished.
        batches: Batches of the next epoch that are trained; with gradient accumulation, a whole number of steps.
        steps: Optimizer steps since the start of the training.
        all_batches: Batches since the start of the training.
        validation_due: Whether the validation after the last of these batches is still to be run.
    """

    epoch: int
    batches: int
    steps: int
    all_batches: int
    validation_due: bool = False


class ExactResume(Callback):
    """Store the exact position of a training in its checkpoints, and continue there.

    The weights change only in optimizer steps, but a run can be interrupted anywhere: while it reads a batch, between
    two batches of one step, in a validation, or in a callback. Lightning (2.6) counts a batch as read before it is
    trained, restores the position of a loader only if nothing asked for the length of the training before, and starts
    the next epoch after a stop in the middle of one. This callback notes the last position at which no step was half
    done, with the states of the random generators there, and rewrites Lightning's counters when the checkpoint is
    loaded. A resumed run then has the same weights as one that was not interrupted, bit for bit on a CPU.

    The modules of saccade attach this callback themselves (`configure_callbacks`). A callback with the attribute
    `whole_epochs = True` repeats an epoch from its start, because it prepares each epoch on its own.

    Source: ours.

    Attributes:
        first_step: Optimizer steps when this run began: those of the checkpoint that it continues, else 0.
    """

    def __init__(self) -> None:
        self.first_step = 0
        self._epoch_start: Position | None = None
        self._step_start: Position | None = None
        self._random = RandomStates()
        self._step_random: dict[str, Any] = {}
        self._validation_random: dict[str, Any] | None = None
        self._validated: tuple[int, int] | None = None
        self._updating = False
        self._begun = False
        self._resumed: Position | None = None
        self._resumed_random: dict[str, Any] | None = None

    @staticmethod
    def of(trainer: Trainer) -> ExactResume:
        """Return the callback of a trainer; every fit of the ``saccade`` command has one.

        Args:
            trainer: The trainer.
        """
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        return next(callback for callback in callbacks if isinstance(callback, ExactResume))

    # where the training is

    def position(self, trainer: Trainer) -> Position | None:
        """Return the last position that the current weights belong to.

        Args:
            trainer: The trainer, in its fit.

        Returns:
            The position; None before the first batch, and if an optimizer step was interrupted.
        """
        if self._step_start is None:
            return None
        epochs, batches = _counters(trainer)
        over = epochs.processed == epochs.ready
        epoch = epochs.processed - over
        if self._step_start.epoch < epoch:  # the hooks at the start of an epoch are running
            return Position(epoch, 0, trainer.global_step, batches.total.processed)
        done = batches.current.processed
        if batches.current.ready > done or not self._begun:  # a batch is being trained, or none was read
            return None if self._updating else self._step_start
        last = batches.is_last_batch or done == trainer.num_training_batches
        if not last and done % trainer.accumulate_grad_batches:
            return self._step_start
        due = not over and self._validation_due(trainer, epoch, done)
        if last and not due:
            epoch, done = epoch + 1, 0
        return Position(epoch, done, trainer.global_step, batches.total.processed, due)

    def _validation_due(self, trainer: Trainer, epoch: int, batches: int) -> bool:
        if self._validated == (epoch, batches) or trainer.should_stop:
            return False
        if trainer.validating:
            return True
        # a validation by the clock comes when the clock says so, also in the resumed run
        by_clock = getattr(trainer, "_val_check_time_interval", None) is not None
        fetcher = trainer.fit_loop._data_fetcher
        return not by_clock and fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the start of an epoch."""
        self._restore_random(trainer)
        epochs, batches = _counters(trainer)
        self._begun = False
        self._note(trainer, Position(epochs.processed, 0, trainer.global_step, batches.total.processed))
        self._epoch_start = self._step_start

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the start of an optimizer step."""
        self._restore_random(trainer)
        self._begun, self._updating = True, False
        if batch_idx % trainer.accumulate_grad_batches == 0:
            epochs, batches = _counters(trainer)
            self._note(trainer, Position(epochs.processed, batch_idx, trainer.global_step, batches.total.processed))

    def _note(self, trainer: Trainer, position: Position) -> None:
        self._step_start, self._step_random = position, self._read_random(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Note that the weights are about to change."""
        self._updating = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note that the weights have changed."""
        self._updating = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the random states before a validation."""
        if not trainer.sanity_checking:
            self._restore_random(trainer)
            self._validation_random = self._read_random(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the validation at this position is done."""
        if not trainer.sanity_checking and trainer.state.fn == TrainerFn.FITTING:
            epochs, batches = _counters(trainer)
            self._validated, self._validation_random = (epochs.processed, batches.current.processed), None

    # checkpoints

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the position and the random states of all ranks to a checkpoint."""
        position = self.position(trainer) if trainer.state.fn == TrainerFn.FITTING else None
        if position is None:
            return
        states = self._read_random(trainer)
        if position is self._step_start:
            states = self._step_random
        elif position.validation_due and trainer.validating:
            states = self._validation_random or states
        states = storable(states)
        ranks = [states]
        if trainer.world_size > 1 and torch.distributed.is_initialized():
            ranks = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(ranks, states)
        start = self._epoch_start if self._epoch_start and self._epoch_start.epoch == position.epoch else None
        checkpoint[_KEY] = {
            "position": asdict(position),
            "epoch_start": asdict(start or replace(position, batches=0, validation_due=False)),
            "random": ranks,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Rewrite Lightning's counters in a checkpoint to the position that this callback stored in it."""
        self.first_step = checkpoint["global_step"]  # also if no other step is trained
        stored = checkpoint.get(_KEY)
        if stored is None or trainer.state.fn != TrainerFn.FITTING:
            return
        position, start = Position(**stored["position"]), Position(**stored["epoch_start"])
        if any(getattr(callback, "whole_epochs", False) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            position = start
        rewrite_counters(checkpoint["loops"]["fit_loop"], position, start)
        self._resumed, self._epoch_start = position, start
        ranks = stored["random"]
        self._resumed_random = ranks[trainer.global_rank] if trainer.global_rank < len(ranks) else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the loaders their position, and start the next epoch as a whole one if none was interrupted."""
        self.first_step = trainer.global_step
        if self._resumed is not None and self._resumed.batches == 0:
            # with `max_steps`, Lightning treats every resumed epoch as an interrupted one
            for loop in (trainer.fit_loop, trainer.fit_loop.epoch_loop, trainer.fit_loop.epoch_loop.val_loop):
                loop._restarting = False
        elif self._resumed is not None and trainer.fit_loop._combined_loader_states_to_load:
            # the loader was made before its state was read, to count the steps of the training
            trainer.fit_loop._combined_loader = None
            trainer.fit_loop.setup_data()
        if self._resumed is not None:  # an interruption before the first batch saves what was loaded
            self._step_start, self._step_random = self._resumed, self._resumed_random or self._read_random(trainer)
            self._begun = False
        self._resumed = None

    def _restore_random(self, trainer: Trainer) -> None:
        """Set the random states of the checkpoint, once: when the first work after it begins."""
        states, self._resumed_random = self._resumed_random, None
        if states:
            set_random_states(states, trainer.strategy.root_device)

    def _read_random(self, trainer: Trainer) -> dict[str, Any]:
        return self._random.read(trainer.strategy.root_device)


def _counters(trainer: Trainer) -> tuple[Any, Any]:
    """Lightning's counters of the epochs, and of the batches in this epoch (`current`) and in all (`total`)."""
    return trainer.fit_loop.epoch_progress.current, trainer.fit_loop.epoch_loop.batch_progress


def rewrite_counters(fit_loop: dict[str, Any], position: Position, epoch_start: Position) -> None:
    """Set the counters of Lightning's fit loop to a position.

    Args:
        fit_loop: `checkpoint["loops"]["fit_loop"]`, changed in place.
        position: Where to continue.
        epoch_start: The position at the start of its epoch.
    """
    inside = position.batches > 0
    due = position.validation_due
    names = ("ready", "started", "processed", "completed")

    def counts(*values: int) -> dict[str, int]:
        return dict(zip(names, values, strict=True))

    begun = position.epoch + inside
    epochs = counts(begun, begun, position.epoch, position.epoch)
    fit_loop["epoch_progress"] = {"total": dict(epochs), "current": epochs}
    # the counters that Lightning has after the last batch: before its hooks, or in the validation that follows
    open_batch = int(inside and not due)
    fit_loop["epoch_loop.batch_progress"] |= {
        "total": counts(*[position.all_batches] * 3, position.all_batches - open_batch),
        "current": counts(*[position.batches] * 3, position.batches - open_batch),
        "is_last_batch": False,
    }
    validation = counts(1, 1, 0, 0) if due else counts(0, 0, 0, 0)
    fit_loop["epoch_loop.val_loop.batch_progress"] |= {"total": dict(validation), "current": validation}
    steps = fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
    steps["total"] |= {"ready": position.steps, "completed": position.steps}
    steps["current"] |= dict.fromkeys(("ready", "completed"), position.steps - epoch_start.steps)
    # Lightning adds the step of the last batch when it continues inside of an epoch
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = position.steps - inside
    for state in fit_loop["state_dict"].get("combined_loader", []):
        if set(state) == {"epoch", "batches"}:
            state |= {"epoch": position.epoch, "batches": position.batches}
