"""VisionLanguageModel: train Qwen2-VL, Qwen2.5-VL, Qwen3-VL or LLaVA-OneVision on videos."""

from contextlib import nullcontext
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric
from transformers import AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from saccade.common.checks import check_count, check_share, check_switch
from saccade.datamodules.video.preprocessing import VisualFormat
from saccade.inference.huggingface.vision_windows import joined_windows
from saccade.modules.language.base import GenerativeModule
from saccade.modules.language.construction import (
    check_fit,
    check_tokenizer_survives,
    model_from_config,
    model_from_path,
)
from saccade.modules.language.pretrained_parts import check_parts, model_from_parts
from saccade.modules.language.video_dropout import VideoTokenDropout
from saccade.modules.language.video_positions import shared_positions
from saccade.modules.language.vision_construction import (
    LANGUAGE_PATH,
    check_family,
    check_vision_fit,
    complete_vision_config,
    tower_of,
)
from saccade.modules.language.vision_prompts import greedy_answers, prompt_inputs
from saccade.modules.lora import LoraSettings
from saccade.modules.optimization import Schedule

_IGNORED = -100  # label of tokens that are not predicted
_NOT_READ = frozenset({"labels", "prompt_length", "item"})  # parts of a batch that are no inputs of the model


class SlotAccuracy(Metric):
    """Number of correct facts divided by the number of facts; exact over batches and ranks, because both are summed."""

    right: Tensor
    asked: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("right", "asked"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, right: int, asked: int) -> None:
        """Add the facts of a caption.

        Args:
            right: Number of facts that the caption tells correctly.
            asked: Number of facts of the scene.
        """
        self.right += right
        self.asked += asked

    def compute(self) -> Tensor:
        """Return the accuracy, 0 to 1; NaN if there were no facts."""
        return self.right / self.asked


class VisionLanguageModel(GenerativeModule):
    """Trains a vision-language model on videos: loss of the answers, slot accuracy, checkpoints, export.

    Give `path`, to continue from a trained model, or `config`, to train from scratch. The Hugging Face model,
    an unchanged model of transformers of one of the families (`qwen2_vl`, `qwen2_5_vl`, `qwen3_vl`, `llava_onevision`),
    is `model`; it is built during the trainer's set-up, or by `build` without a trainer. Checkpoints contain everything
    that `load_from_checkpoint` needs. `predict` answers every prompt.

    Logged: `train_loss` (every step, mean over ranks), `val_loss`, `val_perplexity`, `test_loss`, `test_perplexity`
    (exact means over all tokens of answers and ranks; losses are in nats per token), and, if the data module knows the
    facts of its scenes, `val_slot_accuracy` and `test_slot_accuracy`: the fraction of the facts that greedy captions
    tell correctly.

    Args:
        path: Folder or Hugging Face hub id of a trained model. The command uses its tokenizer for the data too, unless
            the data names another.
        config: Settings of a new model, not used if `path` is given: `model_type` (one of the families), `text_config`,
            `vision_config`. Vocabulary, special tokens, patch size and image size default to those of the data module.
        language_model: Folder or Hugging Face hub id of a causal language model, such as Qwen2.5, that becomes the
            language part of a new LLaVA-OneVision; not used if `path` is given. The command uses its tokenizer for the
            data too, unless the data names another. Its head is not trained unless all of it is.
        vision_tower: Folder or hub id of a trained LLaVA-OneVision whose vision tower the new model starts with; not
            used if `path` is given.
        lora: Train low-rank adapters instead of the weights: with `language_model` those of the language part, while
            the vision tower and the projector are trained whole, otherwise adapters of all parts and nothing else.
            None trains all weights.
        freeze_language: Do not train the language part and its head.
        video_dropout: Largest fraction, 0 to 1, of a clip's video tokens that are hidden from the language part in a
            training step; the fraction is drawn for each sequence. Use it to train the draft model of a decoder that
            prunes videos (see `VideoTokenDropout`).
        freeze_vision: Do not train the vision tower: `visual` of a Qwen with its mergers, `vision_tower` of
            LLaVA-OneVision without the projector.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of matrices; norms and biases have none.
        betas: Decay rates of AdamW's two moments.
        schedule: Learning rate after the warm-up: "cosine" decays to `final_fraction` of the peak at the last step,
            "constant" stays at the peak.
        warmup_fraction: Fraction of all steps in which the learning rate rises from zero, 0 to 1.
        final_fraction: Last learning rate divided by the peak, 0 to 1.
        slot_scenes: Number of scenes of the validation or test part that are captioned for slot accuracy; 0 is off.
        max_answer_tokens: Maximum length of a caption in tokens, for slot accuracy and `predict`.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        seed: Seed of new weights. None takes `seed_everything`, or 0.

    Raises:
        ValueError: A setting is out of range; the message names it.
    """

    _dropout: VideoTokenDropout | None
    checkpoint_key: ClassVar[str] = "saccade_vision_language_model"
    auto_class: ClassVar[Any] = AutoModelForImageTextToText
    reads: ClassVar[tuple[str, str]] = ("labels", "VideoCaptions")

    def __init__(
        self,
        path: str | None = None,
        config: dict[str, Any] | None = None,
        language_model: str | None = None,
        vision_tower: str | None = None,
        lora: LoraSettings | None = None,
        freeze_language: bool = False,
        freeze_vision: bool = False,
        video_dropout: float = 0.0,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        schedule: Schedule = "cosine",
        warmup_fraction: float = 0.05,
        final_fraction: float = 0.1,
        slot_scenes: int = 32,
        max_answer_tokens: int = 256,
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
        if path is None and config is not None:
            check_family(config.get("model_type"))
            check_parts(config, language_model, vision_tower)
        check_switch("freeze_language", freeze_language)
        if freeze_language and lora is not None:
            raise ValueError(
                "freeze_language must be false with lora, whose adapters train the language part, got both: leave one"
                " out."
            )
        check_count("slot_scenes", slot_scenes, 0)
        check_count("max_answer_tokens", max_answer_tokens)
        check_share("video_dropout", video_dropout)
        self.language_model = language_model if path is None else None
        self.vision_tower = vision_tower if path is None else None
        self.freeze_language = freeze_language
        self.freeze_vision = freeze_vision
        self.video_dropout = video_dropout
        self.slot_scenes = slot_scenes
        self.max_answer_tokens = max_answer_tokens
        self.val_slot_accuracy = SlotAccuracy()
        self.test_slot_accuracy = SlotAccuracy()

    def build(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        visual: VisualFormat | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """Build `model` if it does not exist yet. The trainer calls this during set-up.

        Args:
            tokenizer: Tokenizer of the data; defines vocabulary and special tokens, and is exported with the model.
            visual: Format of the data; defines family, patch size and image size.
            max_tokens: Maximum length of a sequence of the data; checked against the model's context.

        Raises:
            ValueError: The model cannot be built, or does not fit the data.
        """
        if self.is_built:
            return
        if self.path is not None:
            model = model_from_path(self.path, self.auto_class, "vision-language model")
            check_family(model.config.model_type, "model_type of the model in path")
            check_vision_fit(model.config, tokenizer, visual)
            check_fit(model.config, tokenizer, max_tokens, "max_tokens")
        elif self.language_model is not None or self.vision_tower is not None:
            model = model_from_parts(
                self.config or {},
                self.language_model,
                self.vision_tower,
                self._keeps_language_type,
                tokenizer,
                visual,
                max_tokens,
                self.seed,
            )
        else:
            config = complete_vision_config(self.config or {}, tokenizer, visual)
            check_vision_fit(config, tokenizer, visual)
            check_fit(config, tokenizer, max_tokens, "max_tokens")
            if tokenizer is not None:
                check_tokenizer_survives(config, tokenizer)
            model = model_from_config(config, self.seed, self.auto_class)
        self.tokenizer = tokenizer
        self._adopt(model)

    def build_for(self, datamodule: Any) -> None:
        """Build `model` with the tokenizer, the visual format and the token limit of a data module.

        Args:
            datamodule: A data module that is set up, or None.

        Raises:
            ValueError: The model cannot be built, or does not fit the data.
        """
        self.build(*(getattr(datamodule, name, None) for name in ("tokenizer", "visual", "max_tokens")))

    @property
    def _keeps_language_type(self) -> bool:
        """Whether a given language part keeps the type of its file, because none of its weights is trained."""
        return self.language_model is not None and (self.freeze_language or self.lora is not None)

    @property
    def _adapted_part(self) -> str | None:
        return LANGUAGE_PATH if self.language_model is not None else None

    def _adopt(self, model: PreTrainedModel) -> None:
        if self.freeze_language or self._keeps_language_type:
            for part in (model.get_submodule(LANGUAGE_PATH), model.get_output_embeddings()):
                part.requires_grad_(False)
        super()._adopt(model)
        if self.tokenizer is not None:
            # `generate` and the export read them here, but a new configuration has them in its text part only
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                if getattr(model.generation_config, name) is None:
                    setattr(model.generation_config, name, getattr(self.tokenizer, name))
        tower = tower_of(model)
        # LLaVA uses the states before SigLIP's last norm; DDP would wait for the gradients of the unused norm
        unused = [part for name, part in tower.named_modules() if name.endswith("post_layernorm")]
        for part in [tower] if self.freeze_vision else unused:
            part.requires_grad_(False)
        self._dropout = VideoTokenDropout(model, self.video_dropout) if self.video_dropout > 0 else None

    def forward(self, logits_to_keep: int = 0, **inputs: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            logits_to_keep: Number of last positions for which logits are computed; 0 means all.
            inputs: Inputs of the model: `input_ids` LongTensor [B, L], `attention_mask`, `pixel_values_videos`, and for
                a Qwen `mm_token_type_ids` and `video_grid_thw`.

        Returns:
            Logits [B, L or logits_to_keep, vocabulary].
        """
        inputs |= shared_positions(self.model, inputs)
        # gradient checkpointing recomputes layers after the context manager has ended
        with nullcontext() if self.gradient_checkpointing else joined_windows(self.model):
            return cast(Tensor, self.model(**inputs, use_cache=False, logits_to_keep=logits_to_keep).logits)

    def token_losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the loss of every token of the answers.

        Args:
            batch: `labels` LongTensor [B, L], -100 outside the answers, and the inputs of the model (see `forward`).

        Returns:
            Losses in nats [B, P] of the last P tokens, which start at the earliest token of an answer in the batch; and
            weights of the same shape: 0 outside the answers.
        """
        labels = batch["labels"]
        # logits only from the first answer on: the head is the widest layer, and most positions are video
        kept = labels.shape[1] - max(1, int((labels != _IGNORED).any(0).int().argmax()))
        inputs = {name: value for name, value in batch.items() if name not in _NOT_READ}
        logits = self(logits_to_keep=kept + 1, **inputs)[:, :-1].float()
        targets = labels[:, -kept:]
        losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=_IGNORED, reduction="none")
        return losses.view(targets.shape), (targets != _IGNORED).to(losses.dtype)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss per token of a batch's answers (see `token_losses`)."""
        if self._dropout is not None:
            self._dropout.draw(batch["input_ids"], self._step_generator(batch_idx))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add a batch to `val_loss`, `val_perplexity` and `val_slot_accuracy`."""
        super().validation_step(batch, batch_idx)
        self._count_facts("val", "validation", self.val_slot_accuracy, batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add a batch to `test_loss`, `test_perplexity` and `test_slot_accuracy`."""
        super().test_step(batch, batch_idx)
        self._count_facts("test", "test", self.test_slot_accuracy, batch)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """Answer every prompt greedily; return `key`, its number in the part, LongTensor [B], and `answer`, B texts."""
        return {"key": batch["item"], "answer": self.answers(batch, range(len(batch["item"])))}

    def answers(self, batch: dict[str, Tensor], rows: Any) -> list[str]:
        """Answer prompts greedily.

        Args:
            batch: A batch of the data module.
            rows: Numbers of the rows to answer.

        Returns:
            An answer for each row, without special tokens.

        Raises:
            ValueError: The model was built without a tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError("tokenizer must be given to write answers, got None: pass the data's tokenizer to build.")
        pad = self.tokenizer.pad_token_id
        inputs = prompt_inputs(batch, list(rows), 0 if pad is None else pad)
        with joined_windows(self.model):
            tokens = greedy_answers(self.model, inputs, self.max_answer_tokens, synced=self._shares_weights)
        return list(self.tokenizer.batch_decode(tokens, skip_special_tokens=True))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what a language model stores, and the type of a language part that keeps its own."""
        super().on_save_checkpoint(checkpoint)
        if self._keeps_language_type:
            head: Any = self.model.get_output_embeddings()
            checkpoint[self.checkpoint_key]["language_type"] = str(head.weight.dtype).removeprefix("torch.")

    def _rebuilt(self, config: PretrainedConfig, stored: dict[str, Any]) -> PreTrainedModel:
        model = super()._rebuilt(config, stored)
        if "language_type" in stored:
            for part in (model.get_submodule(LANGUAGE_PATH), model.get_output_embeddings()):
                for parameter in part.parameters():  # not the frequencies of positions, which are never rounded
                    parameter.data = parameter.data.to(getattr(torch, stored["language_type"]))
        return model

    @property
    def _shares_weights(self) -> bool:
        """Whether DeepSpeed ZeRO-3 partitions the weights, so that each forward is a collective operation."""
        return any(hasattr(parameter, "ds_id") for parameter in self.model.parameters())

    def _count_facts(self, name: str, part: str, metric: SlotAccuracy, batch: dict[str, Tensor]) -> None:
        """Caption the scenes of the batch that are among the first `slot_scenes`, and count their facts."""
        score = getattr(getattr(self.trainer, "datamodule", None), "score", None)
        if not self.slot_scenes or score is None or score("", 0, part) is None:
            return
        items = batch["item"].tolist()
        rows = [row for row, item in enumerate(items) if item < self.slot_scenes]
        wanted = bool(rows)
        if self._shares_weights:
            # all ranks must take part: a rank without a scene of its own answers one that does not count
            wanted = self.trainer.strategy.reduce_boolean_decision(wanted, all=False)
        if wanted:
            texts = self.answers(batch, rows or [0])
            for row, text in zip(rows, texts, strict=False):
                found = score(text, items[row], part)
                metric.update(found.right, found.asked)
        self.log(f"{name}_slot_accuracy", metric, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(items))
