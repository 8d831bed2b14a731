"""Hugging Face cross-encoders, which read a query and a document together and score how well they match."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer

from saccade.modules.lora import LoraSettings, attach_lora


class LogitScorer(nn.Module):
    """A cross-encoder with one logit, trained with binary cross-entropy.

    Args:
        path: Folder or hub id of a sequence classifier, or of an encoder that gets a new head.
        max_length: Maximum length of a pair in tokens; longer documents are truncated.
        lora: Train low-rank adapters and the head only; None trains the whole model.

    Raises:
        ValueError: The model cannot be loaded.
    """

    def __init__(self, path: str, max_length: int = 512, lora: LoraSettings | None = None) -> None:
        super().__init__()
        self.tokenizer, self.model = _loaded(AutoModelForSequenceClassification, path, num_labels=1)
        self.max_length = max_length
        if lora is not None:
            attach_lora(self.model, lora, task=None)
            for name, weight in self.model.named_parameters():
                if name.startswith(("classifier", "score")):
                    weight.requires_grad_(True)

    def forward(self, queries: Sequence[str], documents: Sequence[str]) -> Tensor:
        """Compute the logits [N] of N pairs."""
        inputs = self.tokenizer(
            list(queries), list(documents), padding=True, truncation="only_second", max_length=self.max_length,
            return_tensors="pt",
        ).to(self.model.device)  # fmt: skip
        logits: Tensor = self.model(**inputs).logits
        return logits.squeeze(-1)

    def loss(self, queries: Sequence[str], documents: Sequence[str], labels: Tensor) -> Tensor:
        """Compute the mean binary cross-entropy of N pairs in nats, a scalar."""
        logits = self(queries, documents)
        return F.binary_cross_entropy_with_logits(logits, (labels > 0).to(logits))


class SequenceToSequenceScorer(nn.Module):
    """A sequence-to-sequence model that answers "true" or "false", as monoT5 does (Nogueira et al., 2020).

    The prompt is `Query: q Document: d Relevant:`. The score is the log-odds of "true" against "false", which gives the
    same ranking as the probability of "true" among the two, and does not saturate.

    Args:
        path: Folder or hub id of the model.
        max_length: Maximum length of a prompt in tokens; the document of a longer prompt is truncated.
        lora: Train low-rank adapters only; None trains the whole model.

    Raises:
        ValueError: The model cannot be loaded, or the two answers start with the same token.
    """

    def __init__(self, path: str, max_length: int = 512, lora: LoraSettings | None = None) -> None:
        super().__init__()
        self.tokenizer, self.model = _loaded(AutoModelForSeq2SeqLM, path)
        self.max_length = max_length
        answers = [self.tokenizer(word, add_special_tokens=False)["input_ids"][:1] for word in ("true", "false")]
        if not all(answers) or answers[0] == answers[1]:
            raise ValueError(
                f"path must be a model whose tokenizer begins 'true' and 'false' with different tokens, got {path!r}:"
                " choose another model, or style=logit."
            )
        self.true, self.false = answers[0][0], answers[1][0]
        if lora is not None:
            attach_lora(self.model, lora, task="SEQ_2_SEQ_LM")

    def forward(self, queries: Sequence[str], documents: Sequence[str]) -> Tensor:
        """Compute the log-odds [N] of N pairs."""
        logits = self._first(queries, documents)
        return logits[:, self.true] - logits[:, self.false]

    def loss(self, queries: Sequence[str], documents: Sequence[str], labels: Tensor) -> Tensor:
        """Compute the mean cross-entropy of the answers over the vocabulary in nats, a scalar."""
        logits = self._first(queries, documents)
        wanted = torch.where(labels.to(logits.device) > 0, self.true, self.false)
        return F.cross_entropy(logits.float(), wanted)

    def _first(self, queries: Sequence[str], documents: Sequence[str]) -> Tensor:
        """Compute the logits [N, vocabulary] of the first token of the answer."""
        prompts = [self._prompt(query, document) for query, document in zip(queries, documents, strict=True)]
        inputs = self.tokenizer(
            prompts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(self.model.device)  # fmt: skip
        start = torch.full((len(prompts), 1), self.model.config.decoder_start_token_id, device=self.model.device)
        logits: Tensor = self.model(**inputs, decoder_input_ids=start).logits
        return logits[:, 0]

    def _prompt(self, query: str, document: str) -> str:
        """Build the prompt. If it is too long, the end of the document is removed, so that `Relevant:` stays."""
        around = self.tokenizer(f"Query: {query} Document:  Relevant:")["input_ids"]
        ids = self.tokenizer(document, add_special_tokens=False)["input_ids"]
        left = max(0, self.max_length - len(around))
        if len(ids) > left:
            document = self.tokenizer.decode(ids[:left])
        return f"Query: {query} Document: {document} Relevant:"


def _loaded(kind: Any, path: str, **settings: Any) -> tuple[Any, Any]:
    try:
        return AutoTokenizer.from_pretrained(path), cast(Any, kind.from_pretrained(path, **settings)).train()
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"path must be a reranker, got {path!r} ({reason}): give a folder or hub id.") from error
