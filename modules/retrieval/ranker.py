"""Base class of retrievers and rerankers: scoring, the optimizer, and reading the collections before training."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

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
from saccade.retrieval.measures import measure

Search = Callable[[Mapping[str, str], int], dict[str, dict[str, float]]]
"""A function from queries by id, and a number of documents, to a run: scores by query id and document id."""

MEASURES = {"ndcg_10": "ndcg_cut_10", "recall_100": "recall_100", "mrr": "recip_rank"}
"""Names in the log, and what trec_eval calls them."""

_DEPTH = 100  # documents of each query that are measured
_SHOWN = 10  # documents of each query in a table of predictions


class Ranker(pl.LightningModule, ABC):
    """Base of the models that score documents for queries and are trained on pairs of a query and a document.

    A batch is `{"query": list[str], "document": list[str], "label": FloatTensor [B], "source": list[str], "negatives":
    list[list[str]]}`. A label above 0 means that the document answers the query. `source`, the collection of the pair,
    and `negatives`, more documents that do not answer the query, are optional.

    Validation and test search the documents of a `ChunkPool`'s target and log `ndcg_10`, `recall_100` and `mrr`, means
    over the queries, with `val_` or `test_` in front. `predict` gives the ten best documents of each held-out query.

    Args:
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay.
        schedule: `cosine` decays to 0 at the end of `fit`, `constant` stays at the peak.
        warmup_fraction: Fraction of the steps in which the learning rate rises.

    Raises:
        ValueError: A setting is out of range; the message names it.
    """

    best_metric: ClassVar[tuple[str, Literal["min", "max"]]] = ("val_ndcg_10", "max")
    """The metric by which ``best.ckpt`` is chosen. A loss depends on the negatives, which validation does not have."""

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
        self._searches: dict[int, Search] = {}  # of this epoch, by the number of the task

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

    @abstractmethod
    def searcher(self, documents: Mapping[str, str], collection: str = "") -> Search:
        """Prepare documents for search, with the weights as they are now.

        Args:
            documents: Text by document id.
            collection: As in `rerank`.

        Returns:
            A function that takes queries, text by id, and the number of documents for each, and returns a run with the
            documents of each query from best to worst.

        Raises:
            ValueError: A package of the extra `retrieval` is missing.
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

    # validation, test and prediction

    def on_validation_epoch_start(self) -> None:
        """Forget what was prepared with earlier weights."""
        self._searches = {}

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start
    on_validation_epoch_end = on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_start

    def validation_step(self, batch: dict[str, list[str]], batch_idx: int) -> None:
        """Add queries to `val_ndcg_10`, `val_recall_100` and `val_mrr`."""
        self._measure("val", batch, self._data().dev_tasks)

    def test_step(self, batch: dict[str, list[str]], batch_idx: int) -> None:
        """Add queries to `test_ndcg_10`, `test_recall_100` and `test_mrr`."""
        self._measure("test", batch, [self._data().held_out])

    def predict_step(self, batch: dict[str, list[str]], batch_idx: int) -> dict[str, list[str]]:
        """Search the ten best documents of each query.

        Args:
            batch: Queries of a `ChunkPool`.
            batch_idx: Not used.

        Returns:
            `id`, the query ids; `documents`, the document ids from best to worst, and `scores`, both as JSON lists.
        """
        found = [run for _, run in self._found(batch, [self._data().held_out], _SHOWN)]
        return {
            "id": list(batch["query_id"]),
            "documents": [json.dumps(list(run), ensure_ascii=False) for run in found],
            "scores": [json.dumps(list(run.values())) for run in found],
        }

    def _data(self) -> Any:
        data = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "dev_tasks"):
            raise ValueError(
                f"data must be a ChunkPool to evaluate a {type(self).__name__}, got {type(data).__name__}: set data to"
                " saccade.datamodules.ChunkPool."
            )
        return data

    def _found(
        self, batch: Mapping[str, Sequence[str]], tasks: Sequence[Any], top_k: int
    ) -> list[tuple[int, dict[str, float]]]:
        """For each query of a batch, the number of its task, and the scores of the best documents."""
        # tasks may have one name: the made and the judged queries of a target
        owner = {(task.name, query): number for number, task in enumerate(tasks) for query in task.queries}
        places = [owner[key] for key in zip(batch["task"], batch["query_id"], strict=True)]
        rows = list(zip(places, batch["query_id"], batch["query"], strict=True))
        runs = {}
        for number in dict.fromkeys(places):
            if number not in self._searches:
                self._searches[number] = self.searcher(tasks[number].corpus, tasks[number].name)
            asked = {query: text for place, query, text in rows if place == number}
            runs[number] = self._searches[number](asked, top_k)
        return [(place, runs[place][query]) for place, query, _ in rows]

    def _measure(self, part: str, batch: Mapping[str, Sequence[str]], tasks: Sequence[Any]) -> None:
        names = list(batch["query_id"])
        found = self._found(batch, tasks, _DEPTH)
        # by their place in the batch, because queries of two tasks may have one id
        run = {str(place): scores for place, (_, scores) in enumerate(found)}
        qrels = {str(place): tasks[number].qrels[names[place]] for place, (number, _) in enumerate(found)}
        means = measure(run, qrels, list(MEASURES.values())).mean
        for name, official in MEASURES.items():
            self.log(
                f"{part}_{name}", means[official], prog_bar=name == "ndcg_10", on_step=False, on_epoch=True,
                batch_size=len(names), sync_dist=True,
            )  # fmt: skip

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
