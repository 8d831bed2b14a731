"""A FAISS index of documents, with build, add, save, load, refresh and search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from rich.progress import track
from torch import Tensor

from saccade.common.checks import check_choice, check_count
from saccade.retrieval.faiss_bridge import MAX_GPU_TOP_K, Searcher, checked, faiss_module, refuse_without_gpus
from saccade.retrieval.index_folder import read_index, write_index
from saccade.retrieval.vectors import Array, Encode, as_float32, encode_all, unit_length

Metric = Literal["inner_product", "cosine", "l2"]
"""How near a document is to a query: by inner product, by cosine, or by squared distance."""

_QUERIES = 1024  # for each search


class VectorIndex:
    """Search for documents by their vectors.

    The index is kept in main memory. For search on GPUs it is copied to them, again after each change.

    Args:
        factory: FAISS's index factory string. "Flat" compares a query with every vector and is exact; others, such as
            "IVF256,Flat" or "HNSW32", are faster and miss some documents. An index that needs training is trained on
            the first vectors that are added.
        metric: "inner_product", "cosine" (vectors are scaled to length 1) or "l2".
        device: Where to search: "cpu"; "cuda", which fails if faiss cannot use a GPU; or "auto", which uses the GPUs if
            the installed faiss is built for them and CUDA has some, and otherwise the CPU, with a line in the log.
        fp16: Store the vectors on the GPUs in half precision: half the memory, but documents with nearly equal scores
            may change places. The index on the CPU stays in full precision.
        gpus: Numbers of the GPUs over which the documents are split. None uses all visible ones. Under DDP name one on
            each rank.
        parameters: FAISS's search parameters, such as "nprobe=16"; empty for FAISS's defaults.

    Raises:
        ValueError: faiss is not installed, a setting is invalid, or `device` is "cuda" and faiss cannot use a GPU.
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
        check_choice("metric", metric, get_args(Metric))
        check_choice("device", device, ("auto", "cpu", "cuda"))
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
        """Features of each vector; None while the index is empty."""
        return None if self._index is None else int(self._index.d)

    def build(self, encode: Encode, documents: Mapping[str, str], batch_size: int = 256, progress: bool = True) -> Self:
        """Fill the index with documents, replacing those that it has.

        Args:
            encode: The encoder; it runs without gradients. The caller sets its training or evaluation mode.
            documents: Text by document id. The texts are kept for `refresh`, but not saved.
            batch_size: Texts for each call of `encode`.
            progress: Show a progress bar.

        Returns:
            The index itself; it is unchanged if an error is raised.

        Raises:
            ValueError: Vectors are not [n, width] or not finite, there are too few of them to train on, or a setting is
                invalid.
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
        """Encode all documents again, for example after a change of the encoder; the index is trained again, too.

        Args:
            encode: The encoder.
            documents: Text by document id; None for the texts that the index was built from.
            batch_size: Texts for each call of `encode`.
            progress: Show a progress bar.

        Returns:
            The index itself; it is unchanged if an error is raised.

        Raises:
            ValueError: The index does not have the texts, or for the reasons of `build`.
        """
        texts = self._texts if documents is None else documents
        if texts is None:
            raise ValueError(
                "documents must be given to refresh an index that was loaded or filled with vectors, got None: pass the"
                f" {len(self)} texts."
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
            encode: The encoder.
            documents: Text by document id, none of which the index has already.
            batch_size: Texts for each call of `encode`.
            progress: Show a progress bar.
            words: Text before the bar.

        Raises:
            ValueError: For the reasons of `build`, or the index has an id already. Nothing is added then.
        """
        check_count("batch_size", batch_size, advice="give a whole number, for example 256")
        ids = list(documents)
        self._check_ids(ids)
        if not ids:
            return
        vectors = encode_all(encode, list(documents.values()), batch_size, words if progress else None)
        self._add(ids, vectors)
        if self._texts is not None:
            self._texts.update(documents)

    def add_vectors(self, ids: Sequence[str], vectors: Tensor | np.ndarray[Any, Any]) -> None:
        """Add documents by their vectors. `refresh` then needs the texts as an argument.

        Args:
            ids: A document id for each vector, none of which the index has already.
            vectors: Float of any precision, on any device, [n, width].

        Raises:
            ValueError: The vectors are not [n, width] or not finite, the number of ids differs from that of the
                vectors, or an id is not unique. Nothing is added then.
        """
        given = list(ids)
        self._check_ids(given)
        rows = as_float32(vectors, "vectors")
        if len(rows) != len(given):
            raise ValueError(
                f"ids must be one for each of the {len(rows)} vectors, got {len(given)}: add an id for each."
            )
        if given:
            self._add(given, rows)
            self._texts = None

    def _check_ids(self, ids: list[str]) -> None:
        seen: set[str] = set()
        for name in ids:
            if not isinstance(name, str):
                raise ValueError(f"ids must be strings, got {name!r}: use str(id).")
            if name in self._known or name in seen:
                raise ValueError(f"ids must be unique, got {name!r} twice: give each document an id of its own.")
            seen.add(name)

    def _add(self, ids: list[str], vectors: Array) -> None:
        """Add checked vectors under checked ids; nothing changes if faiss raises an error."""
        index = self._index
        if index is None:
            index = self._empty(vectors.shape[1])
        self._check_width(vectors)
        rows = self._measured(vectors)
        if not index.is_trained:
            checked(f"factory {self.factory!r}", lambda: index.train(rows), "add documents, or set factory to Flat")
        checked(f"factory {self.factory!r}", lambda: index.add(rows), "use another factory, such as Flat")
        self._index, self._searcher = index, None
        self._ids += ids
        self._known.update(ids)

    def _measured(self, vectors: Array) -> Array:
        """The vectors in the form that the metric needs: of length 1 for the cosine."""
        return unit_length(vectors) if self.metric == "cosine" else vectors

    def _check_width(self, vectors: Array) -> None:
        if self.width is not None and vectors.shape[1] != self.width:
            raise ValueError(
                f"vectors must be [n, {self.width}] like those in the index, got {list(vectors.shape)}: encode queries"
                " and documents with one model."
            )

    def _empty(self, width: int) -> Any:
        """Make an index with the factory."""
        faiss = self._faiss
        kind = faiss.METRIC_L2 if self.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        index = checked(
            f"factory {self.factory!r} with metric {self.metric!r} and width {width}",
            lambda: faiss.index_factory(width, self.factory, kind),
            "choose a factory string from the documentation of FAISS",
        )
        self._set_parameters(index)
        return index

    def _refuse_unknown_factory(self) -> None:
        """Check the factory string before any text is encoded."""
        try:
            self._faiss.index_factory(64, self.factory)
        except RuntimeError as error:
            # other errors may depend on the width, which is not known yet
            if "could not parse" in str(error):
                raise ValueError(
                    f"factory must be a factory string of FAISS, got {self.factory!r}: give one, for example Flat or"
                    " 'IVF256,Flat'."
                ) from None

    def _set_parameters(self, index: Any) -> None:
        if self.parameters:
            checked(
                f"parameters {self.parameters!r}",
                lambda: self._faiss.ParameterSpace().set_index_parameters(index, self.parameters),
                "use the names of FAISS, for example nprobe=16",
            )

    def search(
        self, vectors: Tensor | np.ndarray[Any, Any], top_k: int, progress: bool = False
    ) -> tuple[Array, list[list[str]]]:
        """Find the nearest documents of each query.

        Args:
            vectors: Vectors of the queries: float of any precision, on any device, [n, width].
            top_k: Documents for each query. There are fewer if the index has fewer, or if an index that is not exact
                finds fewer.
            progress: Show a progress bar.

        Returns:
            Scores and document ids, both from best to worst. Scores are float32 [n, min(top_k, documents)]: inner
            products, cosines, or for "l2" the negated squared distances, so that a higher score is always nearer. If a
            row has fewer ids, its remaining scores are -inf. Documents with equal scores are ordered by id, the larger
            one first; in an exact index this also decides which of them are among the `top_k`.

        Raises:
            ValueError: The vectors are not [n, width] or not finite, or `top_k` is below 1.
        """
        check_count("top_k", top_k, advice="give a whole number, for example 100 before re-ranking")
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
        # an exact index is asked for one document more, then for twice as many while the last score is tied
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
        """Scores and ids of one query from best to worst; of equal scores the larger id first."""
        there = int((places >= 0).sum())
        pairs = [(score, self._ids[place]) for score, place in zip(scores.tolist(), places[:there], strict=False)]
        if (scores[1:there] == scores[: there - 1]).any():
            pairs.sort(reverse=True)
        return pairs[:count]

    def _nearest(self, rows: Array, top_k: int) -> tuple[Array, Any]:
        """Scores, of which a higher one is nearer, and positions in `_ids`, -1 where nothing was found."""
        if self._searcher is None:
            self._searcher = Searcher(self._faiss, self._index, self.device, self.fp16, self.gpus)
        index = self._index if top_k > MAX_GPU_TOP_K else self._searcher.index
        scores, places = index.search(rows, top_k)
        scores = -scores if self.metric == "l2" else scores
        return np.where(places >= 0, scores, np.float32(-np.inf)), places

    def run(
        self, queries: Sequence[str], vectors: Tensor | np.ndarray[Any, Any], top_k: int
    ) -> dict[str, dict[str, float]]:
        """Search, and return the result in the form that `saccade.retrieval.measures.measure` takes.

        Args:
            queries: A query id for each vector.
            vectors: Vectors of the queries, [n, width].
            top_k: Most documents for each query.

        Returns:
            By query id, then by document id from best to worst, the score.

        Raises:
            ValueError: For the reasons of `search`, or the number of ids differs from that of the vectors.
        """
        scores, ids = self.search(vectors, top_k)
        if len(ids) != len(queries):
            raise ValueError(
                f"queries must be one id for each of the {len(ids)} vectors, got {len(queries)}: give one for each."
            )
        rows = zip(queries, scores.tolist(), ids, strict=True)
        return {query: dict(zip(names, values[: len(names)], strict=True)) for query, values, names in rows}

    def save(self, folder: str | Path) -> None:
        """Write the index and its ids. An interruption at any time leaves the old index or the new one.

        Args:
            folder: Made if it does not exist. The texts are not written.

        Raises:
            ValueError: The folder cannot be written.
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
            folder: The folder.
            device: Where to search; see the class.
            fp16: Half precision on GPUs; see the class.
            gpus: Numbers of the GPUs; see the class.

        Returns:
            The index, with the factory, metric and parameters with which it was saved.

        Raises:
            ValueError: A file is missing, was changed, or cannot be read.
        """
        facts, index = read_index(Path(folder).expanduser(), faiss_module())
        found = cls(facts["factory"], facts["metric"], device, fp16, gpus, facts["parameters"])
        found._index, found._ids, found._known = index, facts["ids"], set(facts["ids"])
        if index is not None:
            found._set_parameters(index)
        found._texts = None if found._ids else {}
        return found

    def _like_this(self) -> Self:
        """An empty index with the same settings."""
        return type(self)(self.factory, self.metric, self.device, self.fp16, self.gpus, self.parameters)

    def _take(self, other: Self) -> None:
        """Take over the content of another index."""
        self._index, self._searcher, self._ids = other._index, None, other._ids
        self._known, self._texts = other._known, other._texts
