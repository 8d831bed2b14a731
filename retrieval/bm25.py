"""BM25: the first stage, over words, without weights."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.progress import track

from saccade.retrieval.measures import ranked


class BM25:
    """BM25 over documents in memory, by `bm25s` with its defaults (Lucene's variant, k1 1.5, b 0.75).

    Words are runs of two or more letters or digits, in lower case, without English stop words and without stemming.

    Args:
        documents: Text by document id; a title belongs in front of the text.
        drop_same_id: Leave out of a query's results the document whose id is the query's, and no other. For
            collections whose queries are documents themselves (ArguAna); where both are merely numbered, as in the
            classic collections, it would remove a stranger.
        progress: Show a bar while the documents are read.

    Raises:
        ValueError: bm25s is missing.
    """

    def __init__(self, documents: Mapping[str, str], drop_same_id: bool = False, progress: bool = False) -> None:
        self._bm25s = _bm25s()
        self.drop_same_id = drop_same_id
        # in the order of ids: which document comes first in the files makes no difference
        self.ids = sorted(documents)
        words = self._words([documents[name] for name in self.ids], progress)
        self._index: Any = None
        if any(words):  # bm25s cannot index nothing
            self._index = self._bm25s.BM25()
            self._index.index(words, show_progress=progress)

    def __len__(self) -> int:
        return len(self.ids)

    def search(self, queries: Mapping[str, str], top_k: int, progress: bool = False) -> dict[str, dict[str, float]]:
        """The best documents of each query.

        Args:
            queries: Text by query id.
            top_k: Documents of each query, at most. Documents that share no word with the query are no results, so
                there may be fewer.
            progress: Show a bar.

        Returns:
            A run: every query id, then document ids from best to worst with their scores. Of equal scores the larger id
            comes first, also at the cut.

        Raises:
            ValueError: `top_k` is below 1.
        """
        if top_k < 1:
            raise ValueError(f"top_k: must be at least 1, but is {top_k}; 100 is usual before re-ranking")
        run = {}
        words = self._words(list(queries.values()), False)
        pairs = zip(queries, words, strict=True)
        for query, asked in track(pairs, "BM25", len(words), transient=True, disable=not progress):
            run[query] = self._best(query, asked, top_k)
        return run

    def _words(self, texts: list[str], progress: bool) -> list[list[str]]:
        """The words of each text that count."""
        if not texts:
            return []
        found: list[list[str]] = self._bm25s.tokenize(
            texts, stopwords="en", return_ids=False, show_progress=progress, leave=False
        )
        return found

    def _best(self, query: str, words: list[str], top_k: int) -> dict[str, float]:
        """The best documents of one query."""
        if self._index is None or not words:
            return {}
        scores = self._index.get_scores(words)
        hits = np.flatnonzero(scores > 0)
        if self.drop_same_id:
            hits = hits[[self.ids[place] != query for place in hits]]
        if len(hits) > top_k:
            # everything as good as the last one that fits stays, so that ids decide among equals
            least = np.partition(scores[hits], len(hits) - top_k)[len(hits) - top_k]
            hits = hits[scores[hits] >= least]
        found = {self.ids[place]: float(scores[place]) for place in hits}
        return {document: found[document] for document in ranked(found)[:top_k]}


def _bm25s() -> Any:
    """The optional package, which must not find JAX.

    Where JAX is installed, the mere import of bm25s runs an operation of it, and JAX then takes most of the memory of
    the first GPU, on every rank. What needs it, the choice of the best documents, is done here anyway.
    """
    if sys.modules.get("bm25s") is not None:
        return sys.modules["bm25s"]
    before = sys.modules.get("jax")
    sys.modules["jax"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        import bm25s
    except ImportError:
        raise ValueError(
            "BM25: bm25s must be installed for the first stage, but is not; pip install 'saccade[retrieval]'"
        ) from None
    finally:
        del sys.modules["jax"]
        if before is not None:
            sys.modules["jax"] = before
    return bm25s
