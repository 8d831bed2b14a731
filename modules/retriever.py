"""Retriever: queries and documents as vectors, trained by contrast (a dual encoder)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.modules.lora import LoraSettings
from saccade.modules.optimization import Schedule
from saccade.modules.retrieval.hashed_encoder import HashedEncoder
from saccade.modules.retrieval.pretrained_encoder import PretrainedEncoder
from saccade.modules.retrieval.ranker import Ranker

_ENCODED_AT_ONCE = 256


class Retriever(Ranker):
    """A dual encoder, trained with InfoNCE over the documents of a batch.

    Every query of a positive pair should find its document among all documents of the batch: those of other queries
    (in-batch negatives) and those that the batch names as negatives, mined or judged. Documents that are positive for
    the same query are no negatives. The form is that of dense retrievers such as DPR and TART-dual; the hashed encoder
    is ours.

    Args:
        path: Folder or hub id of a Hugging Face encoder. None takes the hashed encoder, which needs no weights.
        rows: Rows of the hashed encoder's table.
        width: Features of its vectors.
        pooling: Of a Hugging Face encoder, `mean` or `cls`.
        normalize: Whether its vectors have length 1.
        max_length: Of its inputs, in tokens.
        lora: Adapters for a Hugging Face encoder; None trains all of it.
        temperature: Divides the scores in the loss.
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay.
        schedule: `cosine` or `constant`.
        warmup_fraction: Share of the steps in which the rate rises.
        seed: Of the hashed encoder's weights. None takes `seed_everything`, or 0.

    Raises:
        ValueError: A setting is impossible; the message names it.
    """

    def __init__(
        self,
        path: str | None = None,
        rows: int = 65536,
        width: int = 256,
        pooling: Literal["mean", "cls"] = "mean",
        normalize: bool = True,
        max_length: int = 256,
        lora: LoraSettings | None = None,
        temperature: float = 0.05,
        learning_rate: float = 3e-4,
        weight_decay: float = 0.0,
        schedule: Schedule = "constant",
        warmup_fraction: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(learning_rate, weight_decay, schedule, warmup_fraction)
        if isinstance(lora, dict):  # as a checkpoint holds it
            lora = LoraSettings(**lora)
        if temperature <= 0:
            raise ValueError(f"temperature: must be above 0, but is {temperature}")
        if path is None and lora is not None:
            raise ValueError("lora: adapters need a Hugging Face encoder; give its path, or leave lora out")
        self.save_hyperparameters()
        self.hparams["lora"] = None if lora is None else asdict(lora)  # plain values load with weights_only=True
        self.temperature = temperature
        self.encoder: HashedEncoder | PretrainedEncoder
        if path is None:
            self.encoder = HashedEncoder(rows, width, seed=seed)
        else:
            self.encoder = PretrainedEncoder(path, pooling, normalize, max_length, lora)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Encode queries or documents.

        Args:
            texts: B texts.

        Returns:
            Vectors [B, width].
        """
        vectors: Tensor = self.encoder(texts)
        return vectors

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Compute InfoNCE, in nats.

        Args:
            batch: See `Ranker`.

        Returns:
            Mean over the positive pairs, a scalar; 0 when there are none.
        """
        queries, documents, labels = list(batch["query"]), list(batch["document"]), batch["label"]
        documents += [text for texts in batch.get("negatives", ()) for text in texts]
        positive = [place for place, label in enumerate(labels.tolist()) if label > 0]
        vectors = self.encoder([*(queries[place] for place in positive), *documents])
        asked, told = vectors[: len(positive)], vectors[len(positive) :]
        if not positive:
            return told.sum() * 0  # in the graph: DDP waits for the gradient of every parameter
        scores = asked @ told.T / self.temperature
        right = {(queries[place], documents[place]) for place in positive}
        own = torch.tensor(positive, device=scores.device)
        also = torch.tensor([[(queries[row], text) in right for text in documents] for row in positive])
        also = also.to(scores.device).scatter(1, own[:, None], False)
        return F.cross_entropy(scores.masked_fill(also, float("-inf")), own)

    def prepare(self, collections: Mapping[str, Sequence[str]], target: str) -> None:
        """Fit the hashed encoder to the target's documents; a pretrained encoder has read text before."""
        self.encoder.fit(list(collections[target]))
        self.prepared = True

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Encode any number of texts, in evaluation mode and without gradients.

        Args:
            texts: N texts.

        Returns:
            Vectors [N, width] on the CPU.
        """
        with self.evaluated():
            parts = [
                self.encoder(texts[start : start + _ENCODED_AT_ONCE]).float().cpu()
                for start in range(0, len(texts), _ENCODED_AT_ONCE)
            ]
        return torch.cat(parts) if parts else torch.zeros(0, self.encoder.width)

    def rerank(
        self,
        queries: Mapping[str, str],
        candidates: Mapping[str, Sequence[str]],
        documents: Mapping[str, str],
        collection: str = "",
    ) -> dict[str, dict[str, float]]:
        """Score the candidates by inner products; each is encoded once, however many queries have it."""
        names = sorted({name for found in candidates.values() for name in found})
        place = {name: index for index, name in enumerate(names)}
        told = self.encode([documents[name] for name in names])
        asked = self.encode([queries[query] for query in candidates])
        run = {}
        for vector, (query, found) in zip(asked, candidates.items(), strict=True):
            scores = told[[place[name] for name in found]] @ vector if found else torch.zeros(0)
            run[query] = dict(zip(found, scores.tolist(), strict=True))
        return run
