"""LanguageModel: train any Hugging Face causal language model."""

import math
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from saccade.common.checks import check_share, check_switch
from saccade.inference.huggingface.models import kept_logits, takes_logits_to_keep
from saccade.modules.kept_layers import keep_layers as leave_out_other_layers
from saccade.modules.language.base import GenerativeModule
from saccade.modules.language.construction import (
    check_fit,
    check_tokenizer_survives,
    complete_config,
    model_from_config,
    model_from_path,
)
from saccade.modules.language.sublayer_dropout import SublayerDropout
from saccade.modules.lora import LoraSettings
from saccade.modules.optimization import Schedule

_IGNORED = -100  # label of tokens that are not predicted
_RAMP = 0.5  # fraction of the run over which sub-layer dropout rises to its full rate


class LanguageModel(GenerativeModule):
    """Trains a causal language model: loss, perplexity, optimizer, schedule, checkpoints, export.

    Give `path`, to continue from a trained model, or `config`, to train from scratch. The Hugging Face model is
    `model`; it is built during the trainer's set-up, or by `build` without a trainer. Checkpoints contain everything
    that `load_from_checkpoint` needs.

    Logged: `train_loss` (every step, mean over ranks), `val_loss`, `val_perplexity`, `test_loss`, `test_perplexity`
    (exact means over all tokens and ranks); losses are in nats per token.

    Args:
        path: Folder or Hugging Face hub id of a trained model. The command uses its tokenizer for the data too, unless
            the data names another.
        config: Settings of a new model, not used if `path` is given: `model_type` (llama, qwen3, ...) and any of its
            settings, such as hidden_size. Vocabulary size and special tokens default to those of the data module's
            tokenizer.
        lora: Train low-rank adapters only. None trains all weights.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of matrices; norms and biases have none.
        betas: Decay rates of AdamW's two moments.
        schedule: Learning rate after the warm-up: "cosine" decays to `final_fraction` of the peak at the last step,
            "constant" stays at the peak.
        warmup_fraction: Fraction of all steps in which the learning rate rises from zero, 0 to 1.
        final_fraction: Last learning rate divided by the peak, 0 to 1.
        sublayer_dropout: Largest rate, 0 to 1, at which the attention and MLP sub-layers are dropped for a sequence in
            training; 0 is off. A model trained in this way is a good draft of itself for
            `saccade.inference.SelfSpeculative`.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        seed: Seed of new weights and of sub-layer dropout. None takes `seed_everything`, or 0.
        keep_layers: Layers of the model at `path` to keep, by number from 0, negative ones from the end; the others are
            left out. `[0, -1]` makes a small model of the first and the last layer, which training turns into a draft
            model. None keeps all.
        freeze_embeddings: Do not train the token embedding and the output head.

    Raises:
        ValueError: A setting is out of range; the message names it.
    """

    _dropout: SublayerDropout | None
    checkpoint_key: ClassVar[str] = "saccade_language_model"

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
        keep_layers: list[int] | None = None,
        freeze_embeddings: bool = False,
    ) -> None:
        super().__init__(
            path,
            config,
            lora,
            learning_rate,
            weight_decay,
            betas,
            schedule,
            warmup_fraction,
            final_fraction,
            gradient_checkpointing,
            seed,
        )
        check_share("sublayer_dropout", sublayer_dropout)
        check_switch("freeze_embeddings", freeze_embeddings)
        if keep_layers is not None and path is None:
            raise ValueError(
                "keep_layers must be left out without path, got a model that is trained from scratch: set"
                " config.num_hidden_layers instead."
            )
        if keep_layers is not None and not keep_layers:
            raise ValueError("keep_layers must name layers, got an empty list: name some, for example [0, -1].")
        self.sublayer_dropout = sublayer_dropout
        self.keep_layers = keep_layers
        self.freeze_embeddings = freeze_embeddings
        self._ramp_steps = 0.0

    def build(self, tokenizer: PreTrainedTokenizerBase | None = None, sequence_length: int | None = None) -> None:
        """Build `model` if it does not exist yet. The trainer calls this during set-up.

        Args:
            tokenizer: Tokenizer of the data; defines vocabulary and special tokens, and is exported with the model.
            sequence_length: Tokens per sequence of the data; checked against the model's context.

        Raises:
            ValueError: The model cannot be built, or does not fit the data.
        """
        if self.is_built:
            return
        if self.path is not None:
            model = model_from_path(self.path)
            if self.keep_layers is not None:
                leave_out_other_layers(model, self.keep_layers)
            check_fit(model.config, tokenizer, sequence_length)
        else:
            config = complete_config(self.config or {}, tokenizer)
            check_fit(config, tokenizer, sequence_length)
            if tokenizer is not None:
                check_tokenizer_survives(config, tokenizer)
            model = model_from_config(config, self.seed)
        self.tokenizer = tokenizer
        self._adopt(model)

    def build_for(self, datamodule: Any) -> None:
        """Build `model` with the tokenizer and the sequence length of a data module.

        Args:
            datamodule: A data module that is set up, or None.

        Raises:
            ValueError: The model cannot be built, or does not fit the data.
        """
        self.build(getattr(datamodule, "tokenizer", None), getattr(datamodule, "sequence_length", None))

    def _adopt(self, model: PreTrainedModel) -> None:
        super()._adopt(model)
        if self.freeze_embeddings:
            for part in (model.get_input_embeddings(), model.get_output_embeddings()):
                part.requires_grad_(False)
        self._dropout = SublayerDropout(model, self.sublayer_dropout) if self.sublayer_dropout > 0 else None

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, logits_to_keep: int = 0) -> Tensor:
        """Compute the logits.

        Args:
            input_ids: LongTensor [B, L].
            attention_mask: 1 for tokens, 0 for padding, [B, L]; None if nothing is padded.
            logits_to_keep: Number of last positions for which logits are computed; 0 means all.

        Returns:
            Logits [B, L or logits_to_keep, vocabulary].
        """
        kept = {"logits_to_keep": logits_to_keep} if takes_logits_to_keep(self.model) else {}
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **kept)
        return kept_logits(cast(Tensor, output.logits), logits_to_keep, input_ids.shape[1])

    def token_losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the loss of every predicted token.

        Args:
            batch: `input_ids` LongTensor [B, L]; `attention_mask` [B, L] if something is padded; and `labels` [B, L] if
                only some tokens are predicted, -100 at the others.

        Returns:
            Losses in nats [B, P] of the last P tokens: all but the first, or with `labels` those from the earliest
            predicted token of the batch on; and weights of the same shape: 0 for tokens that are not predicted.
        """
        input_ids, mask, labels = batch["input_ids"], batch.get("attention_mask"), batch.get("labels")
        kept = input_ids.shape[1] - 1
        if labels is not None:  # the head is the widest layer, and prompts are often longer than answers
            kept = min(kept, input_ids.shape[1] - int((labels != _IGNORED).any(0).int().argmax()))
        logits = self(input_ids, mask, kept + 1)[:, :-1].float()
        targets = input_ids[:, -kept:]
        losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
        weights = torch.ones_like(losses) if mask is None else mask[:, -kept:].to(losses.dtype)
        return losses, weights if labels is None else weights * (labels[:, -kept:] != _IGNORED)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss per token of a batch (see `token_losses`)."""
        if self._dropout is not None:
            device, scale = batch["input_ids"].device, min(1.0, self.global_step / max(1.0, self._ramp_steps))
            self._dropout.draw(len(batch["input_ids"]), self._step_generator(batch_idx), device, scale)
        return super().training_step(batch, batch_idx)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return `loss` (nats per token) and `perplexity` of every sequence, float [B] each."""
        losses, weights = self.token_losses(batch)
        loss = (losses * weights).sum(1) / weights.sum(1).clamp(min=1)
        return {"loss": loss, "perplexity": loss.exp()}

    def on_fit_start(self) -> None:
        """Attach sub-layer dropout. Its rate rises over the first half of a run of known length."""
        super().on_fit_start()
        if self._dropout is not None:
            total = self.trainer.estimated_stepping_batches
            self._ramp_steps = _RAMP * total if math.isfinite(total) else 0.0
