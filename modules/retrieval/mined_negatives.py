"""Hard negatives mined by the encoder in training: documents that it ranks high and that do not answer the query."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from saccade.retrieval.faiss_bridge import faiss_module
from saccade.retrieval.vector_index import VectorIndex
from saccade.retrieval.vectors import Encode

_DEPTH = 50  # best documents from which negatives are drawn; the same number as for BM25
_AT_ONCE = 256  # texts encoded in one batch


class Labelled(Protocol):
    """A query, a document, and a label, which is above 0 if the document answers the query."""

    @property
    def query(self) -> str: ...  # noqa: D102 - described by the class

    @property
    def document(self) -> str: ...  # noqa: D102

    @property
    def label(self) -> int: ...  # noqa: D102


class MinedNegatives:
    """Negatives of every query with a positive pair, from an index built with the current encoder.

    The idea is that of ANCE (Xiong et al., 2021), which refreshes its index while training continues; here training
    waits for the refresh, so that runs are reproducible. From the 50 best documents of the query's own collection that
    do not answer it, some are drawn at random. The draw depends on the seed and the query only: the same encoder gives
    the same negatives (ours, as for `hard_negatives`).

    Args:
        collections: Pairs and documents of each source, by name.
        count: Documents for each query; fewer if a collection has fewer that do not answer it.
        seed: Seed of the draws.

    Raises:
        ValueError: FAISS is not installed.
    """

    def __init__(
        self, collections: Mapping[str, tuple[Sequence[Labelled], Sequence[str]]], count: int, seed: int = 0
    ) -> None:
        faiss_module()  # raises now if FAISS is missing, not after the first epoch
        self.count, self.seed = count, seed
        self.documents: dict[str, list[str]] = {}
        self.answers: dict[str, dict[str, set[int]]] = {}
        for name, (pairs, documents) in collections.items():
            self.documents[name] = list(dict.fromkeys(documents))
            places = {text: place for place, text in enumerate(self.documents[name])}
            self.answers[name] = {}
            for pair in pairs:
                if pair.label > 0:
                    right = self.answers[name].setdefault(pair.query, set())
                    right.update([places[pair.document]] if pair.document in places else [])
        self._rows = {name: {query: row for row, query in enumerate(asked)} for name, asked in self.answers.items()}
        self._found: dict[str, Tensor] = {}

    def __len__(self) -> int:
        """Return the number of texts that a refresh encodes: all documents, and the queries with an answer."""
        return sum(map(len, self.documents.values())) + sum(map(len, self.answers.values()))

    def refresh(self, encode: Encode, device: torch.device, advance: Callable[[int], None] | None = None) -> None:
        """Encode all documents and queries, and draw new negatives.

        Args:
            encode: Encodes texts, in evaluation mode; inner products of its vectors are scores.
            device: Device of the encoder. If it is a GPU that the installed FAISS can use, the search runs there.
            advance: Called with the number of texts of each finished batch, for a progress bar.

        Raises:
            ValueError: The vectors are not finite.
        """

        def counted(texts: list[str]) -> Tensor:
            vectors = encode(texts)
            if advance is not None:
                advance(len(texts))
            return vectors

        where: dict[str, Any] = {"device": "cpu"} if device.type != "cuda" else {"gpus": [device.index or 0]}
        for name, documents in self.documents.items():
            index = VectorIndex(**where)
            named = {f"{place:08d}": text for place, text in enumerate(documents)}
            index.build(counted, named, _AT_ONCE, progress=False)
            queries = list(self.answers[name])
            found = torch.full((len(queries), self.count), -1, dtype=torch.int32)
            for start in range(0, len(queries), _AT_ONCE):
                part = queries[start : start + _AT_ONCE]
                most = max(len(self.answers[name][query]) for query in part)  # leaves _DEPTH documents without answers
                _, ids = index.search(counted(part), _DEPTH + most)
                for row, (query, ranked) in enumerate(zip(part, ids, strict=True), start):
                    drawn = self._drawn(query, [int(place) for place in ranked], self.answers[name][query])
                    found[row, : len(drawn)] = torch.tensor(drawn, dtype=torch.int32)
            self._found[name] = found

    def _drawn(self, query: str, ranked: list[int], right: set[int]) -> list[int]:
        wrong = [place for place in ranked if place not in right][:_DEPTH]
        draw = np.random.default_rng([self.seed, len(query), *query.encode()[:64]])
        kept = sorted(draw.permutation(len(wrong))[: self.count].tolist())
        return [wrong[place] for place in kept]

    def of(self, source: str, query: str) -> list[str]:
        """Return the negatives of a query.

        Args:
            source: Name of the query's collection.
            query: Text of the query.

        Returns:
            Documents that do not answer the query; empty before the first refresh, or if it has no positive pair.
        """
        row = self._rows.get(source, {}).get(query)
        if row is None or source not in self._found:
            return []
        documents = self.documents[source]
        return [documents[place] for place in self._found[source][row].tolist() if place >= 0]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the drawn negatives by source: numbers of documents, int32 [queries, count], padded with -1."""
        return dict(self._found)

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Restore the negatives of a checkpoint.

        Args:
            state_dict: Result of `state_dict` for the same collections and number of negatives.

        Raises:
            ValueError: The collections or the number of negatives differ.
        """
        for name, found in state_dict.items():
            wanted = (len(self.answers.get(name, {})), self.count)
            if tuple(found.shape) != wanted or (found >= len(self.documents[name])).any():
                raise ValueError(
                    f"mined_negatives of the checkpoint must have the shape {list(wanted)} in source {name}, got"
                    f" {list(found.shape)}: give the same sources and settings, or start without --ckpt_path."
                )
        self._found = {name: found.clone() for name, found in state_dict.items()}
