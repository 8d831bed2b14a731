"""Hard negatives that an encoder finds itself: wrong documents that it takes for answers, found anew as it learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from saccade.retrieval.faiss_bridge import faiss_module
from saccade.retrieval.vector_index import VectorIndex
from saccade.retrieval.vectors import Encode

_DEPTH = 50  # documents of the index that negatives are drawn from, as BM25's are
_AT_ONCE = 256


class Labelled(Protocol):
    """A query and a document, and whether the document answers it (a label above 0)."""

    @property
    def query(self) -> str: ...  # noqa: D102 - said above

    @property
    def document(self) -> str: ...  # noqa: D102

    @property
    def label(self) -> int: ...  # noqa: D102


class MinedNegatives:
    """Negatives of every query with a positive pair, from an index of the current encoder.

    The idea is that of ANCE (Xiong et al., 2021), whose index is refreshed while training goes on; here training waits
    for it, so that a run can be repeated. Of the best 50 documents of a query's own collection, those that answer it
    are left out, and of the others some are drawn. The draw depends on the query alone: the same encoder gives the
    same negatives. Ours in that, as `hard_negatives` is.

    Args:
        collections: Pairs and documents of each source, by name.
        count: Documents for each query; fewer where a collection has fewer that are wrong.
        seed: Of the draws.

    Raises:
        ValueError: faiss is missing.
    """

    def __init__(
        self, collections: Mapping[str, tuple[Sequence[Labelled], Sequence[str]]], count: int, seed: int = 0
    ) -> None:
        faiss_module()  # what is missing shows now, not after the first epoch
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
        """Texts that a refresh encodes: all documents, and the queries with an answer."""
        return sum(map(len, self.documents.values())) + sum(map(len, self.answers.values()))

    def refresh(self, encode: Encode, device: torch.device, advance: Callable[[int], None] | None = None) -> None:
        """Encode all documents and queries, and draw negatives anew.

        Args:
            encode: Texts to vectors whose inner products are scores, in evaluation mode.
            device: Of the encoder; where it is a GPU that the installed FAISS can use, the search runs there.
            advance: Hears how many texts each batch had, for a progress bar.

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
                most = max(len(self.answers[name][query]) for query in part)  # so that _DEPTH wrong ones are left
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
        """The negatives of a query.

        Args:
            source: Its collection.
            query: Its text.

        Returns:
            Documents that do not answer it; none before the first refresh, or where it has no positive pair.
        """
        row = self._rows.get(source, {}).get(query)
        if row is None or source not in self._found:
            return []
        documents = self.documents[source]
        return [documents[place] for place in self._found[source][row].tolist() if place >= 0]

    def state_dict(self) -> dict[str, Tensor]:
        """What was drawn: places of documents, int32 [queries, count], by source; -1 where there is none."""
        return dict(self._found)

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Takes up what `state_dict` gave.

        Args:
            state_dict: Of the same collections.

        Raises:
            ValueError: Of others.
        """
        for name, found in state_dict.items():
            wanted = (len(self.answers.get(name, {})), self.count)
            if tuple(found.shape) != wanted or (found >= len(self.documents[name])).any():
                raise ValueError(
                    f"mined_negatives: those of the checkpoint are {list(found.shape)} in source {name}, but"
                    f" {list(wanted)} are wanted; give the same sources and settings, or start without --ckpt_path"
                )
        self._found = {name: found.clone() for name, found in state_dict.items()}
