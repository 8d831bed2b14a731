"""Evaluation of retrieval, with defined results for ties, missing queries and subsets of the queries.

The measures are those of trec_eval, computed by pytrec_eval; the treatment of ties and of missing queries is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from saccade.common.checks import check_count, check_fraction

RetrievalRun = Mapping[str, Mapping[str, float]]
"""The result of a retriever: by query id, then by document id, the score; a higher score is better."""

Qrels = Mapping[str, Mapping[str, int]]
"""Judgements: by query id, then by document id, the grade; a document is relevant from grade 1 on."""

METRICS = ("ndcg_cut_10", "recall_100", "recip_rank", "map")
"""The default measures."""

_DRAWS = 500  # bootstrap samples drawn at once, to limit the memory for many queries


@dataclass(frozen=True)
class Measured:
    """Measures of a retrieval run.

    Args:
        mean: By measure, the mean over the queries, a fraction; 0 if there are no queries.
        per_query: By measure, then by query id (sorted), the value.
    """

    mean: dict[str, float]
    per_query: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Interval:
    """A mean difference with its confidence interval.

    Args:
        difference: Mean over the queries of the first minus the second system.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    difference: float
    low: float
    high: float


def ranked(scores: Mapping[str, float]) -> list[str]:
    """Sort document ids from best to worst; of equal scores the larger id comes first, as in trec_eval.

    Args:
        scores: Score by document id.

    Returns:
        The sorted ids.
    """
    return sorted(scores, key=lambda document: (scores[document], document), reverse=True)


def measure(
    run: RetrievalRun, qrels: Qrels, metrics: Sequence[str] = METRICS, queries: Iterable[str] | None = None
) -> Measured:
    """Evaluate a retrieval run against judgements, query by query.

    A query counts as 0 if the run lacks it or if it has no relevant document. Documents with equal scores are ranked by
    id, the larger one first. Means are over the measured queries only: for a run over a subset, give `queries`.

    Args:
        run: Scores by query and document; queries without judgements are ignored.
        qrels: Grades by query and document.
        metrics: Names as in trec_eval, with the cutoff where there is one: `ndcg_cut_10`, `recall_100`, `recip_rank`,
            `map`, `P_10`.
        queries: Ids of the queries to measure, all of them judged; None measures every query of `qrels`.

    Returns:
        Means and the values of each query, at full precision.

    Raises:
        ValueError: A measure does not exist, a query has no judgements, a score is NaN, or a grade is not a whole
            number; or pytrec_eval is not installed.
    """
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    evaluate = _evaluator(metrics)
    wanted = sorted(qrels) if queries is None else sorted(set(queries))
    unknown = [query for query in wanted if query not in qrels]
    if unknown:
        raise ValueError(
            f"queries must have judgements in the qrels, got {len(unknown)} of {len(wanted)} without, first"
            f" {unknown[0]!r}: leave them out, or add their judgements."
        )
    judged, places = {}, {}
    for query in wanted:
        judged[query] = {document: _grade(query, document, grade) for document, grade in qrels[query].items()}
        places[query] = _places(query, run.get(query, {}))
    # pytrec_eval leaves out queries whose judgements are empty, and refuses an empty set of queries
    found: dict[str, dict[str, float]] = evaluate(judged, places) if wanted else {}
    values = {name: {query: float(found.get(query, {}).get(name, 0.0)) for query in wanted} for name in metrics}
    # fsum, so that the mean does not depend on the order of the queries
    mean = {name: math.fsum(item.values()) / len(item) if item else 0.0 for name, item in values.items()}
    return Measured(mean, values)


def _evaluator(metrics: Sequence[str]) -> Any:
    """A function of judgements and run that gives the measures by query; refuses measures that do not exist."""
    try:
        import pytrec_eval
    except ImportError:
        raise ValueError(
            "measure needs the package pytrec_eval, which is not installed: pip install 'saccade[retrieval]'."
        ) from None
    if not metrics:
        raise ValueError("metrics must name at least one measure, got none: give one, for example ndcg_cut_10.")
    for name in metrics:
        try:
            probe = pytrec_eval.RelevanceEvaluator({"q": {"d": 1}}, {name}).evaluate({"q": {"d": 1.0}})["q"]
        except (ValueError, TypeError, AttributeError):
            probe = {}
        if name not in probe:
            raise ValueError(
                f"metrics must be measures of trec_eval, got {name!r}: give a name with its cutoff, for example"
                f" {', '.join(METRICS)}."
            )

    def evaluate(judged: Qrels, run: RetrievalRun) -> Any:
        return pytrec_eval.RelevanceEvaluator(judged, set(metrics)).evaluate(run)

    return evaluate


def _grade(query: str, document: str, grade: Any) -> int:
    """The grade as a whole number."""
    if not isinstance(grade, Real) or not float(grade).is_integer():
        raise ValueError(
            f"qrels must have whole numbers as grades, got {grade!r} for document {document!r} of query {query!r}:"
            " correct the grade."
        )
    return int(float(grade))


def _places(query: str, scores: Mapping[str, float]) -> dict[str, float]:
    """By document, the negated rank as score: trec_eval rounds scores to float32, which would create ties."""
    for document, score in scores.items():
        if math.isnan(score):
            raise ValueError(
                f"run must have numbers as scores, got NaN for document {document!r} of query {query!r}: check the"
                " model's weights."
            )
    return {document: -float(place) for place, document in enumerate(ranked(scores))}


def paired_bootstrap(
    a: Mapping[str, float], b: Mapping[str, float], seed: int = 0, samples: int = 10_000, confidence: float = 0.95
) -> Interval:
    """Confidence interval of the mean difference of two systems, by the paired percentile bootstrap.

    Queries are drawn with replacement, each with its values of both systems.

    Args:
        a: Values of the first system by query id, such as `Measured.per_query["ndcg_cut_10"]`.
        b: Values of the second system for the same queries.
        seed: Seed of the draws. The order of the queries does not matter.
        samples: Number of draws.
        confidence: Share of the drawn means inside the interval, above 0 and below 1.

    Returns:
        The mean of `a - b` with its interval.

    Raises:
        ValueError: The queries of the systems differ, there are none, or a setting is out of range.
    """
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise ValueError(
            f"paired_bootstrap needs the same queries for both systems, got {len(odd)} that only one has, first"
            f" {odd[0]!r}: measure both over the same queries."
        )
    if not a:
        raise ValueError("paired_bootstrap needs at least one query, got none: measure some queries.")
    check_count("samples", samples, advice="give a whole number, for example 10000")
    check_fraction("confidence", confidence)
    differences = np.array([float(a[query]) - float(b[query]) for query in sorted(a)])
    draw = np.random.default_rng(seed)
    means = np.concatenate(
        [
            differences[draw.integers(0, len(differences), (min(_DRAWS, samples - start), len(differences)))].mean(1)
            for start in range(0, samples, _DRAWS)
        ]
    )
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(differences.mean()), float(low), float(high))
