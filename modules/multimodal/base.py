"""Base class of the multimodal models: set-up from the data, training, metrics, prediction, checkpoints."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from saccade.common.checks import check_count, check_share
from saccade.datamodules.multimodal.batch import MODALITIES, MultimodalBatch
from saccade.modules.exact_resume import ExactResume
from saccade.modules.metrics import metrics_for
from saccade.modules.multimodal.export import write_program
from saccade.modules.multimodal.layers.stem import Stem
from saccade.modules.multimodal.layers.text_encoder import TextEncoder, TextEncoderSettings
from saccade.modules.optimization import (
    ParameterGroup,
    adamw,
    check_positive_rate,
    check_weight_decay,
    parameter_groups,
    schedule_multiplier,
)

_KEY = "saccade_multimodal"  # key of the data facts in a checkpoint

Task = Literal["regression", "classification"]


@dataclass
class Optimization:
    """Optimizer and schedule of a multimodal model: AdamW with linear warm-up and cosine decay.

    Args:
        learning_rate: Peak learning rate of all parameters except those named below.
        text_learning_rate: Peak learning rate of a Hugging Face text encoder.
        floor_learning_rate_multiplier: Learning rate of the learned floors (Intra-Attn) and of the strength of the
            prior (Inter-Attn), divided by `learning_rate`. These parameters have no weight decay.
        weight_decay: Weight decay of matrices; norms and biases have none.
        warmup_fraction: Fraction of all steps in which the learning rate rises from zero, 0 to 1.
        final_fraction: Last learning rate divided by the peak, 0 to 1.

    Raises:
        ValueError: A setting is out of range.
    """

    learning_rate: float = 1e-3
    text_learning_rate: float = 2e-5
    floor_learning_rate_multiplier: float = 10.0
    weight_decay: float = 1e-2
    warmup_fraction: float = 0.05
    final_fraction: float = 0.02

    def __post_init__(self) -> None:
        for name in ("learning_rate", "text_learning_rate", "floor_learning_rate_multiplier"):
            check_positive_rate(f"optimization.{name}", getattr(self, name))
        check_weight_decay("optimization.weight_decay", self.weight_decay)
        for name in ("warmup_fraction", "final_fraction"):
            check_share(f"optimization.{name}", getattr(self, name))


@dataclass
class DataFacts:
    """The facts about the data that a model needs to be built. They are stored in checkpoints.

    Args:
        widths: Number of features of each modality; unused for a text of token ids.
        means: Mean of each feature over the available rows of the training split [D], by modality.
        stds: Standard deviation of the same rows [D], by modality.
        task: `regression` or `classification`.
        label_range: Largest absolute label, for regression.
        classes: Number of classes, for classification.
    """

    widths: dict[str, int]
    means: dict[str, Tensor]
    stds: dict[str, Tensor]
    task: Task = "regression"
    label_range: float = 3.0
    classes: int | None = None

    @classmethod
    def of(cls, data: Any) -> DataFacts:
        """Read the facts from a data module.

        Args:
            data: A data module that is set up, such as `saccade.datamodules.MultimodalSentiment`.
        """
        means, stds = ({name: pair[place] for name, pair in data.statistics.items()} for place in (0, 1))
        return cls(dict(data.widths), means, stds, data.task, float(data.label_range), data.classes)


@dataclass
class Prediction:
    """A model's output for a batch.

    Args:
        value: Predicted labels [B], or logits of the classes [B, C].
        weights: Weight of each modality in the prediction, summing to 1 [B, 3]; None if the model has no such weights.
    """

    value: Tensor
    weights: Tensor | None = None


class MultimodalModule(LightningModule, ABC):
    """Base of the multimodal models. A subclass implements `construct`, `forward` and `losses`.

    Logged: `train_loss` and each of its terms; `val_loss`, the task loss on the validation split under the data
    module's validation protocol, which selects the best checkpoint; `val_*` and `test_*` metrics, exact over ranks.

    Args:
        width: Features of a position and of a modality's vector.
        optimization: Optimizer and schedule; None takes the defaults.
        text_encoder: A Hugging Face encoder for token ids; None if the text is given as features.
        seed: Seed of the weights. None takes `seed_everything`, or 0.

    Raises:
        ValueError: A setting is out of range; the message names it.
    """

    def __init__(
        self,
        width: int,
        optimization: Optimization | None,
        text_encoder: TextEncoderSettings | None,
        seed: int | None,
    ) -> None:
        super().__init__()
        check_count("width", width)
        # checkpoints store plain dictionaries
        optimization = Optimization(**optimization) if isinstance(optimization, dict) else optimization
        text_encoder = TextEncoderSettings(**text_encoder) if isinstance(text_encoder, dict) else text_encoder
        self.width = width
        self.optimization = optimization or Optimization()
        self.text_encoder_settings = text_encoder
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.facts: DataFacts | None = None

    def keep_plain_settings(self) -> None:
        """Convert the saved hyperparameters to plain values, so that a checkpoint loads with weights_only=True."""
        for name, value in self.hparams.items():
            if is_dataclass(value) and not isinstance(value, type):
                self.hparams[name] = asdict(value)

    # to be implemented by subclasses

    @abstractmethod
    def construct(self, facts: DataFacts) -> None:
        """Create the layers. The global random state is seeded when this is called.

        Args:
            facts: Facts about the data.
        """

    @abstractmethod
    def forward(self, batch: MultimodalBatch) -> Prediction:
        """Predict the labels of a batch.

        Args:
            batch: A batch of any size, with any parts missing.
        """

    @abstractmethod
    def losses(self, batch: MultimodalBatch) -> dict[str, Tensor]:
        """Compute the weighted terms of the training loss, which is their sum.

        Args:
            batch: A batch with labels and, if a protocol removed parts, the complete samples.

        Returns:
            Scalars by name, `task` first.
        """

    def floors(self) -> dict[str, list[float]]:
        """Return the learned floors of Intra-Attn by modality; empty for models without them."""
        return {}

    # building

    @property
    def is_built(self) -> bool:
        """Whether the layers exist."""
        return self.facts is not None

    @property
    def task(self) -> Task:
        """`regression` or `classification`."""
        return self._known().task

    @property
    def label_range(self) -> float:
        """Largest absolute label."""
        return self._known().label_range

    @property
    def classes(self) -> int | None:
        """Number of classes, for classification."""
        return self._known().classes

    @property
    def outputs(self) -> int:
        """Number of outputs for a sample: 1 for regression, the number of classes for classification."""
        facts = self._known()
        return 1 if facts.task == "regression" else int(facts.classes or 0)

    def _known(self) -> DataFacts:
        if self.facts is None:
            raise ValueError("the model is not built yet: run fit, load a checkpoint or call build first.")
        return self.facts

    def build(self, facts: DataFacts) -> None:
        """Create the layers if they do not exist yet. The trainer calls this during set-up.

        Args:
            facts: Facts about the data.
        """
        if self.is_built:
            return
        self.facts = facts
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(self.seed)
            if self.text_encoder_settings is not None:
                self.text_encoder = TextEncoder(self.text_encoder_settings)
                width = self.text_encoder.width
                facts.widths["text"] = width
                facts.means["text"], facts.stds["text"] = torch.zeros(width), torch.ones(width)
            self.construct(facts)
            self.val_metrics = metrics_for(facts.task, facts.label_range, facts.classes)
            self.test_metrics = metrics_for(facts.task, facts.label_range, facts.classes)

    def setup(self, stage: str) -> None:
        """Build the model from the facts of the data module.

        Args:
            stage: Unused.

        Raises:
            ValueError: The data module does not fit this model.
        """
        if self.is_built:
            return
        data: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "statistics"):
            raise ValueError(
                f"data must be a multimodal data module for {type(self).__name__}, got"
                f" {'none' if data is None else type(data).__name__}: set data to"
                " saccade.datamodules.MultimodalSentiment."
            )
        tokens = data.text == "tokens"
        if tokens != (self.text_encoder_settings is not None):
            raise ValueError(
                f"text_encoder must be given exactly if data.text is tokens, got data.text={data.text!r}"
                f" {'without' if tokens else 'with'} one: set data.text=tokens together with model.text_encoder, or"
                " neither."
            )
        self.build(DataFacts.of(data))

    def configure_model(self) -> None:
        """Build the model if `setup` did not; without a trainer see `build`."""
        if self._trainer is not None:
            self.setup(stage="")

    def make_stems(self, facts: DataFacts, marker: bool) -> nn.ModuleDict:
        """Create a `Stem` for each modality.

        Args:
            facts: Facts about the data, with the statistics of the features.
            marker: Whether missing positions are replaced by a learned marker.
        """
        return nn.ModuleDict(
            {
                name: Stem(facts.widths[name], self.width, facts.means[name], facts.stds[name], marker)
                for name in MODALITIES
            }
        )

    def features(self, batch: MultimodalBatch, name: str) -> Tensor:
        """Return the features of one modality [B, T, D]; for a text of token ids, the output of the text encoder."""
        modality = batch.modalities[name]
        if name == "text" and self.text_encoder_settings is not None:
            return cast(Tensor, self.text_encoder(modality.values, modality.valid))
        return modality.values

    # training

    def task_loss(self, value: Tensor, label: Tensor) -> Tensor:
        """Compute the absolute error of labels [...], or the cross-entropy in nats of logits [..., C], per sample."""
        if self.task == "regression":
            return (value - label).abs()
        wanted = label.expand(value.shape[:-1])
        return F.cross_entropy(value.flatten(0, -2), wanted.flatten(), reduction="none").view(wanted.shape)

    def disagreement(self, value: Tensor, whole: Tensor) -> Tensor:
        """Compute the distance of predictions from those for the complete samples, which get no gradient (ours).

        Args:
            value: Predictions for samples with missing parts [B], or logits [B, C].
            whole: Predictions for the same samples before parts were removed.

        Returns:
            Mean absolute difference, or mean cross-entropy in nats with the probabilities for the complete samples; a
            scalar.
        """
        if self.task == "regression":
            return (value - whole.detach()).abs().mean()
        return F.cross_entropy(value, whole.detach().softmax(-1))

    @staticmethod
    def labels(batch: MultimodalBatch) -> Tensor:
        """Return the labels of a batch [B].

        Raises:
            ValueError: The batch has no labels.
        """
        if batch.label is None:
            raise ValueError("the split of the data has no labels: use saccade predict for files without labels.")
        return batch.label

    def labelled(self, values: Tensor) -> Tensor:
        """Convert outputs of the last layer [..., outputs] to predictions: [...] for regression."""
        return values.squeeze(-1) if self.task == "regression" else values

    def training_step(self, batch: MultimodalBatch, batch_idx: int) -> Tensor:
        """Return the sum of the loss terms."""
        terms = self.losses(batch)
        loss = torch.stack(list(terms.values())).sum()
        self.log("train_loss", loss.detach(), prog_bar=True, sync_dist=True, batch_size=len(batch))
        for name, term in terms.items():
            self.log(f"train_loss_{name}", term.detach(), on_step=False, on_epoch=True, batch_size=len(batch))
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the mean of the learned floors of each modality."""
        for name, floors in self.floors().items():
            self.log(f"floor_{name}", sum(floors) / max(1, len(floors)), rank_zero_only=True)

    def validation_step(self, batch: MultimodalBatch, batch_idx: int) -> None:
        """Add a batch to `val_loss` and the `val_*` metrics."""
        self._evaluate("val", self.val_metrics, batch)

    def test_step(self, batch: MultimodalBatch, batch_idx: int) -> None:
        """Add a batch to `test_loss` and the `test_*` metrics. No protocol removes parts of it."""
        self._evaluate("test", self.test_metrics, batch)

    def _evaluate(self, part: str, metrics: Any, batch: MultimodalBatch) -> None:
        label = self.labels(batch)
        value = self(batch).value
        loss = self.task_loss(value, label).mean()
        self.log(f"{part}_loss", loss, prog_bar=True, on_epoch=True, sync_dist=True, batch_size=len(batch))
        metrics.update(value, label)

    def on_validation_epoch_end(self) -> None:
        """Log the `val_*` metrics."""
        self._log_metrics("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log the `test_*` metrics."""
        self._log_metrics("test", self.test_metrics)

    def _log_metrics(self, part: str, metrics: Any) -> None:
        for name, value in metrics.compute().items():
            # the value is already the same on every rank
            self.log(f"{part}_{name}", value.float(), prog_bar=name in ("mae", "accuracy"), sync_dist=False)
        metrics.reset()

    def predict_step(self, batch: MultimodalBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return the columns of a prediction table, [B] each.

        The columns are `key`, `prediction`, `probability` (for classification), and for each modality
        `observed_<name>` and, if the model has weights, `weight_<name>`.
        """
        found = self(batch)
        columns = {"key": batch.key}
        if self.task == "regression":
            columns["prediction"] = found.value
        else:
            best = found.value.softmax(-1).max(-1)
            columns |= {"prediction": best.indices, "probability": best.values}
        observed = batch.observed
        for place, name in enumerate(MODALITIES):
            columns[f"observed_{name}"] = observed[:, place]
            if found.weights is not None:
                columns[f"weight_{name}"] = found.weights[:, place]
        return columns

    # optimizer

    def learning_rate_multiplier(self, part: str, progress: float) -> float:
        """Return a multiplier of the learning rate of a part of the model, in addition to the schedule.

        Args:
            part: First component of the parameter names, such as `encoders`.
            progress: Fraction of the run that is done, 0 to 1.
        """
        return 1.0

    def configure_callbacks(self) -> list[Callback]:
        """Return the callback with which a resumed fit equals one that was not interrupted."""
        return [ExactResume()]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with parameter groups, and the schedule, which is stepped with every optimizer step."""
        settings = self.optimization
        steps = self.trainer.estimated_stepping_batches

        def group_of(name: str) -> ParameterGroup:
            part = name.split(".", 1)[0]
            if part == "text_encoder":
                return ParameterGroup(settings.text_learning_rate, part=part)
            if name.endswith(("floor_logit", "strength_logit")):
                rate = settings.learning_rate * settings.floor_learning_rate_multiplier
                return ParameterGroup(rate, decays=False, part=part)
            return ParameterGroup(settings.learning_rate, part=part)

        groups = parameter_groups(self, group_of)
        optimizer = adamw(groups, settings.weight_decay)
        schedule = schedule_multiplier("cosine", steps, settings.warmup_fraction, settings.final_fraction)

        def multiplier(part: str) -> Any:
            return lambda step: schedule(step) * self.learning_rate_multiplier(part, step / max(1.0, float(steps)))

        scheduler = LambdaLR(optimizer, [multiplier(group.part) for group in groups])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the facts about the data."""
        facts = self._known()
        checkpoint[_KEY] = {item.name: getattr(facts, item.name) for item in fields(facts)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the model from the facts in the checkpoint, or check them against the model that exists.

        Raises:
            ValueError: The checkpoint is not one of a multimodal model, or its data differ from the model's.
        """
        if _KEY not in checkpoint:
            raise ValueError(
                f"the checkpoint was not written by saccade.modules.{type(self).__name__}: give one that was."
            )
        stored = DataFacts(**checkpoint[_KEY])
        if not self.is_built:
            self.build(stored)
            return
        facts = self._known()
        for name in ("widths", "task", "classes"):
            if getattr(facts, name) != getattr(stored, name):
                raise ValueError(
                    f"data must have the {name} of the checkpoint, {getattr(stored, name)}, got"
                    f" {getattr(facts, name)}: use the data that the model was trained on, or data of the same format."
                )

    def save_pretrained(self, folder: str | Path) -> None:
        """Export a program that runs without this package; see `saccade.modules.multimodal.export`.

        All ranks may call this; rank 0 writes.

        Args:
            folder: Target folder. An existing one is replaced; it is never left half written.

        Raises:
            ValueError: The model is not built yet, or the folder cannot be written.
        """
        self._known()
        trainer = self._trainer
        if trainer is None or trainer.is_global_zero:
            write_program(self, Path(folder))
        if trainer is not None:
            trainer.strategy.barrier("saccade.modules.MultimodalModule.save_pretrained")
