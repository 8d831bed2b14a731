"""Retriever: queries and documents as vectors, trained by contrast (a dual encoder)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.modules.lora import LoraSettings
from saccade.modules.optimization import Schedule
from saccade.modules.retrieval.hashed_encoder import HashedEncoder
from saccade.modules.retrieval.mined_negatives import MinedNegatives
from saccade.modules.retrieval.pretrained_encoder import PretrainedEncoder
from saccade.modules.retrieval.ranker import Ranker
from saccade.modules.retrieval.sentence_export import write_sentence_transformer

_ENCODED_AT_ONCE = 256


class Retriever(Ranker):
    """A dual encoder, trained with InfoNCE over the documents of a batch.

    Every query of a positive pair should find its document among all documents of the batch: those of other queries
    (in-batch negatives) and those that the batch names as negatives, mined or judged. Documents that are positive for
    the same query are no negatives. The form is that of dense retrievers such as DPR and TART-dual; the hashed encoder
    is ours.

    With `refresh_negatives_every`, each query also gets documents that this encoder itself finds and that do not answer
    it, in the place of those of the batch. They are searched before the first step and again and again, in an index of
    all documents, during which training waits; a checkpoint has them, so that a run goes on as if it had not stopped.

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
        refresh_negatives_every: Mine negatives anew after so many epochs or steps; it needs a `ChunkPool` and FAISS.
            None mines none.
        refresh_negatives_unit: `epochs` or `steps` of the optimizer.
        mined_negatives: Documents of each query that are mined.
        seed: Of the hashed encoder's weights and of the draws of negatives.

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
        refresh_negatives_every: int | None = None,
        refresh_negatives_unit: Literal["epochs", "steps"] = "epochs",
        mined_negatives: int = 7,
        seed: int = 0,
    ) -> None:
        super().__init__(learning_rate, weight_decay, schedule, warmup_fraction)
        if isinstance(lora, dict):  # as a checkpoint holds it
            lora = LoraSettings(**lora)
        if temperature <= 0:
            raise ValueError(f"temperature: must be above 0, but is {temperature}")
        if path is None and lora is not None:
            raise ValueError("lora: adapters need a Hugging Face encoder; give its path, or leave lora out")
        if refresh_negatives_every is not None and refresh_negatives_every < 1:
            raise ValueError(
                f"refresh_negatives_every: must be at least 1, but is {refresh_negatives_every}; null mines nothing"
            )
        if refresh_negatives_unit not in ("epochs", "steps"):
            raise ValueError(f"refresh_negatives_unit: must be epochs or steps, but is {refresh_negatives_unit!r}")
        if mined_negatives < 1:
            raise ValueError(f"mined_negatives: must be at least 1, but is {mined_negatives}; 7 is usual")
        self.save_hyperparameters()
        self.hparams["lora"] = None if lora is None else asdict(lora)  # plain values load with weights_only=True
        self.temperature = temperature
        self.refresh_negatives_every, self.refresh_negatives_unit = refresh_negatives_every, refresh_negatives_unit
        self.mined_negatives, self.seed = mined_negatives, seed
        self.negatives: MinedNegatives | None = None
        """During `fit` with `refresh_negatives_every`: what was mined."""
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

    # mined negatives

    def setup(self, stage: str) -> None:
        """Read the datamodule's collections; with `refresh_negatives_every`, its pairs too.

        Raises:
            ValueError: Negatives are to be mined, and the data are no `ChunkPool`, or FAISS is missing.
        """
        super().setup(stage)
        if stage != "fit" or self.refresh_negatives_every is None:
            return
        labelled = getattr(getattr(self.trainer, "datamodule", None), "labelled", None)
        if labelled is None:
            raise ValueError(
                "refresh_negatives_every: negatives are mined from the sources of a ChunkPool; set data to"
                " saccade.datamodules.ChunkPool, or leave refresh_negatives_every out"
            )
        self.negatives = MinedNegatives(labelled(), self.mined_negatives, self.seed)

    def on_train_start(self) -> None:
        """Take up what a checkpoint had mined."""
        if self.negatives is not None and self._resumed:
            self.negatives.load_state_dict(self._resumed["found"])
            self._mined_at, self._resumed = int(self._resumed["at"]), {}

    def on_train_epoch_start(self) -> None:
        """Mine negatives where epochs are counted and one is due."""
        if self.refresh_negatives_unit == "epochs":
            self._refresh(self.current_epoch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Mine negatives where steps are counted and one is due."""
        if self.refresh_negatives_unit == "steps":
            self._refresh(self.global_step)

    def _refresh(self, now: int) -> None:
        # a step that accumulates gradients has several batches
        if self.negatives is None or now == self._mined_at or now % (self.refresh_negatives_every or 1):
            return
        from saccade.common.progress import progress_bar  # only fit has a bar, and callbacks import modules

        with progress_bar(len(self.negatives), "mining negatives", self.trainer) as bar:
            self.negatives.refresh(self.encode, self.device, bar.advance)
        self._mined_at = now

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Compute and log the loss of a batch, with mined negatives where there are any."""
        if self.negatives is not None:
            asked = zip(batch["source"], batch["query"], batch["label"].tolist(), strict=True)
            mined = [self.negatives.of(source, query) if label > 0 else [] for source, query, label in asked]
            batch = batch | {"negatives": mined}
        return super().training_step(batch, batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was mined."""
        if self.negatives is not None:
            checkpoint["mined_negatives"] = {"at": self._mined_at, "found": self.negatives.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what had been mined; it is taken up when training starts."""
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

        All ranks may call it; rank 0 writes.

        Args:
            folder: Where to; it is replaced if it is there, and never half written.

        Raises:
            ValueError: The place cannot be written.
        """
        trainer = self._trainer
        write_sentence_transformer(self.encoder, Path(folder), trainer is None or trainer.is_global_zero)
        if trainer is not None:
            trainer.strategy.barrier("saccade.modules.Retriever.save_pretrained")

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
