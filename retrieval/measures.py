"""Measures of a retrieval run, with ties, missing queries and slices of queries treated in the open.

The measures are those of trec_eval, through pytrec_eval; the treatment of ties and of missing queries is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

Run = Mapping[str, Mapping[str, float]]
"""What a retriever found: query id, then document id, then score; a higher score is better."""

Qrels = Mapping[str, Mapping[str, int]]
"""Judgements: query id, then document id, then grade; a document counts as relevant from grade 1."""

METRICS = ("ndcg_cut_10", "recall_100", "recip_rank", "map")
"""What is measured unless something else is asked for."""

_DRAWS = 500  # bootstrap samples that are drawn at once: all of them would be gigabytes with many queries


@dataclass(frozen=True)
class Measured:
    """Measures of a run.

    Args:
        mean: By measure, the mean over the queries, a fraction; 0 without queries.
        per_query: By measure, then by query id, in the order of the ids.
    """

    mean: dict[str, float]
    per_query: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Interval:
    """A mean difference and where it lies with the given confidence.

    Args:
        difference: Mean over the queries of first minus second.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    difference: float
    low: float
    high: float


def ranked(scores: Mapping[str, float]) -> list[str]:
    """Document ids from best to worst; of equal scores the larger id comes first, as in trec_eval.

    Args:
        scores: Score by document id.

    Returns:
        The ids.
    """
    return sorted(scores, key=lambda document: (scores[document], document), reverse=True)


def measure(run: Run, qrels: Qrels, metrics: Sequence[str] = METRICS, queries: Iterable[str] | None = None) -> Measured:
    """Measure a run against judgements, query by query.

    A query that the run lacks counts 0, as does one without a relevant document. Documents of equal score are ranked by
    their id, the larger one first, before anything is measured. Queries that are not measured have no part in a mean:
    a run over a slice of the queries is not divided by the number of all judged ones.

    Args:
        run: Scores by query and document; queries without judgements are left out.
        qrels: Grades by query and document.
        metrics: Names as in trec_eval, each with its cut: `ndcg_cut_10`, `recall_100`, `recip_rank`, `map`, `P_10`.
        queries: Ids of the queries to measure, all judged; None measures every query of `qrels`.

    Returns:
        Means and values of each query, at full precision.

    Raises:
        ValueError: A measure does not exist, a query has no judgements, a score is not a number, or a grade is not a
            whole number; or pytrec_eval is missing.
    """
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    evaluate = check_metrics(metrics)
    wanted = sorted(qrels) if queries is None else sorted(set(queries))
    unknown = [query for query in wanted if query not in qrels]
    if unknown:
        raise ValueError(
            f"queries: every one must have judgements in the qrels, but {len(unknown)} of {len(wanted)} have none, the"
            f" first is {unknown[0]!r}; leave it out or add its line"
        )
    judged, places = {}, {}
    for query in wanted:
        judged[query] = {document: _grade(query, document, grade) for document, grade in qrels[query].items()}
        places[query] = _places(query, run.get(query, {}))
    # pytrec_eval leaves out queries whose judgements are empty, and refuses to have none at all
    found: dict[str, dict[str, float]] = evaluate(judged, places) if wanted else {}
    values = {name: {query: float(found.get(query, {}).get(name, 0.0)) for query in wanted} for name in metrics}
    # fsum: the mean does not depend on the order in which the queries came
    mean = {name: math.fsum(item.values()) / len(item) if item else 0.0 for name, item in values.items()}
    return Measured(mean, values)


def check_metrics(metrics: Sequence[str]) -> Any:
    """Refuse measures that trec_eval does not have.

    Args:
        metrics: Their names.

    Returns:
        A function of judgements and run that gives these measures by query.

    Raises:
        ValueError: One of them does not exist, or pytrec_eval is missing.
    """
    try:
        import pytrec_eval
    except ImportError:
        raise ValueError(
            "measure: pytrec_eval must be installed to measure retrieval, but is not; pip install 'saccade[retrieval]'"
        ) from None
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    if not names:
        raise ValueError("metrics: must name at least one measure, but is empty; for example ndcg_cut_10")
    for name in names:
        try:
            probe = pytrec_eval.RelevanceEvaluator({"q": {"d": 1}}, {name}).evaluate({"q": {"d": 1.0}})["q"]
        except (ValueError, TypeError, AttributeError):
            probe = {}
        if name not in probe:
            raise ValueError(
                f"metrics: must be measures of trec_eval with their cut, such as {', '.join(METRICS)}, but one is"
                f" {name!r}; correct the name"
            )

    def evaluate(judged: Qrels, run: Run) -> Any:
        return pytrec_eval.RelevanceEvaluator(judged, set(names)).evaluate(run)

    return evaluate


def _grade(query: str, document: str, grade: Any) -> int:
    """The grade as int."""
    if not isinstance(grade, Real) or not float(grade).is_integer():
        raise ValueError(
            f"qrels: grades must be whole numbers, but document {document!r} of query {query!r} has {grade!r}; mend it"
        )
    return int(float(grade))


def _places(query: str, scores: Mapping[str, float]) -> dict[str, float]:
    """By document, a score that says the rank: trec_eval keeps scores in float32, which makes further ties."""
    for document, score in scores.items():
        if math.isnan(score):
            raise ValueError(
                f"run: scores must be numbers, but document {document!r} of query {query!r} has NaN; look at the"
                f" model's weights"
            )
    return {document: -float(place) for place, document in enumerate(ranked(scores))}


def paired_bootstrap(
    a: Mapping[str, float], b: Mapping[str, float], seed: int = 0, samples: int = 10_000, confidence: float = 0.95
) -> Interval:
    """Interval of the mean difference of two systems over the same queries, by drawing queries with replacement.

    This is the percentile bootstrap: what is drawn is the query with both its values.

    Args:
        a: Values of the first system by query id, such as `Measured.per_query["ndcg_cut_10"]`.
        b: Values of the second system, of the same queries.
        seed: Of the draws. The order of the queries makes no difference.
        samples: Number of draws.
        confidence: Share of the drawn means that lie in the interval.

    Returns:
        The mean of `a - b` and its interval.

    Raises:
        ValueError: The queries differ, there are none, or a setting is out of range.
    """
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise ValueError(
            f"paired_bootstrap: both systems must have the same queries, but {len(odd)} are in one only, the first is"
            f" {odd[0]!r}; measure both over the same queries"
        )
    if not a:
        raise ValueError("paired_bootstrap: there must be at least one query, but there is none; measure some")
    if samples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"paired_bootstrap: samples must be at least 1 and confidence between 0 and 1, but are {samples} and"
            f" {confidence:g}; the usual values are 10000 and 0.95"
        )
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
