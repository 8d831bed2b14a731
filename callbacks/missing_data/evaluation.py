"""MissingDataEvaluation: evaluate a multimodal model with missing data, on any number of ranks."""

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
    EvaluationPass,
    PredictionPool,
    Summary,
    by_condition,
    by_group,
    logged,
    passes_of,
)
from saccade.callbacks.run_folder import run_folder
from saccade.common.checks import check_count
from saccade.common.distributed import shards_parameters
from saccade.common.progress import Bar, progress_bar
from saccade.common.records import plain
from saccade.datamodules.multimodal.batch import MultimodalBatch
from saccade.datamodules.multimodal.missing.base import MissingProtocol, erase
from saccade.datamodules.multimodal.sentiment import derive_availability
from saccade.modules.metrics import metrics_for

_BAR_STEP = 16  # passes between updates of the bar: a small model is faster than a terminal


@dataclass
class _Task:
    """The task of a model."""

    name: Literal["regression", "classification"]
    label_range: float
    classes: int | None

    @classmethod
    def of(cls, pl_module: Any) -> _Task:
        return cls(pl_module.task, pl_module.label_range, pl_module.classes)

    @property
    def columns(self) -> int:
        """Number of values in one prediction."""
        return int(self.classes or 0) if self.name == "classification" else 1


class MissingDataEvaluation(Callback):
    """Evaluate a multimodal model under every condition of a missing-data protocol, in one pass over the data.

    Every evaluation batch is used in its complete form, corrupted once for each condition and mask seed, and given to
    the model without its label and its complete form. What is missing depends only on the sample's id, the condition
    and the mask seed. So neither the batch size nor the number of ranks changes a result, and samples that a
    distributed sampler repeats count once. The seeds of masks are independent of the seed of the training.

    The means of groups of conditions are logged as ``missing/<group>/<metric>``, so that a checkpoint or early stopping
    can monitor them: over all rates of a curve (with ``auilc_<metric>``, the area under it, if it begins at 0), or over
    all patterns of modalities except the complete one. All results are written to ``missing.json``, ``missing.md``,
    ``missing_rates.png``, ``missing_patterns.png`` and ``missing_weights.png`` in the run folder; the groups are
    printed as a table. The training is not changed: the modes of the model's parts and all random states are restored.

    Args:
        protocol: The conditions to test.
        mask_seeds: Number of mask seeds, 0 to ``mask_seeds - 1``, for random conditions. Results are means and standard
            deviations over them.
        every_n_validations: During ``fit``, run in every n-th validation.
        during_fit: Also run in the validations of ``fit``; ``validate`` and ``test`` always run.

    Raises:
        ValueError: A setting is outside its range, the model does not accept a ``MultimodalBatch``, the data has no
            labels, or the run folder cannot be written to.
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
                f"protocol must be a saccade.datamodules.MissingProtocol, got {type(protocol).__name__}: name one by"
                " its class_path."
            )
        for name, value in (("mask_seeds", mask_seeds), ("every_n_validations", every_n_validations)):
            check_count(name, value)
        self.protocol = protocol
        self.mask_seeds = mask_seeds
        self.every_n_validations = every_n_validations
        self.during_fit = during_fit
        self.rows: list[dict[str, Any]] = []
        """The rows of the latest ``missing.json``, the same on every rank."""
        self._passes: list[EvaluationPass] = []
        self._validations = 0
        self._checkpoint: dict[str, Any] = {}
        self._pool: PredictionPool | None = None  # None: this validation is not evaluated
        self._masks = "oracle"
        self._divisible: bool | None = None  # whether parts of a batch give the same results; None: not tried yet
        self._screen = ExitStack()
        self._bar: Bar | None = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note from which epoch and step the weights are."""
        self._checkpoint = {"epoch": checkpoint.get("epoch"), "global_step": checkpoint.get("global_step")}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether this validation is evaluated."""
        if trainer.sanity_checking:
            return
        if trainer.state.fn == "fit":
            self._validations += 1
            if not self.during_fit or self._validations % self.every_n_validations:
                return
        self._start(trainer, pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the evaluation."""
        self._start(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Evaluate a batch under every condition."""
        if self._pool is not None:
            self._evaluate(trainer, pl_module, batch, self._pool)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Evaluate a batch under every condition."""
        if self._pool is not None:
            self._evaluate(trainer, pl_module, batch, self._pool)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the metrics, log and report."""
        self._finish(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the metrics, log and report."""
        self._finish(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the progress bar and free the predictions."""
        self._stop()

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run_folder(trainer)  # before the evaluation: an error if the folder cannot be written to
        missing = [name for name in ("task", "label_range", "classes") if not hasattr(pl_module, name)]
        if missing:
            raise ValueError(
                f"model must have the attributes task, label_range and classes, got {type(pl_module).__name__} without "
                f"{', '.join(missing)}: derive it from saccade.modules.MultimodalModule."
            )
        self._passes = passes_of(self.protocol.conditions(), self.mask_seeds)
        self._pool = PredictionPool(len(self._passes), _Task.of(pl_module).columns)
        self._divisible = None
        # other data provides its own masks
        self._masks = str(getattr(getattr(trainer, "datamodule", None), "masks", "oracle"))

    def _stop(self) -> None:
        self._screen.close()
        self._bar = self._pool = None

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule, batch: Any, pool: PredictionPool) -> None:
        if not isinstance(batch, MultimodalBatch) or batch.label is None:
            found = "batches without labels" if isinstance(batch, MultimodalBatch) else type(batch).__name__
            raise ValueError(
                f"data must give MultimodalBatch objects with labels to MissingDataEvaluation, got {found}: use "
                "saccade.datamodules.MultimodalSentiment."
            )
        if self._bar is None:  # not earlier: a bar joins Lightning's own, which must already be on screen
            batches = sum(trainer.num_test_batches if trainer.testing else trainer.num_val_batches)
            # the number of batches of a loader without length is unknown
            total = len(self._passes) * (int(batches) if math.isfinite(batches) else 1)
            self._bar = self._screen.enter_context(progress_bar(total, "missing data", trainer))
        complete = replace(batch if batch.complete is None else batch.complete, complete=None)
        outcomes = []
        with undisturbed(pl_module), trainer.precision_plugin.forward_context():
            parts = self._parts(trainer, pl_module, complete)
            for place, one in enumerate(self._passes, 1):
                outcomes.append(self._outcome(pl_module, complete, one, parts))
                if place % _BAR_STEP == 0 or place == len(self._passes):
                    self._bar.advance((place - 1) % _BAR_STEP + 1)
        # one transfer for all passes over the batch
        pool.add(batch.key, batch.label, torch.stack(outcomes, 1))

    def _parts(self, trainer: Trainer, pl_module: LightningModule, complete: MultimodalBatch) -> Parts | None:
        """Divide the batch into parts of similar length, which is several times as fast; None if that is not possible.

        A model whose results depend on padding, or that accepts one length only, must get whole batches; the first
        batch is used to find that out. So must a model with weights sharded over ranks, because all ranks must make the
        same number of calls.
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
            except Exception:  # of any kind: the whole batch was possible
                self._divisible = False
        return parts if self._divisible else None

    def _outcome(
        self, pl_module: LightningModule, complete: MultimodalBatch, one: EvaluationPass, parts: Parts | None
    ) -> Tensor:
        """Compute prediction, weights and observed shares of a batch under one condition, [B, columns + 6]."""
        corrupted = erase(complete, one.condition, one.seed)
        if self._masks == "derived":
            corrupted = derive_availability(corrupted)
        # without the label and without what was erased
        asked = replace(corrupted, complete=None, label=None)
        try:
            if parts is None:
                return self._predict(pl_module, asked)
            return parts.map(lambda part: self._predict(pl_module, part), asked)
        except Exception as error:
            raise _failure(pl_module, f"failed on condition {one.condition.name!r}", error) from error

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
            rank_zero_warn("MissingDataEvaluation: the data contains no samples, so nothing was evaluated.")
            return
        if predictions.repeated and trainer.world_size == 1:
            rank_zero_warn(
                f"MissingDataEvaluation: {predictions.repeated} samples were left out because another sample has the "
                "same key: give every sample a unique id."
            )
        task = _Task.of(pl_module)
        classification = task.name == "classification"
        metrics = metrics_for(task.name, task.label_range, task.classes)
        conditions = by_condition(self._passes, predictions.scores(metrics, classification))
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
            # already equal on every rank: no synchronisation is needed
            pl_module.log(name, value, rank_zero_only=False, sync_dist=False)

    def _context(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The entries that all rows share."""
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
        f"model must map a MultimodalBatch to a Prediction for MissingDataEvaluation, got an error: "
        f"{type(pl_module).__name__} {what} ({reason})."
    )
