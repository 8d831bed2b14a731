"""GenerativeModule: base class for training language models, text-only or vision-language."""

import dataclasses
import hashlib
import json
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import MeanMetric
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from saccade.modules.exact_resume import ExactResume
from saccade.modules.language.construction import check_batch, model_from_config
from saccade.modules.language.export import merged_state_dict, write_pretrained
from saccade.modules.lora import LoraSettings, attach_lora
from saccade.modules.optimization import (
    ParameterGroup,
    Schedule,
    adamw,
    check_optimization,
    parameter_groups,
    warmup_schedule,
)


class Perplexity(MeanMetric):
    """Exponential of the mean loss; exact over batches and ranks, because losses are averaged first."""

    def compute(self) -> Tensor:
        """Return exp(mean loss)."""
        return super().compute().exp()


class TrainingDropout(Protocol):
    """Hooks on a model that leave out parts of the computation or of the input in a training step."""

    def attach(self) -> None:
        """Register the hooks. Calling this again has no effect."""
        ...

    def clear(self) -> None:
        """Leave nothing out until the next draw."""
        ...

    def remove(self) -> None:
        """Remove the hooks."""
        ...


def _prompts_alone(batch: Any) -> bool:
    """Whether a batch has prompts to answer and no text to predict, as the batches of `Prompts`."""
    return isinstance(batch, Mapping) and "prompt_length" in batch and "labels" not in batch


class GenerativeModule(LightningModule, ABC):
    """Trains a Hugging Face model to predict the next token: optimizer, schedule, checkpoints, export.

    A subclass builds `model` for its data (`build_for`) and defines the loss (`token_losses`).

    Args:
        path: Folder or Hugging Face hub id of a trained model.
        config: Settings of a new model; not used if `path` is given.
        lora: Train low-rank adapters only. None trains all weights.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of matrices; norms and biases have none.
        betas: Decay rates of AdamW's two moments.
        schedule: Learning rate after the warm-up: "cosine" decays to `final_fraction` of the peak at the last step,
            "constant" stays at the peak.
        warmup_fraction: Fraction of all steps in which the learning rate rises from zero, 0 to 1.
        final_fraction: Last learning rate divided by the peak, 0 to 1.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        seed: Seed of new weights. None takes `seed_everything`, or 0.

    Raises:
        ValueError: A setting is out of range; the message names it.
    """

    model: PreTrainedModel
    checkpoint_key: ClassVar[str]
    """Key of this module's entry in a checkpoint."""
    auto_class: ClassVar[Any] = AutoModelForCausalLM
    """Class of transformers that builds and loads the model."""
    reads: ClassVar[tuple[str, str]] = ("input_ids", "TextCorpus")
    """Required key of a batch, and a data module of the package whose batches have it."""

    def __init__(
        self,
        path: str | None,
        config: dict[str, Any] | None,
        lora: LoraSettings | None,
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float],
        schedule: Schedule,
        warmup_fraction: float,
        final_fraction: float,
        gradient_checkpointing: bool,
        seed: int | None,
    ) -> None:
        super().__init__()
        if path is None and config is None:
            raise ValueError(
                "path or config must be given, got neither: path continues from a trained model, config starts a new"
                " one."
            )
        if isinstance(lora, dict):  # checkpoints store plain dictionaries
            lora = LoraSettings(**lora)
        check_optimization(
            learning_rate, weight_decay, schedule, warmup_fraction=warmup_fraction, final_fraction=final_fraction
        )
        self.save_hyperparameters()  # saves those of the subclass: Lightning looks up the call stack
        # plain values only, so that a checkpoint loads with weights_only=True
        self.hparams["lora"] = None if lora is None else dataclasses.asdict(lora)
        self.path = path
        self.config = config
        self.lora = lora
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.betas = betas
        self.schedule: Schedule = schedule
        self.warmup_fraction = warmup_fraction
        self.final_fraction = final_fraction
        self.gradient_checkpointing = gradient_checkpointing
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self._dropout: TrainingDropout | None = None
        self.val_loss = MeanMetric()
        self.val_perplexity = Perplexity()
        self.test_loss = MeanMetric()
        self.test_perplexity = Perplexity()

    @abstractmethod
    def build_for(self, datamodule: Any) -> None:
        """Build `model` for the data of a data module.

        Args:
            datamodule: A data module that is set up, or None.

        Raises:
            ValueError: The model cannot be built, or does not fit the data.
        """

    @abstractmethod
    def token_losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the loss of every predicted token.

        Args:
            batch: A batch of the data module; `input_ids` is LongTensor [B, L].

        Returns:
            Losses in nats [B, P], and weights of the same shape: 0 for tokens that do not count.
        """

    @property
    def is_built(self) -> bool:
        """Whether `model` exists."""
        return "model" in self._modules

    @property
    def _adapted_part(self) -> str | None:
        """Path of the part of the model that gets adapters; None for the whole model."""
        return None

    def _adopt(self, model: PreTrainedModel) -> None:
        """Set `model`: add adapters, enable gradient checkpointing, and switch to training mode."""
        if self.lora is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                attach_lora(model, self.lora, within=self._adapted_part)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.model = model.train()

    def setup(self, stage: str) -> None:
        """Build the model before the context managers of the strategy are entered.

        Inside them, DeepSpeed ZeRO-3 partitions each layer when it is created, and transformers can then neither
        initialise nor load the weights. Therefore every rank builds the whole model in memory, and DeepSpeed partitions
        it afterwards.

        Args:
            stage: Unused.
        """
        if not self.is_built:
            with self.trainer.precision_plugin.module_init_context():
                self.build_for(getattr(self.trainer, "datamodule", None))

    def configure_model(self) -> None:
        """Build the model if `setup` did not. Does nothing without a trainer: see `build`.

        `load_from_checkpoint` calls this before `on_load_checkpoint`, which builds the model from the checkpoint.
        """
        if self._trainer is not None:
            self.setup(stage="")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Check that the batch has the key that this module needs; prompts alone need none."""
        if not _prompts_alone(batch):
            check_batch(self, batch, *self.reads)
        return batch

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss per token of a batch (see `token_losses`)."""
        losses, weights = self.token_losses(batch)
        loss = (losses * weights).sum() / weights.sum().clamp(min=1)
        self.log("train_loss", loss.detach(), prog_bar=True, sync_dist=True, batch_size=len(losses))
        return loss

    def on_fit_start(self) -> None:
        """Attach the hooks of the training dropout."""
        if self._dropout is not None:
            self._dropout.attach()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Clear the draw of the training dropout after the backward pass, which may recompute layers."""
        if self._dropout is not None:
            self._dropout.clear()

    def teardown(self, stage: str) -> None:
        """Remove the hooks of the training dropout.

        Args:
            stage: Unused.
        """
        if self._dropout is not None:
            self._dropout.remove()

    def _step_generator(self, batch_idx: int) -> torch.Generator:
        """Create the random generator of a training step. A resumed run gets the same random numbers."""
        place = f"{self.seed}/{self.current_epoch}/{batch_idx}/{self.global_rank}"
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(place.encode()).digest()[:8], "big"))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add a batch to `val_loss` and `val_perplexity`; of prompts alone (`Prompts`) nothing is predicted."""
        if not _prompts_alone(batch):
            self._evaluate("val", self.val_loss, self.val_perplexity, batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add a batch to `test_loss` and `test_perplexity`."""
        self._evaluate("test", self.test_loss, self.test_perplexity, batch)

    def _evaluate(self, part: str, loss: MeanMetric, perplexity: Perplexity, batch: dict[str, Tensor]) -> None:
        losses, weights = self.token_losses(batch)
        for name, metric in ((f"{part}_loss", loss), (f"{part}_perplexity", perplexity)):
            metric.update(losses, weights)
            self.log(name, metric, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(losses))

    def configure_callbacks(self) -> list[Callback]:
        """Return the callback with which a resumed fit equals one that was not interrupted."""
        return [ExactResume()]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW and its schedule, which is stepped with every optimizer step."""
        groups = parameter_groups(self.model, lambda name: ParameterGroup(self.learning_rate))
        optimizer = adamw(groups, self.weight_decay, self.betas)
        steps = self.trainer.estimated_stepping_batches
        scheduler = warmup_schedule(optimizer, self.schedule, steps, self.warmup_fraction, self.final_fraction)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the configuration of the model, its generation settings and the files of the tokenizer."""
        files: dict[str, str] = {}
        if self.tokenizer is not None:
            with tempfile.TemporaryDirectory() as folder:
                self.tokenizer.save_pretrained(folder)
                for path in sorted(Path(folder).rglob("*")):
                    if path.is_file():
                        # latin-1 maps any bytes to a string, which weights_only=True can load
                        files[path.relative_to(folder).as_posix()] = path.read_bytes().decode("latin-1")
        config = self.model.config.to_json_string(use_diff=False)
        generation = self.model.generation_config.to_json_string()
        checkpoint[self.checkpoint_key] = {"config": config, "generation": generation, "tokenizer": files}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the model from the configuration in the checkpoint, if it is loaded without a trainer.

        Raises:
            ValueError: The checkpoint was not written by this class.
        """
        if self.is_built:
            return
        if self.checkpoint_key not in checkpoint:
            raise ValueError(
                f"the checkpoint was not written by saccade.modules.{type(self).__name__}: give one that was."
            )
        stored = checkpoint[self.checkpoint_key]
        with tempfile.TemporaryDirectory() as folder:
            for name, text in {**stored["tokenizer"], "config.json": stored["config"]}.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(text.encode("utf-8" if name == "config.json" else "latin-1"))
            config = AutoConfig.from_pretrained(folder)
            self.tokenizer = AutoTokenizer.from_pretrained(folder) if stored["tokenizer"] else None
        if self.tokenizer is not None:
            # loading adds settings about itself, with which an export would differ from that of fit
            known = json.loads(stored["tokenizer"].get("tokenizer_config.json", "{}"))
            for name in {"is_local", "local_files_only"} - known.keys():
                self.tokenizer.init_kwargs.pop(name, None)
        model = self._rebuilt(config, stored)
        if "generation" in stored:  # a model that was trained before has its own
            model.generation_config = GenerationConfig.from_dict(json.loads(stored["generation"]))
        self._adopt(model)

    def _rebuilt(self, config: PretrainedConfig, stored: dict[str, Any]) -> PreTrainedModel:
        """Build the model of a checkpoint from its configuration; its weights are loaded afterwards."""
        return model_from_config(config, self.seed, self.auto_class)

    def save_pretrained(self, folder: str | Path) -> None:
        """Export model and tokenizer to a folder that plain transformers loads. LoRA is merged in the exported copy.

        All ranks must call this, because ZeRO-3 gathers the weights; rank 0 writes.

        Args:
            folder: Target folder. An existing one is replaced; it is never left half written.

        Raises:
            ValueError: The model is not built yet, or the folder cannot be written.
        """
        if not self.is_built:
            raise ValueError("the model is not built yet: run fit, load a checkpoint or call build first.")
        trainer = self._trainer
        writes = trainer is None or trainer.is_global_zero
        state = merged_state_dict(self.model, keep=writes)
        if writes:
            write_pretrained(self.model, state, self.tokenizer, Path(folder))
        if trainer is not None:
            trainer.strategy.barrier(f"saccade.modules.{type(self).__name__}.save_pretrained")
