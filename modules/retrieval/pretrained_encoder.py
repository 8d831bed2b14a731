"""A Hugging Face encoder that turns texts into vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from saccade.modules.lora import LoraSettings, attach_lora

Pooling = Literal["mean", "cls"]


class PretrainedEncoder(nn.Module):
    """Last hidden states of an encoder, pooled.

    Args:
        path: Folder or Hugging Face hub id, such as facebook/contriever-msmarco.
        pooling: `mean` over a text's tokens, or the first token's (`cls`).
        normalize: Vectors of length 1, which makes inner products cosines; Contriever does without.
        max_length: Longer texts are cut, in tokens.
        lora: Train low-rank adapters only; None trains all of it.

    Raises:
        ValueError: There is no such encoder, or a setting is impossible.
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
            raise ValueError(f"pooling: must be mean or cls, but is {pooling!r}")
        if max_length < 1:
            raise ValueError(f"max_length: must be at least 1, but is {max_length}")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path)
            self.model = AutoModel.from_pretrained(path).train()
        except (OSError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"path: cannot load an encoder from {path!r} ({reason})") from error
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None  # nothing reads it, and DDP would wait for its gradients
        self.pooling, self.normalize, self.max_length = pooling, normalize, max_length
        self.width: int = int(self.model.config.hidden_size)
        if lora is not None:
            attach_lora(self.model, lora, task=None)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Encode.

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
        """Nothing to do: a pretrained encoder has read text before."""
