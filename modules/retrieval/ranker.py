"""Base class of retrievers and rerankers: scoring, the optimizer, and reading the collections before training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from saccade.modules.exact_resume import ExactResume
from saccade.modules.language.construction import check_batch
from saccade.modules.optimization import (
    ParameterGroup,
    Schedule,
    adamw,
    check_optimization,
    parameter_groups,
    warmup_schedule,
)


class Ranker(pl.LightningModule, ABC):
    """Base of the models that score documents for queries and are trained on pairs of a query and a document.

    A batch is `{"query": list[str], "document": list[str], "label": FloatTensor [B], "source": list[str], "negatives":
    list[list[str]]}`. A label above 0 means that the document answers the query. `source`, the collection of the pair,
    and `negatives`, more documents that do not answer the query, are optional.

    Args:
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay.
        schedule: `cosine` decays to 0 at the end of `fit`, `constant` stays at the peak.
        warmup_fraction: Fraction of the steps in which the learning rate rises.

    Raises:
        ValueError: A setting is out of range; the message names it.
    """

    def __init__(
        self,
        learning_rate: float,
        weight_decay: float = 0.0,
        schedule: Schedule = "constant",
        warmup_fraction: float = 0.0,
    ) -> None:
        super().__init__()
        check_optimization(learning_rate, weight_decay, schedule, warmup_fraction=warmup_fraction)
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.schedule: Schedule = schedule
        self.warmup_fraction = warmup_fraction
        self.prepared = False
        """Whether `prepare` was called."""

    @abstractmethod
    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Compute the loss of a batch, a scalar; 0 if the batch has no positive pair."""

    @abstractmethod
    def rerank(
        self,
        queries: Mapping[str, str],
        candidates: Mapping[str, Sequence[str]],
        documents: Mapping[str, str],
        collection: str = "",
    ) -> dict[str, dict[str, float]]:
        """Score the candidates of each query, in evaluation mode and without gradients.

        Args:
            queries: Text by query id.
            candidates: Document ids by query id, found by a first stage.
            documents: Text by document id.
            collection: Name of the collection of the documents, as given to `prepare`; an unknown name means the
                target.

        Returns:
            A run: scores by query id and document id; higher is better.
        """

    def prepare(self, collections: Mapping[str, Sequence[str]], target: str) -> None:
        """Read unlabelled text once before training. Most rankers do not need it.

        Args:
            collections: Documents of each source and of the target, by name.
            target: Name of the target.
        """
        self.prepared = True

    def setup(self, stage: str) -> None:
        """Read the collections of the data module, if it has any and they were not read before."""
        collections = getattr(getattr(self.trainer, "datamodule", None), "collections", None)
        if not self.prepared and collections is not None:
            self.prepare(*collections())

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Check that the batch is one of pairs, as `ChunkPool` gives."""
        check_batch(self, batch, "query", "ChunkPool")
        return batch

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Compute and log the loss of a batch."""
        loss = self.loss(batch)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch["query"]))
        return loss

    def score(self, query: str, documents: Sequence[str]) -> list[float]:
        """Score how well documents answer a query; higher is better.

        Args:
            query: The query.
            documents: N documents.

        Returns:
            N scores.
        """
        named = {str(place): document for place, document in enumerate(documents)}
        return list(self.rerank({"query": query}, {"query": list(named)}, named)["query"].values())

    def configure_callbacks(self) -> list[pl.Callback]:
        """Return the callback with which a resumed fit equals one that was not interrupted."""
        return [ExactResume()]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW, and the schedule unless the learning rate is constant."""
        groups = parameter_groups(self, lambda name: ParameterGroup(self.learning_rate))
        optimizer = adamw(groups, self.weight_decay)
        if self.schedule == "constant" and self.warmup_fraction == 0:
            return optimizer
        total = self.trainer.estimated_stepping_batches
        schedule = warmup_schedule(optimizer, self.schedule, total, self.warmup_fraction, 0.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Switch to evaluation mode without gradients inside a `with` block, and restore the mode afterwards."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(training)
