"""GenerativeModule: what every language model in training shares, with or without eyes."""

import dataclasses
import hashlib
import os
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import MeanMetric
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from saccade.modules.language.construction import check_batch, model_from_config
from saccade.modules.language.export import merged_state_dict, write_pretrained
from saccade.modules.lora import LoraSettings, attach_lora
from saccade.modules.optimization import Schedule, adamw, check_optimization, warmup_schedule


class Perplexity(MeanMetric):
    """Exponential of a mean loss; exact over batches and ranks, because the loss is averaged first."""

    def compute(self) -> Tensor:
        """Return exp(mean loss)."""
        return super().compute().exp()


class TrainingDropout(Protocol):
    """Hooks on a model that leave something out of a training step."""

    def attach(self) -> None:
        """Register the hooks; calling it again changes nothing."""
        ...

    def clear(self) -> None:
        """Leave nothing out until the next draw."""
        ...

    def remove(self) -> None:
        """Take the hooks off again."""
        ...


class GenerativeModule(LightningModule, ABC):
    """A Hugging Face model that predicts the next token, in training: optimizer, schedule, checkpoints, export.

    A subclass builds `model` from its data (`build_for`) and says what is predicted (`token_losses`).

    Args:
        path: Folder or Hugging Face hub id of a trained model.
        config: Settings of a new model; give either this or `path`.
        lora: Train low-rank adapters only. None trains all weights.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Of matrices; norms and biases have none.
        betas: Decay rates of AdamW's two moments.
        schedule: After the warm-up, "cosine" falls to `final_fraction` of the peak at the last step, "constant" stays.
        warmup_fraction: Share of all steps in which the rate rises from zero, 0 to 1.
        final_fraction: Last rate divided by the peak, 0 to 1.
        gradient_checkpointing: Compute activations twice to save memory.
        seed: Of new weights. None takes `seed_everything`, or 0.

    Raises:
        ValueError: A setting is impossible; the message names it.
    """

    model: PreTrainedModel
    checkpoint_key: ClassVar[str]
    """Our entry in a checkpoint."""
    auto_class: ClassVar[Any] = AutoModelForCausalLM
    """What of transformers builds and loads the model."""
    reads: ClassVar[tuple[str, str]] = ("input_ids", "TextCorpus")
    """What batches must have, and a datamodule of the package that gives it."""

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
        if (path is None) == (config is None):
            raise ValueError("path, config: give exactly one, path to go on from a model or config for a new one")
        if isinstance(lora, dict):  # as a checkpoint holds it
            lora = LoraSettings(**lora)
        check_optimization(
            learning_rate, weight_decay, schedule, warmup_fraction=warmup_fraction, final_fraction=final_fraction
        )
        self.save_hyperparameters()  # those of the subclass: Lightning walks up to the first caller
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
        """Build `model` for a datamodule's data.

        Args:
            datamodule: Set up; None when there is none.

        Raises:
            ValueError: The model cannot be built, or cannot read the data.
        """

    @abstractmethod
    def token_losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the loss of every predicted token.

        Args:
            batch: Of the datamodule; `input_ids` is LongTensor [B, L].

        Returns:
            Losses in nats [B, P], and weights of the same shape: 0 where a token does not count.
        """

    @property
    def is_built(self) -> bool:
        """Whether `model` exists."""
        return "model" in self._modules

    def _adopt(self, model: PreTrainedModel) -> None:
        """Take a complete model: adapters, checkpointing, train mode."""
        if self.lora is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                attach_lora(model, self.lora)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.model = model.train()

    def setup(self, stage: str) -> None:
        """Build the model before the strategy's own contexts are entered.

        DeepSpeed ZeRO-3 would partition each layer as it is created, and then neither transformers' initialisation nor
        its loading of weights reaches them; so every rank builds the whole model in memory, and the engine
        partitions it.

        Args:
            stage: Unused.
        """
        if not self.is_built:
            with self.trainer.precision_plugin.module_init_context():
                self.build_for(getattr(self.trainer, "datamodule", None))

    def configure_model(self) -> None:
        """Build the model where `setup` has not. Without a trainer nothing happens: see `build`.

        `load_from_checkpoint` calls this before it shows the checkpoint, which says how the model must be built.
        """
        if self._trainer is not None:
            self.setup(stage="")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Refuse the batches of another module's data."""
        check_batch(self, batch, *self.reads)
        return batch

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss per token of a batch (see `token_losses`)."""
        losses, weights = self.token_losses(batch)
        loss = (losses * weights).sum() / weights.sum().clamp(min=1)
        self.log("train_loss", loss.detach(), prog_bar=True, sync_dist=True, batch_size=len(losses))
        return loss

    def on_fit_start(self) -> None:
        """Attach what leaves something out of training steps."""
        if self._dropout is not None:
            self._dropout.attach()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Forget what the step left out; its backward pass, which may recompute the layers, is over."""
        if self._dropout is not None:
            self._dropout.clear()

    def teardown(self, stage: str) -> None:
        """Take the hooks off the model.

        Args:
            stage: Unused.
        """
        if self._dropout is not None:
            self._dropout.remove()

    def _step_generator(self, batch_idx: int) -> torch.Generator:
        """Random numbers of a training step, from its place in the run: a resumed run draws the same ones."""
        place = f"{self.seed}/{self.current_epoch}/{batch_idx}/{self.global_rank}"
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(place.encode()).digest()[:8], "big"))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add a batch to `val_loss` and `val_perplexity`."""
        self._evaluate("val", self.val_loss, self.val_perplexity, batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add a batch to `test_loss` and `test_perplexity`."""
        self._evaluate("test", self.test_loss, self.test_perplexity, batch)

    def _evaluate(self, part: str, loss: MeanMetric, perplexity: Perplexity, batch: dict[str, Tensor]) -> None:
        losses, weights = self.token_losses(batch)
        for name, metric in ((f"{part}_loss", loss), (f"{part}_perplexity", perplexity)):
            metric.update(losses, weights)
            self.log(name, metric, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(losses))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW and its schedule, stepped with every optimizer step."""
        optimizer = adamw(self.model, self.learning_rate, self.weight_decay, self.betas)
        steps = self.trainer.estimated_stepping_batches
        scheduler = warmup_schedule(optimizer, self.schedule, steps, self.warmup_fraction, self.final_fraction)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the model's configuration and the tokenizer's files."""
        files: dict[str, str] = {}
        if self.tokenizer is not None:
            with tempfile.TemporaryDirectory() as folder:
                self.tokenizer.save_pretrained(folder)
                for path in sorted(Path(folder).rglob("*")):
                    if path.is_file():
                        # latin-1 holds any bytes in a string, which weights_only=True lets pass
                        files[path.relative_to(folder).as_posix()] = path.read_bytes().decode("latin-1")
        config = self.model.config.to_json_string(use_diff=False)
        checkpoint[self.checkpoint_key] = {"config": config, "tokenizer": files}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the model as the checkpoint had it, when it is loaded without a trainer.

        Raises:
            ValueError: The checkpoint is not one of this class.
        """
        if self.is_built:
            return
        if self.checkpoint_key not in checkpoint:
            raise ValueError(f"checkpoint_path: this is not a checkpoint of saccade.modules.{type(self).__name__}")
        stored = checkpoint[self.checkpoint_key]
        with tempfile.TemporaryDirectory() as folder:
            for name, text in {**stored["tokenizer"], "config.json": stored["config"]}.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(text.encode("utf-8" if name == "config.json" else "latin-1"))
            config = AutoConfig.from_pretrained(folder)
            self.tokenizer = AutoTokenizer.from_pretrained(folder) if stored["tokenizer"] else None
        self._adopt(model_from_config(config, self.seed, self.auto_class))

    def save_pretrained(self, folder: str | Path) -> None:
        """Export a folder that plain transformers loads, model and tokenizer; LoRA is merged into the copy.

        All ranks must call it (ZeRO-3 gathers the weights); rank 0 writes.

        Args:
            folder: Where to; it is replaced if it is there, and never half written.

        Raises:
            ValueError: The model is not built yet, or the place cannot be written.
        """
        if not self.is_built:
            raise ValueError("model: there is none yet to be exported; fit, load a checkpoint or call build first")
        trainer = self._trainer
        writes = trainer is None or trainer.is_global_zero
        state = merged_state_dict(self.model, keep=writes)
        if writes:
            write_pretrained(self.model, state, self.tokenizer, Path(folder))
        if trainer is not None:
            trainer.strategy.barrier(f"saccade.modules.{type(self).__name__}.save_pretrained")
