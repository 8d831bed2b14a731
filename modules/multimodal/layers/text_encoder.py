"""A Hugging Face encoder in front of a multimodal model, for texts that are given as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from transformers import AutoModel

from saccade.modules.lora import LoraSettings, attach_lora


@dataclass
class TextEncoderSettings:
    """Settings of the encoder that reads the text.

    Args:
        path: Folder or Hugging Face hub id, such as google-bert/bert-base-uncased.
        lora: Train low-rank adapters only; None trains the whole encoder.
        frozen: Do not train the encoder.

    Raises:
        ValueError: `lora` and `frozen` are given together.
    """

    path: str
    lora: LoraSettings | None = None
    frozen: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.lora, dict):  # checkpoints store plain dictionaries
            self.lora = LoraSettings(**self.lora)
        if self.frozen and self.lora is not None:
            raise ValueError("text_encoder.frozen must be false with lora, got true: choose one of the two.")


class TextEncoder(nn.Module):
    """The last hidden states of an encoder. Erased words stay in its attention mask, as in published code.

    Args:
        settings: Settings of the encoder.

    Raises:
        ValueError: The encoder cannot be loaded.
    """

    def __init__(self, settings: TextEncoderSettings) -> None:
        super().__init__()
        try:
            self.model = AutoModel.from_pretrained(settings.path).train()
        except (OSError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"text_encoder.path must be an encoder, got {settings.path!r} ({reason}): give a folder or hub id."
            ) from error
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None  # its output is not used, and DDP would wait for its gradients
        self.width: int = int(self.model.config.hidden_size)
        if settings.lora is not None:
            attach_lora(self.model, settings.lora, task=None)
        if settings.frozen:
            self.model.requires_grad_(False)

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Encode a batch of texts.

        Args:
            tokens: Token ids, long [B, T].
            valid: False at padding [B, T].

        Returns:
            Last hidden states [B, T, width].
        """
        return cast(Tensor, self.model(input_ids=tokens, attention_mask=valid.long()).last_hidden_state)
