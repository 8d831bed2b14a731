"""A Hugging Face encoder in front of a model, for texts that come as token numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from transformers import AutoModel

from saccade.modules.lora import LoraSettings, attach_lora


@dataclass
class TextEncoderSettings:
    """Which encoder reads the text.

    Args:
        path: Folder or Hugging Face hub id, such as google-bert/bert-base-uncased.
        lora: Train low-rank adapters only; None trains all of the encoder.
        frozen: Train nothing of it.

    Raises:
        ValueError: `lora` and `frozen` together.
    """

    path: str
    lora: LoraSettings | None = None
    frozen: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.lora, dict):  # as a checkpoint holds it
            self.lora = LoraSettings(**self.lora)
        if self.frozen and self.lora is not None:
            raise ValueError("text_encoder: frozen trains nothing and lora trains adapters; choose one")


class TextEncoder(nn.Module):
    """An encoder's last hidden states. Erased words stay in its attention mask, as the field has it.

    Args:
        settings: Which encoder.

    Raises:
        ValueError: There is no such encoder.
    """

    def __init__(self, settings: TextEncoderSettings) -> None:
        super().__init__()
        try:
            self.model = AutoModel.from_pretrained(settings.path).train()
        except (OSError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"text_encoder.path: cannot load an encoder from {settings.path!r} ({reason})") from error
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None  # nothing reads it, and DDP would wait for its gradients
        self.width: int = int(self.model.config.hidden_size)
        if settings.lora is not None:
            attach_lora(self.model, settings.lora, task=None)
        if settings.frozen:
            self.model.requires_grad_(False)

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Encode.

        Args:
            tokens: Token numbers, long [B, T].
            valid: False at padding [B, T].

        Returns:
            Last hidden states [B, T, width].
        """
        return cast(Tensor, self.model(input_ids=tokens, attention_mask=valid.long()).last_hidden_state)
