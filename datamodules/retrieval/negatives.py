"""Hard negatives: documents that BM25 ranks high for a query and that do not answer it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.progress import track

from saccade.datamodules.retrieval.files import Pair
from saccade.retrieval.bm25 import BM25, report_empty

_FEW = 0.1  # share of the queries
_DEPTH = 50  # best documents of BM25, from which negatives are drawn


def hard_negatives(
    pairs: Sequence[Pair], documents: Sequence[str], count: int, seed: int = 0, progress: bool = False
) -> dict[str, list[str]]:
    """Draw, for each query with a positive pair, documents from the best 50 of BM25 that do not answer it.

    Queries for which BM25 finds no document get none; a line says how many, if they are more than a tenth.

    Args:
        pairs: Pairs of one source; the positive pairs are the answers of the queries.
        documents: Documents of the same source.
        count: Documents for each query; fewer if BM25 finds fewer.
        seed: Seed of the draws. The negatives of a query do not depend on the other queries.
        progress: Show a progress bar.

    Returns:
        Documents by query text.
    """
    answers: dict[str, set[str]] = {}
    for pair in pairs:
        if pair.label > 0:
            answers.setdefault(pair.query, set()).add(pair.document)
    named = {f"{place:08d}": text for place, text in enumerate(dict.fromkeys(documents))}
    engine = BM25(named)
    found: dict[str, list[str]] = {}
    empty = []
    for query in track(answers, "Mining negatives", transient=True, disable=not progress):
        ranked = engine.search({query: query}, _DEPTH, report=False)[query]
        empty += [] if ranked else [repr(query[:60])]
        wrong = [named[name] for name in ranked if named[name] not in answers[query]]
        draw = np.random.default_rng([seed, len(query), *query.encode()[:64]])
        kept = sorted(draw.permutation(len(wrong))[:count].tolist())
        found[query] = [wrong[place] for place in kept]
    if len(empty) > _FEW * len(answers):  # some in most collections, many where words are not recognised
        report_empty(empty, len(answers), "They get no hard negatives.")
    return found
