"""Reranker: a cross-encoder, which scores a query and a document together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from saccade.common.checks import check_count
from saccade.modules.lora import LoraSettings
from saccade.modules.optimization import Schedule
from saccade.modules.retrieval.cross_encoders import LogitScorer, SequenceToSequenceScorer
from saccade.modules.retrieval.cross_features import NAMES, CrossFeatures, FeatureScorer
from saccade.modules.retrieval.ranker import Ranker, Search
from saccade.modules.retrieval.reranker_export import read_features, read_reranker, write_reranker
from saccade.retrieval.bm25 import BM25
from saccade.retrieval.measures import ranked

Style = Literal["features", "logit", "seq2seq"]
_PAIRS_AT_ONCE = 64
_CANDIDATES = 100  # documents of BM25 that are reranked for each query


class Reranker(Ranker):
    """A cross-encoder for the candidates of a first stage.

    `features` needs no pretrained weights: a small network on features that query and document have in common, which
    equals BM25 before training (ours). Its loss is the cross-entropy of a positive document among the negatives of its
    query and the documents of the other queries in the batch. `logit` is a classifier with one logit and binary
    cross-entropy. `seq2seq` answers "true" or "false" as monoT5 does, with cross-entropy over the vocabulary; this is
    the ranker of Trait's predecessor.

    Args:
        path: Folder or hub id of a Hugging Face model. None takes `features`.
        style: Type of the model; None means `features` without a path and `logit` with one.
        hidden: Hidden units of the network of `features`.
        width: Features of the latent semantic vectors of `features`.
        max_length: Maximum length of a Hugging Face model's input in tokens, at least 8.
        lora: Adapters for a Hugging Face model; None trains the whole model.
        learning_rate: Peak learning rate. None takes 0.003 for `features` and 5e-5 for the others.
        weight_decay: Decoupled weight decay.
        schedule: `cosine` or `constant`.
        warmup_fraction: Fraction of the steps in which the learning rate rises.
        seed: Seed of new weights.

    Raises:
        ValueError: A setting is out of range; the message names it.
    """

    def __init__(
        self,
        path: str | None = None,
        style: Style | None = None,
        hidden: int = 16,
        width: int = 128,
        max_length: int = 512,
        lora: LoraSettings | None = None,
        learning_rate: float | None = None,
        weight_decay: float = 0.0,
        schedule: Schedule = "constant",
        warmup_fraction: float = 0.0,
        seed: int = 0,
    ) -> None:
        if isinstance(lora, dict):  # checkpoints store plain dictionaries
            lora = LoraSettings(**lora)
        chosen: Style = style or ("features" if path is None else "logit")
        if chosen not in ("features", "logit", "seq2seq"):
            raise ValueError(f"style must be features, logit or seq2seq, got {style!r}: choose one of them.")
        if (path is None) != (chosen == "features"):
            raise ValueError(
                f"path must be null for style=features and given for the other styles, got {path!r} with"
                f" style={chosen}: change one of them."
            )
        if lora is not None and path is None:
            raise ValueError("lora must be null without a path: give the path of a Hugging Face model, or no lora.")
        check_count("max_length", max_length, 8)
        rate = learning_rate if learning_rate is not None else 3e-3 if path is None else 5e-5
        super().__init__(rate, weight_decay, schedule, warmup_fraction)
        self.save_hyperparameters()
        self.hparams["lora"] = None if lora is None else asdict(lora)  # plain values load with weights_only=True
        self.style, self.hidden, self.width, self.max_length = chosen, hidden, width, max_length
        self.collections: dict[str, CrossFeatures] = {}
        self.target = ""
        self.scorer: FeatureScorer | LogitScorer | SequenceToSequenceScorer
        if path is None:
            self.scorer = FeatureScorer(hidden, seed)
        else:
            kind = LogitScorer if chosen == "logit" else SequenceToSequenceScorer
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.scorer = kind(path, max_length, lora)

    def prepare(self, collections: Mapping[str, Sequence[str]], target: str) -> None:
        """Fit the features to the documents of each collection; the other styles do not need it."""
        if self.style == "features":
            self.collections = {name: CrossFeatures(texts, width=self.width) for name, texts in collections.items()}
        self.target = target
        self.prepared = True

    def save_pretrained(self, folder: str | Path) -> None:
        """Export the reranker; `from_pretrained` reads it.

        A Hugging Face model is written as a folder that transformers loads, and sentence-transformers as a
        `CrossEncoder` if the style is `logit`; `features` as `model.safetensors`. All ranks must call this, because
        ZeRO-3 gathers the weights; rank 0 writes.

        Args:
            folder: Target folder. An existing one is replaced; it is never left half written.

        Raises:
            ValueError: The folder cannot be written.
        """
        settings: dict[str, Any] = {"style": self.style, "max_length": self.max_length}
        if self.style == "features":
            settings |= {"hidden": self.hidden, "width": self.width}
        trainer = self._trainer
        write_reranker(self.scorer, settings, Path(folder), trainer is None or trainer.is_global_zero)
        if trainer is not None:
            trainer.strategy.barrier("saccade.modules.Reranker.save_pretrained")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Reranker:
        """Load an exported reranker. `features` needs `prepare` before it scores.

        Args:
            folder: A folder that `save_pretrained` wrote.

        Raises:
            ValueError: The folder contains no exported reranker.
        """
        settings = read_reranker(Path(folder))
        if settings["style"] != "features":
            return cls(path=str(folder), **settings)
        reranker = cls(**settings)
        read_features(cast(FeatureScorer, reranker.scorer), Path(folder))
        return reranker

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Compute the loss of a batch in nats, as the class describes it for each style."""
        queries, documents, labels = list(batch["query"]), list(batch["document"]), batch["label"]
        named = batch.get("negatives") or [[]] * len(queries)
        if not isinstance(self.scorer, FeatureScorer):
            more = [(query, text) for query, texts in zip(queries, named, strict=True) for text in texts]
            labels = torch.cat([labels, labels.new_zeros(len(more))])
            queries, documents = queries + [query for query, _ in more], documents + [text for _, text in more]
            return self.scorer.loss(queries, documents, labels)
        sources = batch.get("source") or [self.target] * len(queries)
        places = list(zip(queries, sources, labels.tolist(), range(len(queries)), strict=True))
        terms = [self.scorer(torch.zeros(1, len(NAMES), device=self.device)).sum() * 0]  # in the graph, for DDP
        count = 0
        for query, source, label, place in places:
            if label <= 0:
                continue
            others = [item for item in places if item[1] == source and documents[item[3]] != documents[place]]
            against = [documents[item[3]] for item in others if item[0] == query and item[2] <= 0] + named[place]
            # with hard negatives alone, the model would learn that documents with a high BM25 score are wrong
            against += [documents[item[3]] for item in others if item[0] != query]
            if not against:
                continue
            found = self._features(source)(query, [documents[place], *against])
            terms.append(-self.scorer(found.to(self.device)).log_softmax(-1)[0])
            count += 1
        return torch.stack(terms).sum() / max(1, count)

    def rerank(
        self,
        queries: Mapping[str, str],
        candidates: Mapping[str, Sequence[str]],
        documents: Mapping[str, str],
        collection: str = "",
    ) -> dict[str, dict[str, float]]:
        """Score the candidates of each query; `features` are those of their collection."""
        run = {}
        source = collection if collection in self.collections else self.target
        with self.evaluated():
            for query, found in candidates.items():
                texts = [documents[name] for name in found]
                run[query] = dict(zip(found, self._scores(queries[query], texts, source), strict=True))
        return run

    def searcher(self, documents: Mapping[str, str], collection: str = "") -> Search:
        """Prepare BM25, whose best hundred documents of a query are then reranked."""
        engine = BM25(documents)

        def search(queries: Mapping[str, str], top_k: int) -> dict[str, dict[str, float]]:
            first = engine.search(queries, max(top_k, _CANDIDATES))
            run = self.rerank(queries, {query: list(found) for query, found in first.items()}, documents, collection)
            return {query: {name: found[name] for name in ranked(found)[:top_k]} for query, found in run.items()}

        return search

    def _scores(self, query: str, texts: Sequence[str], source: str) -> list[float]:
        if not texts:
            return []
        if isinstance(self.scorer, FeatureScorer):
            scores = self.scorer(self._features(source)(query, texts).to(self.device))
        else:
            parts = [texts[start : start + _PAIRS_AT_ONCE] for start in range(0, len(texts), _PAIRS_AT_ONCE)]
            scores = torch.cat([self.scorer([query] * len(part), part) for part in parts])
        found: list[float] = scores.float().tolist()
        return found

    def _features(self, source: str) -> CrossFeatures:
        if source not in self.collections:
            known = ", ".join(self.collections) or "none"
            raise ValueError(f"source must be a collection that was prepared ({known}), got {source!r}: call prepare.")
        return self.collections[source]
