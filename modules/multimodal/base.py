"""What every multimodal model shares: set-up from the data, training, metrics, prediction, checkpoints."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from saccade.datamodules.multimodal.batch import MODALITIES, MultimodalBatch
from saccade.modules.metrics import metrics_for
from saccade.modules.multimodal.export import write_program
from saccade.modules.multimodal.layers.stem import Stem
from saccade.modules.multimodal.layers.text_encoder import TextEncoder, TextEncoderSettings
from saccade.modules.optimization import warmup_factor

_KEY = "saccade_multimodal"  # our entry in a checkpoint

Task = Literal["regression", "classification"]


@dataclass
class Optimization:
    """Optimizer and schedule of a multimodal model: AdamW, warm-up, cosine.

    Args:
        learning_rate: Peak rate of everything that is not named below.
        text_learning_rate: Peak rate of a Hugging Face text encoder.
        gate_factor: Rate of learned floors and strengths, divided by `learning_rate`; they have no weight decay.
        weight_decay: Of matrices.
        warmup_fraction: Share of all steps in which the rate rises from zero, 0 to 1.
        final_fraction: Last rate divided by the peak, 0 to 1.

    Raises:
        ValueError: A setting is out of range.
    """

    learning_rate: float = 1e-3
    text_learning_rate: float = 2e-5
    gate_factor: float = 10.0
    weight_decay: float = 1e-2
    warmup_fraction: float = 0.05
    final_fraction: float = 0.02

    def __post_init__(self) -> None:
        for name in ("learning_rate", "text_learning_rate", "gate_factor"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"optimization.{name}: must be above 0, but is {getattr(self, name)}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"optimization.weight_decay: must not be negative, but is {self.weight_decay}")
        for name in ("warmup_fraction", "final_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"optimization.{name}: must lie between 0 and 1, but is {getattr(self, name)}")


@dataclass
class DataFacts:
    """What a model must know of its data to be built; a checkpoint holds it.

    Args:
        widths: Features of each modality; that of a text of token numbers is not used.
        means: Mean of each feature over available rows of the training split [D], by modality.
        stds: Standard deviation of the same [D].
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
        """Take them from a data module that is set up.

        Args:
            data: Such as `saccade.datamodules.MultimodalSentiment`.
        """
        means, stds = ({name: pair[place] for name, pair in data.statistics.items()} for place in (0, 1))
        return cls(dict(data.widths), means, stds, data.task, float(data.label_range), data.classes)


@dataclass
class Prediction:
    """What a model says of a batch.

    Args:
        value: Predicted labels [B], or logits of the classes [B, C].
        weights: How far each modality is believed, summing to 1 [B, 3]; None where a model has no such weights.
    """

    value: Tensor
    weights: Tensor | None = None


class MultimodalModule(LightningModule, ABC):
    """Base of the multimodal models: a subclass writes `construct`, `forward` and `losses`.

    Logged: `train_loss` and each of its terms; `val_loss`, the task's loss on the validation split under the data
    module's validation protocol, by which the best checkpoint is chosen; `val_*` and `test_*` metrics, exact over
    ranks.

    Args:
        width: Features of a position and of a modality's vector.
        optimization: Optimizer and schedule; None takes the defaults.
        text_encoder: A Hugging Face encoder for token numbers; None where the text comes as features.
        seed: Of the weights. None takes `seed_everything`, or 0.

    Raises:
        ValueError: A setting is impossible.
    """

    def __init__(
        self,
        width: int,
        optimization: Optimization | None,
        text_encoder: TextEncoderSettings | None,
        seed: int | None,
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width: must be at least 1, but is {width}")
        # a checkpoint holds plain dictionaries
        optimization = Optimization(**optimization) if isinstance(optimization, dict) else optimization
        text_encoder = TextEncoderSettings(**text_encoder) if isinstance(text_encoder, dict) else text_encoder
        self.width = width
        self.optimization = optimization or Optimization()
        self.text_encoder_settings = text_encoder
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.facts: DataFacts | None = None

    def keep_plain_settings(self) -> None:
        """Make what `save_hyperparameters` keeps plain values, so that a checkpoint loads with weights_only=True."""
        for name, value in self.hparams.items():
            if is_dataclass(value) and not isinstance(value, type):
                self.hparams[name] = asdict(value)

    # what a subclass writes

    @abstractmethod
    def construct(self, facts: DataFacts) -> None:
        """Create the layers; the global random state is seeded.

        Args:
            facts: What the model must know of the data.
        """

    @abstractmethod
    def forward(self, batch: MultimodalBatch) -> Prediction:
        """Predict.

        Args:
            batch: Of any size, with any parts missing.
        """

    @abstractmethod
    def losses(self, batch: MultimodalBatch) -> dict[str, Tensor]:
        """Compute the weighted terms of the training loss; their sum is minimised.

        Args:
            batch: With labels and, where something was taken away, the complete samples.

        Returns:
            Scalars by name; `task` is the first.
        """

    def floors(self) -> dict[str, list[float]]:
        """Learned floors of Intra-Attn by modality; empty for models that have none."""
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
        """Numbers predicted for a sample."""
        facts = self._known()
        return 1 if facts.task == "regression" else int(facts.classes or 0)

    def _known(self) -> DataFacts:
        if self.facts is None:
            raise ValueError("model: it is not built yet; fit, load a checkpoint or call build first")
        return self.facts

    def build(self, facts: DataFacts) -> None:
        """Create the layers, unless they are there; the trainer's set-up does this by itself.

        Args:
            facts: What the model must know of the data.
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
        """Build the model from what the data module knows.

        Args:
            stage: Unused.

        Raises:
            ValueError: The data module is not one for this model.
        """
        if self.is_built:
            return
        data: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "statistics"):
            raise ValueError(f"data: {type(self).__name__} needs saccade.datamodules.MultimodalSentiment")
        tokens = data.text == "tokens"
        if tokens != (self.text_encoder_settings is not None):
            raise ValueError(
                "text_encoder: token numbers need one and features need none; set data.text=tokens together with"
                " model.text_encoder, or neither"
            )
        self.build(DataFacts.of(data))

    def configure_model(self) -> None:
        """Build the model where `setup` has not; without a trainer see `build`."""
        if self._trainer is not None:
            self.setup(stage="")

    def make_stems(self, facts: DataFacts, marker: bool) -> nn.ModuleDict:
        """A `Stem` for each modality.

        Args:
            facts: With the statistics of the features.
            marker: Whether missing positions are marked.
        """
        return nn.ModuleDict(
            {
                name: Stem(facts.widths[name], self.width, facts.means[name], facts.stds[name], marker)
                for name in MODALITIES
            }
        )

    def features(self, batch: MultimodalBatch, name: str) -> Tensor:
        """The features of one modality [B, T, D]; those of a text of token numbers are the encoder's."""
        modality = batch.modalities[name]
        if name == "text" and self.text_encoder_settings is not None:
            return cast(Tensor, self.text_encoder(modality.values, modality.valid))
        return modality.values

    # training

    def task_loss(self, value: Tensor, label: Tensor) -> Tensor:
        """Absolute error of labels [...], or cross-entropy in nats of logits [..., C], for each sample [...]."""
        if self.task == "regression":
            return (value - label).abs()
        wanted = label.expand(value.shape[:-1])
        return F.cross_entropy(value.flatten(0, -2), wanted.flatten(), reduction="none").view(wanted.shape)

    def disagreement(self, value: Tensor, whole: Tensor) -> Tensor:
        """How far predictions are from those of the complete samples, which are a fixed target (ours).

        Args:
            value: From samples with missing parts [B], or logits [B, C].
            whole: From the same samples before anything was taken away.

        Returns:
            Mean absolute difference, or mean cross-entropy with the complete samples' probabilities in nats; a scalar.
        """
        if self.task == "regression":
            return (value - whole.detach()).abs().mean()
        return F.cross_entropy(value, whole.detach().softmax(-1))

    @staticmethod
    def labels(batch: MultimodalBatch) -> Tensor:
        """The labels of a batch [B].

        Raises:
            ValueError: There are none.
        """
        if batch.label is None:
            raise ValueError("data: the split has no labels; use saccade predict for such files")
        return batch.label

    def labelled(self, values: Tensor) -> Tensor:
        """Outputs of the last layer [..., outputs] as predictions: [...] for regression."""
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
        """Log what the gates have learned."""
        for name, floors in self.floors().items():
            self.log(f"floor_{name}", sum(floors) / max(1, len(floors)), rank_zero_only=True)

    def validation_step(self, batch: MultimodalBatch, batch_idx: int) -> None:
        """Add a batch to `val_loss` and the `val_*` metrics."""
        self._evaluate("val", self.val_metrics, batch)

    def test_step(self, batch: MultimodalBatch, batch_idx: int) -> None:
        """Add a batch, as complete as the data is, to `test_loss` and the `test_*` metrics."""
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
            # equal on every rank already
            self.log(f"{part}_{name}", value.float(), prog_bar=name in ("mae", "accuracy"), sync_dist=False)
        metrics.reset()

    def predict_step(self, batch: MultimodalBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return columns of a table, [B] each: `key`, `prediction`, for classes `probability`, and the weights."""
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

    def rate_factor(self, name: str, progress: float) -> float:
        """What a parameter's learning rate is multiplied with, beside the schedule.

        Args:
            name: Of the parameter.
            progress: Share of the run that is done, 0 to 1.
        """
        return 1.0

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with its groups, and the schedule, stepped with every optimizer step."""
        settings = self.optimization
        steps = self.trainer.estimated_stepping_batches
        groups: dict[tuple[float, bool, str], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            gate = name.endswith(("floor_logit", "strength_logit"))
            rate = settings.learning_rate * (settings.gate_factor if gate else 1.0)
            if name.startswith("text_encoder."):
                rate = settings.text_learning_rate
            # the schedule of a group is that of its first name; a subclass tells parts apart by their first word
            part = name.split(".", 1)[0]
            groups.setdefault((rate, parameter.dim() >= 2 and not gate, part), []).append(parameter)
        optimizer = AdamW(
            [
                {"params": members, "lr": rate, "weight_decay": settings.weight_decay if decays else 0.0}
                for (rate, decays, _), members in groups.items()
            ]
        )
        shape = warmup_factor("cosine", steps, settings.warmup_fraction, settings.final_fraction)

        def factor(part: str) -> Any:
            return lambda step: shape(step) * self.rate_factor(part, step / max(1.0, float(steps)))

        scheduler = LambdaLR(optimizer, [factor(part) for _, _, part in groups])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the model knows of its data."""
        facts = self._known()
        checkpoint[_KEY] = {item.name: getattr(facts, item.name) for item in fields(facts)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the model as the checkpoint had it, or refuse one of other data.

        Raises:
            ValueError: The checkpoint is not one of such a model, or of data of another kind.
        """
        if _KEY not in checkpoint:
            raise ValueError(f"checkpoint_path: this is not a checkpoint of {type(self).__name__}")
        stored = DataFacts(**checkpoint[_KEY])
        if not self.is_built:
            self.build(stored)
            return
        facts = self._known()
        for name in ("widths", "task", "classes"):
            if getattr(facts, name) != getattr(stored, name):
                raise ValueError(
                    f"data: the checkpoint's {name} are {getattr(stored, name)}, those of the data"
                    f" {getattr(facts, name)}; use the data it was trained on, or its like"
                )

    def save_pretrained(self, folder: str | Path) -> None:
        """Export a program that runs without this package (`saccade.modules.multimodal.export`).

        All ranks may call it; rank 0 writes.

        Args:
            folder: Where to; it is replaced if it is there, and never half written.

        Raises:
            ValueError: The model is not built yet, or the place cannot be written.
        """
        self._known()
        trainer = self._trainer
        if trainer is None or trainer.is_global_zero:
            write_program(self, Path(folder))
        if trainer is not None:
            trainer.strategy.barrier("saccade.modules.MultimodalModule.save_pretrained")
