"""A multimodal model measured under missing data inside Lightning's validation and test, on any number of ranks."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from saccade.callbacks.isolation import undisturbed
from saccade.callbacks.missing_data import report as missing_data_report
from saccade.callbacks.missing_data.length_buckets import Parts
from saccade.callbacks.missing_data.totals import (
    PredictionPool,
    Run,
    Summary,
    by_condition,
    by_group,
    logged,
    runs_of,
)
from saccade.callbacks.run_folder import run_folder
from saccade.common.distributed import shards_parameters
from saccade.common.progress import Bar, progress_bar
from saccade.common.records import plain
from saccade.datamodules.multimodal.batch import MultimodalBatch
from saccade.datamodules.multimodal.missing.base import MissingProtocol, erase
from saccade.datamodules.multimodal.sentiment import derive_availability
from saccade.modules.metrics import metrics_for

_BAR_STEP = 16  # runs for each redraw of the bar: a terminal is slower than a small model


@dataclass
class _Task:
    """What a model says of its task."""

    name: Literal["regression", "classification"]
    label_range: float
    classes: int | None

    @classmethod
    def of(cls, pl_module: Any) -> _Task:
        return cls(pl_module.task, pl_module.label_range, pl_module.classes)

    @property
    def columns(self) -> int:
        """Numbers of one prediction."""
        return int(self.classes or 0) if self.name == "classification" else 1


class MissingDataEvaluation(Callback):
    """Evaluates a multimodal model under every condition of a missing-data protocol: the whole bench in one pass.

    Every evaluation batch is taken in its complete form, corrupted once for each condition and mask seed, and given to
    the model without its label and its complete form. What is missing depends on the sample's id, the condition and the
    mask seed only, so neither the batch size nor the number of ranks changes a result, and samples that a distributed
    sampler hands out twice count once. Seeds of masks are not seeds of training.

    Logged are the means of groups of conditions as ``missing/<group>/<metric>``, so that a checkpoint or early stopping
    can watch them: over all rates of a curve (with ``auilc_<metric>``, the area under it, when it begins at 0), over
    all patterns of modalities except the complete one. Everything is written to ``missing.json``, ``missing.md``,
    ``missing_rates.png``, ``missing_patterns.png`` and ``missing_weights.png`` in the run folder; the groups are
    printed as a table. Training is not disturbed: the model's modes and all random states are restored.

    Args:
        protocol: The conditions to test.
        mask_seeds: Number of mask seeds, 0 to ``mask_seeds - 1``, for conditions that draw at random. Results are means
            and standard deviations over them.
        every_n_validations: During ``fit``, run in every n-th validation.
        during_fit: Also run in the validations of ``fit``; ``validate`` and ``test`` always run.

    Raises:
        ValueError: A setting outside its range, a model that does not take a ``MultimodalBatch``, data without labels,
            or a run folder that cannot be written to.
    """

    def __init__(
        self,
        protocol: MissingProtocol,
        mask_seeds: int = 5,
        every_n_validations: int = 1,
        during_fit: bool = False,
    ) -> None:
        if not isinstance(protocol, MissingProtocol):
            raise ValueError(
                "protocol: must be a saccade.datamodules.MissingProtocol, but is of type "
                f"{type(protocol).__name__}; name one by its class_path"
            )
        for name, value in (("mask_seeds", mask_seeds), ("every_n_validations", every_n_validations)):
            if value < 1:
                raise ValueError(f"{name}: must be at least 1, but is {value}")
        self.protocol = protocol
        self.mask_seeds = mask_seeds
        self.every_n_validations = every_n_validations
        self.during_fit = during_fit
        self.rows: list[dict[str, Any]] = []
        """Rows of the latest ``missing.json``, the same on every rank."""
        self._runs: list[Run] = []
        self._validations = 0
        self._checkpoint: dict[str, Any] = {}
        self._pool: PredictionPool | None = None  # None: this pass is not evaluated
        self._masks = "oracle"
        self._divisible: bool | None = None  # whether the model takes parts of a batch; None: not tried yet
        self._screen = ExitStack()
        self._bar: Bar | None = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remembers which weights are evaluated."""
        self._checkpoint = {"epoch": checkpoint.get("epoch"), "global_step": checkpoint.get("global_step")}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decides whether this validation is evaluated."""
        if trainer.sanity_checking:
            return
        if trainer.state.fn == "fit":
            self._validations += 1
            if not self.during_fit or self._validations % self.every_n_validations:
                return
        self._start(trainer, pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the evaluation."""
        self._start(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Evaluates a batch under every condition."""
        if self._pool is not None:
            self._evaluate(trainer, pl_module, batch, self._pool)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Evaluates a batch under every condition."""
        if self._pool is not None:
            self._evaluate(trainer, pl_module, batch, self._pool)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs and reports."""
        self._finish(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs and reports."""
        self._finish(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves the screen and the memory as they were."""
        self._stop()

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run_folder(trainer)  # before the work: a folder that cannot be written to is known now
        missing = [name for name in ("task", "label_range", "classes") if not hasattr(pl_module, name)]
        if missing:
            raise ValueError(
                f"MissingDataEvaluation: the model must say its {', '.join(missing)}, but {type(pl_module).__name__} "
                "does not; derive it from saccade.modules.MultimodalModule"
            )
        self._runs = runs_of(self.protocol.conditions(), self.mask_seeds)
        self._pool = PredictionPool(len(self._runs), _Task.of(pl_module).columns)
        self._divisible = None
        # data of another kind hands over its own masks
        self._masks = str(getattr(getattr(trainer, "datamodule", None), "masks", "oracle"))

    def _stop(self) -> None:
        self._screen.close()
        self._bar = self._pool = None

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule, batch: Any, pool: PredictionPool) -> None:
        if not isinstance(batch, MultimodalBatch) or batch.label is None:
            found = "batches without labels" if isinstance(batch, MultimodalBatch) else type(batch).__name__
            raise ValueError(
                "MissingDataEvaluation: the data must come as MultimodalBatch with labels, but it gives "
                f"{found}; use saccade.datamodules.MultimodalSentiment"
            )
        if self._bar is None:  # not earlier: Lightning's own bar must be on screen, or there would be two displays
            batches = sum(trainer.num_test_batches if trainer.testing else trainer.num_val_batches)
            # of a loader without length nobody knows how many there will be
            total = len(self._runs) * (int(batches) if math.isfinite(batches) else 1)
            self._bar = self._screen.enter_context(progress_bar(total, "missing data", trainer))
        complete = replace(batch if batch.complete is None else batch.complete, complete=None)
        outcomes = []
        with undisturbed(pl_module), trainer.precision_plugin.forward_context():
            parts = self._parts(trainer, pl_module, complete)
            for place, run in enumerate(self._runs, 1):
                outcomes.append(self._outcome(pl_module, complete, run, parts))
                if place % _BAR_STEP == 0 or place == len(self._runs):
                    self._bar.advance((place - 1) % _BAR_STEP + 1)
        # one transfer for all runs of the batch
        pool.add(batch.key, batch.label, torch.stack(outcomes, 1))

    def _parts(self, trainer: Trainer, pl_module: LightningModule, complete: MultimodalBatch) -> Parts | None:
        """Parts of similar length, which are several times as fast; None for a model that does not take them.

        A model to which padding means something, or that is made for one length, must get whole batches: that is found
        out by trying. So must one with weights spread over ranks, which need to make the same number of calls.
        """
        if self._divisible is False or (trainer.world_size > 1 and shards_parameters(trainer)):
            return None
        parts = Parts.of(complete)
        if self._divisible is None:
            asked = replace(complete, label=None)
            try:
                whole = self._predict(pl_module, asked)
            except Exception as error:
                raise _failure(pl_module, "failed on complete data", error) from error
            try:
                divided = parts.map(lambda part: self._predict(pl_module, part), asked)
                self._divisible = torch.allclose(whole, divided, rtol=1e-4, atol=1e-4, equal_nan=True)
            except Exception:  # whatever it is, the whole batch went well
                self._divisible = False
        return parts if self._divisible else None

    def _outcome(self, pl_module: LightningModule, complete: MultimodalBatch, run: Run, parts: Parts | None) -> Tensor:
        """Prediction, weights and observed shares of one batch under one condition, [B, columns + 6]."""
        corrupted = erase(complete, run.condition, run.seed)
        if self._masks == "derived":
            corrupted = derive_availability(corrupted)
        # neither the answer nor what was taken away
        asked = replace(corrupted, complete=None, label=None)
        try:
            if parts is None:
                return self._predict(pl_module, asked)
            return parts.map(lambda part: self._predict(pl_module, part), asked)
        except Exception as error:
            raise _failure(pl_module, f"failed on condition {run.condition.name!r}", error) from error

    def _predict(self, pl_module: LightningModule, batch: MultimodalBatch) -> Tensor:
        observed = batch.observed.float()
        prediction = pl_module(batch)
        values = prediction.value.detach().float().reshape(len(batch), _Task.of(pl_module).columns)
        weights = prediction.weights
        weights = torch.full_like(observed, torch.nan) if weights is None else weights.detach().float()
        return torch.cat([values, weights, observed], 1)

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pool = self._pool
        self._stop()
        if pool is None:
            return
        predictions = pool.gathered(pl_module.device)
        if len(predictions) == 0:
            rank_zero_warn("MissingDataEvaluation: there was no sample, nothing was evaluated.")
            return
        if predictions.repeated and trainer.world_size == 1:
            rank_zero_warn(
                f"MissingDataEvaluation: {predictions.repeated} samples have the key of another one, so each such key "
                "counts once; give every sample an id of its own."
            )
        task = _Task.of(pl_module)
        classification = task.name == "classification"
        metrics = metrics_for(task.name, task.label_range, task.classes)
        conditions = by_condition(self._runs, predictions.scores(metrics, classification))
        groups = by_group(conditions)
        constants = predictions.constants(metrics, classification, task.label_range)
        self.rows = missing_data_report.rows(
            conditions, groups, self._context(trainer, pl_module) | {"samples": len(predictions), "constant": constants}
        )
        self._log(pl_module, groups)
        if trainer.is_global_zero:
            missing_data_report.write(self.rows, run_folder(trainer))
            missing_data_report.show(self.rows, trainer)

    def _log(self, pl_module: LightningModule, groups: list[Summary]) -> None:
        for name, value in logged(groups).items():
            # equal on every rank already: nothing to synchronise
            pl_module.log(name, value, rank_zero_only=False, sync_dist=False)

    def _context(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What is the same for all rows."""
        data, floors = getattr(trainer, "datamodule", None), getattr(pl_module, "floors", None)
        stage = trainer.state.fn.value if trainer.state.fn is not None else None
        now = {"epoch": trainer.current_epoch, "global_step": trainer.global_step}
        loaded = stage != "fit" and trainer.ckpt_path is not None
        return {
            "module": type(pl_module).__name__,
            "dataset": getattr(data, "dataset", None),
            "protocol": type(self.protocol).__name__,
            "protocol_settings": plain(self.protocol),
            "mask_seeds": self.mask_seeds,
            "masks": self._masks,
            "task": pl_module.task,
            "label_range": pl_module.label_range,
            "classes": pl_module.classes,
            "stage": stage,
            **({"epoch": None, "global_step": None} | self._checkpoint if loaded else now),
            "floors": plain(floors()) if callable(floors) else {},
            "ranks": trainer.world_size,
            "strategy": type(trainer.strategy).__name__,
            "precision": str(trainer.precision),
        }


def _failure(pl_module: LightningModule, what: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(
        "MissingDataEvaluation: the model must map a MultimodalBatch to a Prediction, but "
        f"{type(pl_module).__name__} {what}: {reason}"
    )
