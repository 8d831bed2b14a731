"""Retriever: a dual encoder of queries and documents, trained with a contrastive loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.common.checks import check_count, check_number
from saccade.common.progress import progress_bar
from saccade.modules.lora import LoraSettings
from saccade.modules.optimization import Schedule
from saccade.modules.retrieval.hashed_encoder import HashedEncoder
from saccade.modules.retrieval.mined_negatives import MinedNegatives
from saccade.modules.retrieval.pretrained_encoder import PretrainedEncoder
from saccade.modules.retrieval.ranker import Ranker, Search
from saccade.modules.retrieval.sentence_export import write_sentence_transformer
from saccade.retrieval.vector_index import VectorIndex

_ENCODED_AT_ONCE = 256


class Retriever(Ranker):
    """A dual encoder, trained with InfoNCE over the documents of a batch.

    The loss ranks the document of each positive pair among all documents of the batch: those of other queries (in-batch
    negatives) and those that the batch names as negatives, mined or judged. Documents that are positive for the same
    query do not count as negatives. This is the loss of dense retrievers such as DPR and TART-dual; the hashed encoder
    is ours.

    With `refresh_negatives_every`, each query gets mined negatives in place of the named negatives of the batch:
    documents that this encoder ranks high and that do not answer the query. They are searched in an index of all
    documents before the first step and then at regular intervals, while training waits. Checkpoints contain them, so
    that a resumed run continues as if it had not been interrupted.

    Args:
        path: Folder or hub id of a Hugging Face encoder. None takes the hashed encoder, which needs no pretrained
            weights.
        rows: Rows of the hashed encoder's table.
        width: Features of the hashed encoder's vectors.
        pooling: Pooling of a Hugging Face encoder, `mean` or `cls`.
        normalize: Whether the vectors of a Hugging Face encoder are scaled to length 1.
        max_length: Maximum length of a Hugging Face encoder's input in tokens.
        lora: Adapters for a Hugging Face encoder; None trains the whole encoder.
        temperature: Divides the scores in the loss.
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay.
        schedule: `cosine` or `constant`.
        warmup_fraction: Fraction of the steps in which the learning rate rises.
        refresh_negatives_every: Number of epochs or steps after which negatives are mined again; needs a `ChunkPool`
            and FAISS. None mines no negatives.
        refresh_negatives_unit: `epochs`, or `steps` of the optimizer.
        mined_negatives: Mined documents for each query.
        seed: Seed of the hashed encoder's weights and of the selection of negatives.

    Raises:
        ValueError: A setting is out of range; the message names it.
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
        refresh_negatives_every: int | None = None,
        refresh_negatives_unit: Literal["epochs", "steps"] = "epochs",
        mined_negatives: int = 7,
        seed: int = 0,
    ) -> None:
        super().__init__(learning_rate, weight_decay, schedule, warmup_fraction)
        if isinstance(lora, dict):  # checkpoints store plain dictionaries
            lora = LoraSettings(**lora)
        check_number("temperature", temperature)
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}: choose for example 0.05.")
        if path is None and lora is not None:
            raise ValueError("lora must be null without a path: give the path of a Hugging Face encoder, or no lora.")
        if refresh_negatives_every is not None:
            check_count("refresh_negatives_every", refresh_negatives_every)
        if refresh_negatives_unit not in ("epochs", "steps"):
            raise ValueError(
                f"refresh_negatives_unit must be epochs or steps, got {refresh_negatives_unit!r}: choose one of them."
            )
        check_count("mined_negatives", mined_negatives)
        self.save_hyperparameters()
        self.hparams["lora"] = None if lora is None else asdict(lora)  # plain values load with weights_only=True
        self.temperature = temperature
        self.refresh_negatives_every, self.refresh_negatives_unit = refresh_negatives_every, refresh_negatives_unit
        self.mined_negatives, self.seed = mined_negatives, seed
        self.negatives: MinedNegatives | None = None
        """The mined negatives, during `fit` with `refresh_negatives_every`; else None."""
        self._mined_at = -1  # the epoch or step of the last refresh
        self._resumed: dict[str, Any] = {}
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
            Mean over the positive pairs, a scalar; 0 if there are none.
        """
        queries, documents, labels = list(batch["query"]), list(batch["document"]), batch["label"]
        documents += [text for texts in batch.get("negatives", ()) for text in texts]
        positive = [place for place, label in enumerate(labels.tolist()) if label > 0]
        vectors = self.encoder([*(queries[place] for place in positive), *documents])
        asked, told = vectors[: len(positive)], vectors[len(positive) :]
        if not positive:
            return told.sum() * 0  # stays in the graph, because DDP waits for the gradient of every parameter
        scores = asked @ told.T / self.temperature
        right = {(queries[place], documents[place]) for place in positive}
        own = torch.tensor(positive, device=scores.device)
        also = torch.tensor([[(queries[row], text) in right for text in documents] for row in positive])
        also = also.to(scores.device).scatter(1, own[:, None], False)
        return F.cross_entropy(scores.masked_fill(also, float("-inf")), own)

    def prepare(self, collections: Mapping[str, Sequence[str]], target: str) -> None:
        """Fit the hashed encoder to the documents of the target; a pretrained encoder needs no fitting."""
        self.encoder.fit(list(collections[target]))
        self.prepared = True

    # mined negatives

    def setup(self, stage: str) -> None:
        """Read the collections of the data module and, with `refresh_negatives_every`, its pairs.

        Raises:
            ValueError: Negatives are to be mined, and the data module is no `ChunkPool` or FAISS is not installed.
        """
        super().setup(stage)
        if stage != "fit" or self.refresh_negatives_every is None:
            return
        labelled = getattr(getattr(self.trainer, "datamodule", None), "labelled", None)
        if labelled is None:
            raise ValueError(
                f"refresh_negatives_every must be null unless the data are a ChunkPool, got"
                f" {self.refresh_negatives_every}: set data to saccade.datamodules.ChunkPool, or leave it out."
            )
        self.negatives = MinedNegatives(labelled(), self.mined_negatives, self.seed)

    def on_train_start(self) -> None:
        """Restore the mined negatives of a checkpoint."""
        if self.negatives is not None and self._resumed:
            self.negatives.load_state_dict(self._resumed["found"])
            self._mined_at, self._resumed = int(self._resumed["at"]), {}

    def on_train_epoch_start(self) -> None:
        """Mine negatives if the unit is epochs and a refresh is due."""
        if self.refresh_negatives_unit == "epochs":
            self._refresh(self.current_epoch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Mine negatives if the unit is steps and a refresh is due."""
        if self.refresh_negatives_unit == "steps":
            self._refresh(self.global_step)

    def _refresh(self, now: int) -> None:
        # with gradient accumulation, a step has several batches
        if self.negatives is None or now == self._mined_at or now % (self.refresh_negatives_every or 1):
            return

        with progress_bar(len(self.negatives), "mining negatives", self.trainer) as bar:
            self.negatives.refresh(self.encode, self.device, bar.advance)
        self._mined_at = now

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Compute and log the loss of a batch, with mined negatives if there are any."""
        if self.negatives is not None:
            asked = zip(batch["source"], batch["query"], batch["label"].tolist(), strict=True)
            mined = [self.negatives.of(source, query) if label > 0 else [] for source, query, label in asked]
            batch = batch | {"negatives": mined}
        return super().training_step(batch, batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the mined negatives."""
        if self.negatives is not None:
            checkpoint["mined_negatives"] = {"at": self._mined_at, "found": self.negatives.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read the mined negatives, which are restored when training starts."""
        self._resumed = checkpoint.get("mined_negatives", {})

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

    def save_pretrained(self, folder: str | Path) -> None:
        """Export the encoder as a folder that sentence-transformers loads (`write_sentence_transformer`).

        All ranks may call this; rank 0 writes.

        Args:
            folder: Target folder. An existing one is replaced; it is never left half written.

        Raises:
            ValueError: The folder cannot be written.
        """
        trainer = self._trainer
        write_sentence_transformer(self.encoder, Path(folder), trainer is None or trainer.is_global_zero)
        if trainer is not None:
            trainer.strategy.barrier("saccade.modules.Retriever.save_pretrained")

    def searcher(self, documents: Mapping[str, str], collection: str = "") -> Search:
        """Encode all documents into a `VectorIndex`, which is exact."""
        trainer = self._trainer
        with progress_bar(len(documents), f"encoding {collection or 'documents'}", trainer, trainer is not None) as bar:

            def encode(texts: list[str]) -> Tensor:
                vectors = self.encode(texts)
                bar.advance(len(texts))
                return vectors

            index = VectorIndex(device="cpu").build(encode, documents, _ENCODED_AT_ONCE, progress=False)
        return lambda queries, top_k: index.run(list(queries), self.encode(list(queries.values())), top_k)

    def rerank(
        self,
        queries: Mapping[str, str],
        candidates: Mapping[str, Sequence[str]],
        documents: Mapping[str, str],
        collection: str = "",
    ) -> dict[str, dict[str, float]]:
        """Score the candidates by inner products; each document is encoded once."""
        names = sorted({name for found in candidates.values() for name in found})
        place = {name: index for index, name in enumerate(names)}
        told = self.encode([documents[name] for name in names])
        asked = self.encode([queries[query] for query in candidates])
        run = {}
        for vector, (query, found) in zip(asked, candidates.items(), strict=True):
            scores = told[[place[name] for name in found]] @ vector if found else torch.zeros(0)
            run[query] = dict(zip(found, scores.tolist(), strict=True))
        return run
