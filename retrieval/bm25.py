"""BM25: first-stage retrieval by words, without a model."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch.distributed
from rich.progress import track

from saccade.common.checks import check_count
from saccade.retrieval.measures import ranked
from saccade.retrieval.words import WORD, spaced


class BM25:
    """BM25 over documents in memory, by `bm25s` with its defaults (Lucene's variant, k1 1.5, b 0.75).

    Words are runs of two or more letters or digits, in lower case, without English stop words and without stemming.
    Chinese, Japanese, Korean and other scripts without blanks between words give pairs of characters (see `spaced`).

    Args:
        documents: Text by document id, with the title, if any, in front.
        drop_same_id: Leave the document out of a query's results that has the same id as the query. For collections
            whose queries are documents themselves (ArguAna). Do not use it where queries and documents are numbered
            independently, as in the classic collections: it would remove an unrelated document.
        progress: Show a progress bar during indexing.

    Raises:
        ValueError: bm25s is not installed.
    """

    def __init__(self, documents: Mapping[str, str], drop_same_id: bool = False, progress: bool = False) -> None:
        self._bm25s = _bm25s()
        self.drop_same_id = drop_same_id
        # sorted, so that results do not depend on the order of the documents
        self.ids = sorted(documents)
        words = self._words([documents[name] for name in self.ids], progress)
        self._index: Any = None
        if any(words):  # bm25s cannot index an empty collection
            self._index = self._bm25s.BM25()
            self._index.index(words, show_progress=progress)

    def __len__(self) -> int:
        return len(self.ids)

    def search(
        self, queries: Mapping[str, str], top_k: int, progress: bool = False, report: bool = True
    ) -> dict[str, dict[str, float]]:
        """Find the best documents of each query.

        Args:
            queries: Text by query id.
            top_k: Most documents for each query. There may be fewer, because documents that share no word with the
                query are left out.
            progress: Show a progress bar.
            report: Warn in one line if no document is found for some queries.

        Returns:
            For every query id, scores by document id, from best to worst. Documents with equal scores are ordered by
            id, the larger one first; this also decides which of them are among the `top_k`.

        Raises:
            ValueError: `top_k` is below 1.
        """
        check_count("top_k", top_k, advice="give a whole number, for example 100 before re-ranking")
        run = {}
        words = self._words(list(queries.values()), False)
        pairs = zip(queries, words, strict=True)
        for query, asked in track(pairs, "BM25", len(words), transient=True, disable=not progress):
            run[query] = self._best(query, asked, top_k)
        if report:
            report_empty(
                [f"{query!r} ({queries[query][:60]!r})" for query, found in run.items() if not found], len(run)
            )
        return run

    def _words(self, texts: list[str], progress: bool) -> list[list[str]]:
        """The words of each text, without stop words."""
        if not texts:
            return []
        found: list[list[str]] = self._bm25s.tokenize(
            [spaced(text) for text in texts], token_pattern=WORD.pattern, stopwords="en", return_ids=False,
            show_progress=progress, leave=False,
        )  # fmt: skip
        return found

    def _best(self, query: str, words: list[str], top_k: int) -> dict[str, float]:
        """The best documents of one query, with their scores."""
        if self._index is None or not words:
            return {}
        scores = self._index.get_scores(words)
        hits = np.flatnonzero(scores > 0)
        if self.drop_same_id:
            hits = hits[[self.ids[place] != query for place in hits]]
        if len(hits) > top_k:
            # keep all documents that are as good as the last one, so that ids decide between them
            least = np.partition(scores[hits], len(hits) - top_k)[len(hits) - top_k]
            hits = hits[scores[hits] >= least]
        found = {self.ids[place]: float(scores[place]) for place in hits}
        return {document: found[document] for document in ranked(found)[:top_k]}


def report_empty(queries: Sequence[str], total: int, effect: str = "") -> None:
    """Warn in one line, on the first rank, that BM25 finds no document for some queries; if there are any.

    Args:
        queries: Names of the queries without a document.
        total: Number of all queries.
        effect: What follows from it, for the end of the line.
    """
    # without Lightning, whose import takes seconds
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if queries and not (several and torch.distributed.get_rank()):
        warnings.warn(
            f"saccade: BM25 finds no document for {len(queries)} of {total} queries, for example {queries[0]}: the"
            f" documents have none of their words, without English stop words.{effect and ' '}{effect}",
            stacklevel=3,
        )


def _bm25s() -> Any:
    """Import the optional package bm25s, with JAX hidden from it.

    If JAX is installed, importing bm25s runs a JAX operation, and JAX then allocates most of the memory of the first
    GPU, on every rank. bm25s needs JAX only for the selection of the best documents, which this module does itself.
    """
    if sys.modules.get("bm25s") is not None:
        return sys.modules["bm25s"]
    before = sys.modules.get("jax")
    sys.modules["jax"] = None  # type: ignore[assignment]  # makes `import jax` fail
    try:
        import bm25s
    except ImportError:
        raise ValueError(
            "BM25 needs the package bm25s, which is not installed: pip install 'saccade[retrieval]'."
        ) from None
    finally:
        del sys.modules["jax"]
        if before is not None:
            sys.modules["jax"] = before
    return bm25s
