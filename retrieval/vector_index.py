"""A FAISS index with a whole life: built, extended, saved, loaded, refreshed during training, searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from rich.progress import track
from torch import Tensor

from saccade.retrieval.faiss_bridge import MAX_GPU_TOP_K, Searcher, checked, faiss_module, refuse_without_gpus
from saccade.retrieval.index_folder import read_index, write_index
from saccade.retrieval.vectors import Array, Encode, as_float32, encode_all, unit_length

Metric = Literal["inner_product", "cosine", "l2"]
"""What makes a document near: a large inner product, a large cosine, or a small squared distance."""

_QUERIES = 1024  # searched at once


class VectorIndex:
    """Documents by their vectors.

    The index lives in main memory; where a GPU searches, a copy of it lies there, made anew after a change.

    Args:
        factory: FAISS's index factory string. "Flat" compares with every vector and is exact; others, such as
            "IVF256,Flat" or "HNSW32", are faster and miss some documents. What needs training is trained on the first
            vectors that come.
        metric: "inner_product", "cosine" (vectors are scaled to length 1) or "l2".
        device: What searches. "auto" takes the GPUs where the installed faiss is built for them and CUDA shows some,
            otherwise the CPU and says so; "cpu"; "cuda" takes the GPUs or fails.
        fp16: Keep the vectors on the GPUs in half precision: half the memory, but documents that are nearly equal may
            change places. The index on the CPU stays in full precision.
        gpus: Numbers of the GPUs; the documents are split over them. None takes all that CUDA shows; name one under
            DDP, where every rank has its own.
        parameters: FAISS's search parameters, such as "nprobe=16"; empty leaves FAISS's defaults.

    Raises:
        ValueError: faiss is missing, a setting is impossible, or "cuda" is asked for and there are no GPUs for faiss.
    """

    def __init__(
        self,
        factory: str = "Flat",
        metric: Metric = "inner_product",
        device: Literal["auto", "cpu", "cuda"] = "auto",
        fp16: bool = False,
        gpus: Sequence[int] | None = None,
        parameters: str = "",
    ) -> None:
        self._faiss = faiss_module()
        if metric not in ("inner_product", "cosine", "l2"):
            raise ValueError(f"metric: must be 'inner_product', 'cosine' or 'l2', but is {metric!r}; correct the name")
        if device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device: must be 'auto', 'cpu' or 'cuda', but is {device!r}; correct the name")
        if device == "cuda":
            refuse_without_gpus(self._faiss, gpus)
        self.factory, self.metric, self.parameters = factory, metric, parameters
        self.device, self.fp16, self.gpus = device, fp16, gpus
        self._refuse_unknown_factory()
        self._reset()

    def _reset(self) -> None:
        self._index: Any = None
        self._searcher: Searcher | None = None
        self._ids: list[str] = []
        self._known: set[str] = set()
        self._texts: dict[str, str] | None = {}

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> list[str]:
        """Document ids in the order in which they were added."""
        return list(self._ids)

    @property
    def width(self) -> int | None:
        """Features of each vector; None before the first one."""
        return None if self._index is None else int(self._index.d)

    def build(self, encode: Encode, documents: Mapping[str, str], batch_size: int = 256, progress: bool = True) -> Self:
        """Fill the index with documents, in the place of those it had.

        Args:
            encode: Gives the vectors; it runs without gradients. Training and evaluation mode are the caller's.
            documents: Text by document id. They are kept for `refresh`, not saved.
            batch_size: Texts that `encode` gets at once.
            progress: Show a bar.

        Returns:
            The index itself. When the work fails, it is as it was.

        Raises:
            ValueError: Vectors are not [n, width] or not finite, there are too few of them to train on, or a setting is
                impossible.
        """
        fresh = self._like_this()
        fresh.add(encode, documents, batch_size, progress, "Index")
        self._take(fresh)
        return self

    def refresh(
        self,
        encode: Encode,
        documents: Mapping[str, str] | None = None,
        batch_size: int = 256,
        progress: bool = True,
    ) -> Self:
        """Encode all documents again, after the encoder has changed; what needs training is trained again.

        Args:
            encode: Gives the vectors.
            documents: Text by document id; None takes the texts that the index was built from.
            batch_size: Texts that `encode` gets at once.
            progress: Show a bar.

        Returns:
            The index itself. When the work fails, it is as it was.

        Raises:
            ValueError: The texts are not known, or as in `build`.
        """
        texts = self._texts if documents is None else documents
        if texts is None:
            raise ValueError(
                f"documents: must be given to refresh an index that was loaded or filled with vectors, but is None;"
                f" pass the {len(self)} texts"
            )
        return self.build(encode, texts, batch_size, progress)

    def add(
        self,
        encode: Encode,
        documents: Mapping[str, str],
        batch_size: int = 256,
        progress: bool = True,
        words: str = "Add to index",
    ) -> None:
        """Encode further documents and add them.

        Args:
            encode: Gives the vectors.
            documents: Text by document id; none may be in the index already.
            batch_size: Texts that `encode` gets at once.
            progress: Show a bar.
            words: Before the bar.

        Raises:
            ValueError: As in `build`, or an id is in the index already. Then nothing was added.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: must be at least 1, but is {batch_size}; 256 is usual")
        ids = list(documents)
        self._check_ids(ids)
        if not ids:
            return
        vectors = encode_all(encode, list(documents.values()), batch_size, words if progress else None)
        self._add(ids, vectors)
        if self._texts is not None:
            self._texts.update(documents)

    def add_vectors(self, ids: Sequence[str], vectors: Tensor | np.ndarray[Any, Any]) -> None:
        """Add documents whose vectors are there already; `refresh` must then be given the texts.

        Args:
            ids: A name for each vector; none may be in the index already.
            vectors: Float of any precision, on any device, [n, width].

        Raises:
            ValueError: The vectors are not [n, width] or not finite, the numbers differ, or an id comes twice. Then
                nothing was added.
        """
        given = list(ids)
        self._check_ids(given)
        rows = as_float32(vectors, "vectors")
        if len(rows) != len(given):
            raise ValueError(f"ids: must be one for each of the {len(rows)} vectors, but are {len(given)}; name each")
        if given:
            self._add(given, rows)
            self._texts = None

    def _check_ids(self, ids: list[str]) -> None:
        seen: set[str] = set()
        for name in ids:
            if not isinstance(name, str):
                raise ValueError(f"ids: must be strings, but one is {name!r}; use str(id)")
            if name in self._known or name in seen:
                raise ValueError(f"ids: must each come once, but {name!r} comes twice; name documents apart")
            seen.add(name)

    def _add(self, ids: list[str], vectors: Array) -> None:
        """Add checked vectors under checked ids; nothing changes when faiss refuses."""
        index = self._index
        if index is None:
            index = self._empty(vectors.shape[1])
        self._check_width(vectors)
        rows = self._measured(vectors)
        if not index.is_trained:
            checked(f"factory: {self.factory!r}", lambda: index.train(rows), "add documents or use factory: Flat")
        checked(f"factory: {self.factory!r}", lambda: index.add(rows), "use another factory, such as Flat")
        self._index, self._searcher = index, None
        self._ids += ids
        self._known.update(ids)

    def _measured(self, vectors: Array) -> Array:
        """As the index measures them: of length 1 where the metric is the cosine."""
        return unit_length(vectors) if self.metric == "cosine" else vectors

    def _check_width(self, vectors: Array) -> None:
        if self.width is not None and vectors.shape[1] != self.width:
            raise ValueError(
                f"vectors: must be [n, {self.width}] as those in the index, but are {list(vectors.shape)}; encode"
                f" queries and documents with one model"
            )

    def _empty(self, width: int) -> Any:
        """A new index of the factory."""
        faiss = self._faiss
        kind = faiss.METRIC_L2 if self.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        index = checked(
            f"factory: {self.factory!r} with metric {self.metric!r} and width {width}",
            lambda: faiss.index_factory(width, self.factory, kind),
            "see FAISS's list of factory strings",
        )
        self._set_parameters(index)
        return index

    def _refuse_unknown_factory(self) -> None:
        """A misspelt factory shows now, not after the encoding."""
        try:
            self._faiss.index_factory(64, self.factory)
        except RuntimeError as error:
            # whatever else FAISS says may depend on the width, which is not known yet
            if "could not parse" in str(error):
                raise ValueError(
                    f"factory: must be a factory string of FAISS, such as Flat or 'IVF256,Flat', but is"
                    f" {self.factory!r}; correct it"
                ) from None

    def _set_parameters(self, index: Any) -> None:
        if self.parameters:
            checked(
                f"parameters: {self.parameters!r}",
                lambda: self._faiss.ParameterSpace().set_index_parameters(index, self.parameters),
                "use FAISS's names, such as nprobe=16",
            )

    def search(
        self, vectors: Tensor | np.ndarray[Any, Any], top_k: int, progress: bool = False
    ) -> tuple[Array, list[list[str]]]:
        """The nearest documents of each query.

        Args:
            vectors: Of the queries: float of any precision, on any device, [n, width].
            top_k: Documents of each query; there are fewer where the index holds fewer, or where one that is not exact
                finds fewer.
            progress: Show a bar.

        Returns:
            Scores and document ids, both from best to worst. Scores are float32 [n, min(top_k, documents)]: inner
            products, cosines, or with "l2" the squared distance times -1, so that a higher one is always nearer; where
            a row has fewer ids, the rest is -inf. Of equal scores the larger id comes first; in an exact index also at
            the cut.

        Raises:
            ValueError: The vectors are not [n, width] or not finite, or `top_k` is below 1.
        """
        if top_k < 1:
            raise ValueError(f"top_k: must be at least 1, but is {top_k}; 100 is usual before re-ranking")
        rows = as_float32(vectors, "vectors")
        if self._index is None:
            return np.empty((len(rows), 0), np.float32), [[] for _ in rows]
        self._check_width(rows)
        rows, count = self._measured(rows), min(top_k, len(self))
        scores, ids = np.full((len(rows), count), -np.inf, np.float32), []
        for start in track(range(0, len(rows), _QUERIES), "Search", transient=True, disable=not progress):
            for query, best in enumerate(self._search(rows[start : start + _QUERIES], count), start):
                scores[query, : len(best)] = [score for score, _ in best]
                ids.append([name for _, name in best])
        return scores, ids

    def _search(self, rows: Array, count: int) -> list[list[tuple[float, str]]]:
        """Scores and ids of each query."""
        # an exact index is asked for one more than fits, and for twice as many while the cut goes through a tie
        exact = self.factory == "Flat"
        fetch, pending = min(count + exact, len(self)), np.arange(len(rows))
        best: list[list[tuple[float, str]]] = [[] for _ in rows]
        while len(pending):
            found, places = self._nearest(rows[pending], fetch)
            cut = (found[:, count - 1] == found[:, -1]) & exact & (fetch < len(self))
            for row in np.flatnonzero(~cut):
                best[pending[row]] = self._best(found[row], places[row], count)
            pending, fetch = pending[cut], min(2 * fetch, len(self))
        return best

    def _best(self, scores: Array, places: Any, count: int) -> list[tuple[float, str]]:
        """Scores and ids of one query from best to worst, the larger id first among equals."""
        there = int((places >= 0).sum())
        pairs = [(score, self._ids[place]) for score, place in zip(scores.tolist(), places[:there], strict=False)]
        if (scores[1:there] == scores[: there - 1]).any():
            pairs.sort(reverse=True)
        return pairs[:count]

    def _nearest(self, rows: Array, top_k: int) -> tuple[Array, Any]:
        """Scores of which a higher one is nearer, and places, -1 where there is nothing."""
        if self._searcher is None:
            self._searcher = Searcher(self._faiss, self._index, self.device, self.fp16, self.gpus)
        index = self._index if top_k > MAX_GPU_TOP_K else self._searcher.index
        scores, places = index.search(rows, top_k)
        scores = -scores if self.metric == "l2" else scores
        return np.where(places >= 0, scores, np.float32(-np.inf)), places

    def run(
        self, queries: Sequence[str], vectors: Tensor | np.ndarray[Any, Any], top_k: int
    ) -> dict[str, dict[str, float]]:
        """What `search` finds, as a run that can be measured.

        Args:
            queries: A query id for each vector.
            vectors: Of the queries, [n, width].
            top_k: Documents of each query, at most.

        Returns:
            Query id, then document id from best to worst, then score.

        Raises:
            ValueError: As in `search`, or the numbers differ.
        """
        scores, ids = self.search(vectors, top_k)
        if len(ids) != len(queries):
            raise ValueError(
                f"queries: must be one id for each of the {len(ids)} vectors, but are {len(queries)}; name each"
            )
        rows = zip(queries, scores.tolist(), ids, strict=True)
        return {query: dict(zip(names, values[: len(names)], strict=True)) for query, values, names in rows}

    def save(self, folder: str | Path) -> None:
        """Write the index and its ids; a stop at any moment leaves the old state or the new one.

        Args:
            folder: Made when there is none. The texts are not written.

        Raises:
            ValueError: The folder cannot be made.
        """
        facts = {"factory": self.factory, "metric": self.metric, "parameters": self.parameters, "ids": self._ids}
        write_index(Path(folder).expanduser(), self._faiss, self._index, facts)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        fp16: bool = False,
        gpus: Sequence[int] | None = None,
    ) -> Self:
        """Read an index that `save` wrote.

        Args:
            folder: Where it is.
            device: What searches; see the class.
            fp16: Half precision on GPUs; see the class.
            gpus: Numbers of the GPUs; see the class.

        Returns:
            The index, with the factory, metric and parameters that it was saved with.

        Raises:
            ValueError: The folder is broken; one line says what is wrong.
        """
        facts, index = read_index(Path(folder).expanduser(), faiss_module())
        found = cls(facts["factory"], facts["metric"], device, fp16, gpus, facts["parameters"])
        found._index, found._ids, found._known = index, facts["ids"], set(facts["ids"])
        if index is not None:
            found._set_parameters(index)
        found._texts = None if found._ids else {}
        return found

    def _like_this(self) -> Self:
        """An empty one with the same settings."""
        return type(self)(self.factory, self.metric, self.device, self.fp16, self.gpus, self.parameters)

    def _take(self, other: Self) -> None:
        """The content of another one."""
        self._index, self._searcher, self._ids = other._index, None, other._ids
        self._known, self._texts = other._known, other._texts
