"""LanguageModel: train any Hugging Face causal language model."""

import math
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from saccade.common.checks import check_share
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
        self.sublayer_dropout = sublayer_dropout
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
        self._dropout = SublayerDropout(model, self.sublayer_dropout) if self.sublayer_dropout > 0 else None

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Compute the logits.

        Args:
            input_ids: LongTensor [B, L].
            attention_mask: 1 for tokens, 0 for padding, [B, L]; None if nothing is padded.

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
            Losses in nats [B, L - 1], and weights of the same shape: 0 if the token to be predicted is padding.
        """
        input_ids, mask = batch["input_ids"], batch.get("attention_mask")
        logits = self(input_ids, mask)[:, :-1].float()
        losses = cross_entropy(logits.flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none")
        losses = losses.view(input_ids.shape[0], -1)
        return losses, torch.ones_like(losses) if mask is None else mask[:, 1:].to(losses.dtype)

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
