"""A Hugging Face encoder that converts texts to vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from saccade.common.checks import check_count
from saccade.modules.lora import LoraSettings, attach_lora

Pooling = Literal["mean", "cls"]


class PretrainedEncoder(nn.Module):
    """The pooled last hidden states of an encoder.

    Args:
        path: Folder or Hugging Face hub id, such as facebook/contriever-msmarco.
        pooling: `mean` over the tokens of a text, or the first token (`cls`).
        normalize: Scale vectors to length 1, so that inner products are cosine similarities; false for Contriever.
        max_length: Maximum length of a text in tokens; longer texts are truncated.
        lora: Train low-rank adapters only; None trains the whole encoder.

    Raises:
        ValueError: The encoder cannot be loaded, or a setting is out of range.
    """

    def __init__(
        self,
        path: str,
        pooling: Pooling = "mean",
        normalize: bool = True,
        max_length: int = 256,
        lora: LoraSettings | None = None,
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "cls"):
            raise ValueError(f"pooling must be mean or cls, got {pooling!r}: choose one of them.")
        check_count("max_length", max_length)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path)
            self.model = AutoModel.from_pretrained(path).train()
        except (OSError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"path must be an encoder, got {path!r} ({reason}): give a folder or hub id.") from error
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None  # its output is not used, and DDP would wait for its gradients
        self.pooling, self.normalize, self.max_length = pooling, normalize, max_length
        self.width: int = int(self.model.config.hidden_size)
        if lora is not None:
            attach_lora(self.model, lora, task=None)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Encode texts.

        Args:
            texts: B texts.

        Returns:
            Vectors [B, width].
        """
        inputs = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(next(self.model.parameters()).device)
        hidden = cast(Tensor, self.model(**inputs).last_hidden_state)
        if self.pooling == "cls":
            vectors = hidden[:, 0]
        else:
            valid = inputs["attention_mask"][..., None].to(hidden.dtype)
            vectors = (hidden * valid).sum(1) / valid.sum(1).clamp(min=1)
        return F.normalize(vectors, dim=-1) if self.normalize else vectors

    def fit(self, texts: Sequence[str], seed: int = 0) -> None:
        """Do nothing: a pretrained encoder needs no fitting."""
