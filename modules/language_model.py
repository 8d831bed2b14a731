"""LanguageModel: train any Hugging Face causal language model."""

import dataclasses
import hashlib
import math
import os
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from saccade.modules.construction import (
    check_fit,
    check_tokenizer_survives,
    complete_config,
    model_from_config,
    model_from_path,
)
from saccade.modules.export import merged_state_dict, write_pretrained
from saccade.modules.lora import LoraSettings, attach_lora
from saccade.modules.optimization import Schedule, adamw, warmup_schedule
from saccade.modules.sublayer_dropout import SublayerDropout

_KEY = "saccade_language_model"  # our entry in a checkpoint
_RAMP = 0.5  # share of the run over which sub-layer dropout reaches its full rate


class Perplexity(MeanMetric):
    """Exponential of a mean loss; exact over batches and ranks, because the loss is averaged first."""

    def compute(self) -> Tensor:
        """Return exp(mean loss)."""
        return super().compute().exp()


class LanguageModel(LightningModule):
    """A causal language model in training: loss, perplexity, optimizer, schedule, checkpoints, export.

    Give either `path`, to go on from a trained model, or `config`, to train from scratch. The Hugging Face model is
    `model`; it is built when the trainer sets up, or by `build` without a trainer. Checkpoints hold all that is needed
    to load them again with `load_from_checkpoint`.

    Logged: `train_loss` (every step, mean over ranks), `val_loss`, `val_perplexity`, `test_loss`, `test_perplexity`
    (exact means over all tokens and ranks); losses are in nats per token.

    Args:
        path: Folder or Hugging Face hub id of a trained model.
        config: Settings of a new model: `model_type` (llama, qwen3, ...) and any of its settings, such as hidden_size.
            Vocabulary size and special tokens are taken from the datamodule's tokenizer where they are not named.
        lora: Train low-rank adapters only. None trains all weights.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Of matrices; norms and biases have none.
        betas: Decay rates of AdamW's two moments.
        schedule: After the warm-up, "cosine" falls to `final_fraction` of the peak at the last step, "constant" stays.
        warmup_fraction: Share of all steps in which the rate rises from zero, 0 to 1.
        final_fraction: Last rate divided by the peak, 0 to 1.
        sublayer_dropout: Train the model to do without some of its attention and MLP sub-layers, so that it becomes its
            own good draft for `saccade.inference.SelfSpeculative`. Largest drop rate of a sequence; 0 is off.
        gradient_checkpointing: Compute activations twice to save memory.
        seed: Of new weights and of sub-layer dropout. None takes `seed_everything`, or 0.

    Raises:
        ValueError: A setting is impossible; the message names it.
    """

    model: PreTrainedModel

    def __init__(
        self,
        path: str | None = None,
        config: dict[str, Any] | None = None,
        lora: LoraSettings | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        schedule: Schedule = "cosine",
        warmup_fraction: float = 0.05,
        final_fraction: float = 0.1,
        sublayer_dropout: float = 0.0,
        gradient_checkpointing: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if (path is None) == (config is None):
            raise ValueError("path, config: give exactly one, path to go on from a model or config for a new one")
        if isinstance(lora, dict):  # as a checkpoint holds it
            lora = LoraSettings(**lora)
        for name, value in (("warmup_fraction", warmup_fraction), ("final_fraction", final_fraction)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: must lie between 0 and 1, but is {value}")
        if not 0 <= sublayer_dropout <= 1:
            raise ValueError(f"sublayer_dropout: must lie between 0 and 1, but is {sublayer_dropout}")
        if learning_rate <= 0:
            raise ValueError(f"learning_rate: must be above 0, but is {learning_rate}")
        if weight_decay < 0:
            raise ValueError(f"weight_decay: must be at least 0, but is {weight_decay}")
        if schedule not in ("cosine", "constant"):
            raise ValueError(f"schedule: must be 'cosine' or 'constant', but is {schedule!r}")
        self.save_hyperparameters()
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
        self.sublayer_dropout = sublayer_dropout
        self.gradient_checkpointing = gradient_checkpointing
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.val_loss = MeanMetric()
        self.val_perplexity = Perplexity()
        self.test_loss = MeanMetric()
        self.test_perplexity = Perplexity()
        self._dropout: SublayerDropout | None = None
        self._ramp_steps = 0.0

    @property
    def is_built(self) -> bool:
        """Whether `model` exists."""
        return "model" in self._modules

    def build(self, tokenizer: PreTrainedTokenizerBase | None = None, sequence_length: int | None = None) -> None:
        """Build `model`, unless it is there; the trainer's set-up does this by itself.

        Args:
            tokenizer: Of the data; gives vocabulary size and special tokens and is exported with the model.
            sequence_length: Tokens per sequence of the data, to be checked against the model's context.

        Raises:
            ValueError: The model cannot be built, or cannot read the data.
        """
        if self.is_built:
            return
        if self.path is not None:
            model = model_from_path(self.path)
            check_fit(model.config, tokenizer, sequence_length)
        else:
            config = complete_config(self.config or {}, tokenizer)
            check_fit(config, tokenizer, sequence_length)
            if tokenizer is not None:
                check_tokenizer_survives(config, tokenizer)
            model = model_from_config(config, self.seed)
        self.tokenizer = tokenizer
        self._adopt(model)

    def _adopt(self, model: PreTrainedModel) -> None:
        if self.lora is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                attach_lora(model, self.lora)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._dropout = SublayerDropout(model, self.sublayer_dropout) if self.sublayer_dropout > 0 else None
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
            datamodule = getattr(self.trainer, "datamodule", None)
            with self.trainer.precision_plugin.module_init_context():
                self.build(getattr(datamodule, "tokenizer", None), getattr(datamodule, "sequence_length", None))

    def configure_model(self) -> None:
        """Build the model where `setup` has not. Without a trainer nothing happens: see `build`.

        `load_from_checkpoint` calls this before it shows the checkpoint, which says how the model must be built.
        """
        if self._trainer is not None:
            self.setup(stage="")

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Compute the logits.

        Args:
            input_ids: LongTensor [B, L].
            attention_mask: 1 for tokens, 0 for padding, [B, L]; None when nothing is padded.

        Returns:
            Logits [B, L, vocabulary].
        """
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return cast(Tensor, output.logits)

    def token_losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the loss of every predicted token.

        Args:
            batch: `input_ids` LongTensor [B, L], and `attention_mask` [B, L] if something is padded.

        Returns:
            Losses in nats [B, L - 1], and weights of the same shape: 0 where the token to be predicted is padding.
        """
        input_ids, mask = batch["input_ids"], batch.get("attention_mask")
        logits = self(input_ids, mask)[:, :-1].float()
        losses = cross_entropy(logits.flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none")
        losses = losses.view(input_ids.shape[0], -1)
        return losses, torch.ones_like(losses) if mask is None else mask[:, 1:].to(losses.dtype)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss per token of a batch (see `token_losses`)."""
        sequences = len(batch["input_ids"])
        if self._dropout is not None:
            # from the position in the run, not from a running state: a resumed run draws the same masks
            place = f"{self.seed}/{self.current_epoch}/{batch_idx}/{self.global_rank}"
            seed = int.from_bytes(hashlib.sha256(place.encode()).digest()[:8], "big")
            device, scale = batch["input_ids"].device, min(1.0, self.global_step / max(1.0, self._ramp_steps))
            self._dropout.draw(sequences, torch.Generator().manual_seed(seed), device, scale)
        losses, weights = self.token_losses(batch)
        loss = (losses * weights).sum() / weights.sum().clamp(min=1)
        self.log("train_loss", loss.detach(), prog_bar=True, sync_dist=True, batch_size=sequences)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add a batch to `val_loss` and `val_perplexity`."""
        self._evaluate("val", self.val_loss, self.val_perplexity, batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add a batch to `test_loss` and `test_perplexity`."""
        self._evaluate("test", self.test_loss, self.test_perplexity, batch)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return `loss` (nats per token) and `perplexity` of every sequence, float [B] each."""
        losses, weights = self.token_losses(batch)
        loss = (losses * weights).sum(1) / weights.sum(1).clamp(min=1)
        return {"loss": loss, "perplexity": loss.exp()}

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

    def on_fit_start(self) -> None:
        """Attach sub-layer dropout; its rate rises over the first half of the run, if the run has a known length."""
        if self._dropout is not None:
            self._dropout.attach()
            total = self.trainer.estimated_stepping_batches
            self._ramp_steps = _RAMP * total if math.isfinite(total) else 0.0

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Forget the masks of the step; its backward pass, which may recompute the layers, is over."""
        if self._dropout is not None:
            self._dropout.clear()

    def teardown(self, stage: str) -> None:
        """Take sub-layer dropout off the model.

        Args:
            stage: Unused.
        """
        if self._dropout is not None:
            self._dropout.remove()

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
        checkpoint[_KEY] = {"config": self.model.config.to_json_string(use_diff=False), "tokenizer": files}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the model as the checkpoint had it, when it is loaded without a trainer.

        Raises:
            ValueError: The checkpoint is not one of this class.
        """
        if self.is_built:
            return
        if _KEY not in checkpoint:
            raise ValueError("checkpoint_path: this is not a checkpoint of saccade.modules.LanguageModel")
        stored = checkpoint[_KEY]
        with tempfile.TemporaryDirectory() as folder:
            for name, text in {**stored["tokenizer"], "config.json": stored["config"]}.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(text.encode("utf-8" if name == "config.json" else "latin-1"))
            config = AutoConfig.from_pretrained(folder)
            self.tokenizer = AutoTokenizer.from_pretrained(folder) if stored["tokenizer"] else None
        self._adopt(model_from_config(config, self.seed))

    def save_pretrained(self, folder: str | Path) -> None:
        """Export a folder that plain `AutoModelForCausalLM` and `AutoTokenizer` load; LoRA is merged into the copy.

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
            trainer.strategy.barrier("saccade.modules.LanguageModel.save_pretrained")
