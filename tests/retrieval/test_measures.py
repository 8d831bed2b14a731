"""Measures: the known vectors, ties, missing queries, slices, and intervals."""

import math
import random
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.retrieval.measures import METRICS, measure, paired_bootstrap, ranked

QRELS = {"q": {"a": 2, "b": 0, "c": 1}}
BEST = {"a": 3.0, "b": 2.0, "c": 1.0}


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"a": 1.0, "b": 1.0, "c": 1.0}, 0.7601875334318685),
        ({"c": 1.0, "b": 1.0, "a": 1.0}, 0.7601875334318685),
        (BEST, 0.9502344167898356),
        ({"a": 3, "b": 2, "c": 1}, 0.9502344167898356),
        ({}, 0.0),
        ({"z": 9.0}, 0.0),
    ],
)
def test_known_vectors(scores, expected):
    found = measure({"q": scores}, QRELS)
    assert found.mean["ndcg_cut_10"] == pytest.approx(expected, abs=1e-12)
    assert found.per_query["ndcg_cut_10"] == {"q": found.mean["ndcg_cut_10"]}
    assert set(found.mean) == set(found.per_query) == set(METRICS)


def test_a_query_that_the_run_lacks_counts_zero():
    qrels = {**QRELS, "r": {"a": 1}}
    found = measure({"q": BEST}, qrels)
    assert found.mean["ndcg_cut_10"] == pytest.approx(0.4751, abs=5e-5)
    assert found.per_query["ndcg_cut_10"] == {"q": pytest.approx(0.9502, abs=5e-5), "r": 0.0}
    assert measure({}, qrels).mean == dict.fromkeys(METRICS, 0.0)


def test_only_the_given_queries_count():
    """With the slice in the run and all judgements beside it, the mean must not be divided by all of them."""
    qrels = {**QRELS, **{f"r{index}": {"a": 1} for index in range(9)}}
    assert measure({"q": BEST}, qrels, queries=["q"]).mean["ndcg_cut_10"] == pytest.approx(0.9502344167898356)
    assert measure({"q": BEST}, qrels, queries=["q", "q"]).per_query["map"].keys() == {"q"}
    assert measure({"q": BEST, "unjudged": BEST}, QRELS).per_query["map"].keys() == {"q"}
    assert measure({"q": BEST}, qrels, queries=[]).mean["map"] == 0
    with pytest.raises(ValueError, match=r"^queries must [^\n]+ got 1 of 2 without, first 'no': [^\n]+\.$"):
        measure({"q": BEST}, qrels, queries=["q", "no"])


@pytest.mark.parametrize("judged", [{}, {"a": 0}])
def test_a_query_without_a_relevant_document_counts_zero(judged):
    found = measure({"q": BEST, "r": BEST}, {**QRELS, "r": judged})
    assert found.per_query["map"]["r"] == 0
    assert found.mean["map"] == found.per_query["map"]["q"] / 2


def test_differences_below_float32_are_no_ties():
    close = {"a": 1.0 + 1e-12, "b": 1.0}
    assert measure({"q": close}, {"q": {"a": 1}}).mean["recip_rank"] == 1
    assert measure({"q": {"a": 1.0, "b": 1.0}}, {"q": {"a": 1}}).mean["recip_rank"] == 0.5
    extremes = {"a": math.inf, "b": -1e300, "c": -math.inf, "d": 1e300}
    assert ranked(extremes) == ["a", "d", "b", "c"]
    assert measure({"q": extremes}, {"q": {"c": 1}}).mean["recip_rank"] == 0.25


def own_ndcg(scores, grades):
    """The formula, written down again."""
    order = sorted(scores, key=lambda name: (-scores[name], [-ord(sign) for sign in name]))
    gain = sum(max(grades.get(name, 0), 0) / math.log2(place + 2) for place, name in enumerate(order[:10]))
    best = sorted((grade for grade in grades.values() if grade > 0), reverse=True)[:10]
    return gain / sum(grade / math.log2(place + 2) for place, grade in enumerate(best)) if best else 0.0


NAMES = st.sampled_from([f"d{index:02}" for index in range(20)])


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(NAMES, st.integers(0, 3).map(float), max_size=20),
    st.dictionaries(NAMES, st.integers(0, 3)),
    st.randoms(),
)
def test_any_run_against_the_formula_in_any_order(scores, grades, order):
    found = measure({"q": scores}, {"q": grades})
    assert found.mean["ndcg_cut_10"] == pytest.approx(own_ndcg(scores, grades), abs=1e-9)
    names = list(scores)
    order.shuffle(names)
    assert measure({"q": {name: scores[name] for name in names}}, {"q": grades}) == found


def test_other_measures_and_cuts():
    found = measure({"q": BEST}, QRELS, ("ndcg_cut_1", "ndcg_cut_3", "P_2", "recall_1"))
    assert found.mean == {"ndcg_cut_1": 1.0, "ndcg_cut_3": pytest.approx(0.9502344), "P_2": 0.5, "recall_1": 0.5}
    assert measure({"q": BEST}, QRELS, "map").mean == {"map": pytest.approx(5 / 6)}


@pytest.mark.parametrize("name", ["ndcg@10", "ndcg_cut", "accuracy", "ndcg_cut_x", "recall"])
def test_unknown_measures(name):
    with pytest.raises(ValueError, match=rf"^metrics must be [^\n]+ got '{name}': [^\n]+\.$"):
        measure({"q": BEST}, QRELS, ("map", name))


def test_no_measure_and_no_package(monkeypatch):
    with pytest.raises(ValueError, match=r"^metrics must name at least one [^\n]+\.$"):
        measure({"q": BEST}, QRELS, ())
    monkeypatch.setitem(sys.modules, "pytrec_eval", None)
    with pytest.raises(ValueError, match=r"^measure [^\n]+pip install 'saccade\[retrieval\]'\.$"):
        measure({"q": BEST}, QRELS)


@pytest.mark.parametrize("grade", [0.5, "1", None, math.nan])
def test_grades_must_be_whole(grade):
    with pytest.raises(
        ValueError,
        match=r"^qrels must have whole numbers as grades, got .+ for document 'a' of query 'q': .+\.$",
    ):
        measure({"q": BEST}, {"q": {"a": grade}})


def test_scores_must_be_numbers():
    with pytest.raises(
        ValueError, match=r"^run must have numbers as scores, got NaN for document 'b' of query 'q': .+\.$"
    ):
        measure({"q": {"a": 1.0, "b": math.nan}}, QRELS)


def test_interval_is_paired_and_repeatable():
    draw = random.Random(0)
    hard = {f"q{index}": draw.random() for index in range(60)}
    better = {query: value + 0.02 + 0.01 * draw.random() for query, value in hard.items()}
    found = paired_bootstrap(better, hard, 1)
    # far narrower than the spread of the queries, about 0.3
    assert 0.02 < found.low < found.difference < found.high < 0.03
    assert found == paired_bootstrap(dict(reversed(better.items())), hard, 1)
    assert found != paired_bootstrap(better, hard, 2)
    other = paired_bootstrap(hard, better, 1)
    assert (other.difference, other.low, other.high) == pytest.approx((-found.difference, -found.high, -found.low))
    assert paired_bootstrap(hard, hard) == paired_bootstrap({"q": 1.0}, {"q": 1.0})


def test_interval_covers_as_often_as_it_says():
    """Mean difference 0, 200 experiments of 80 queries: 95 % of the intervals hold it, give or take three errors."""
    draw = random.Random(3)
    covered = 0
    for seed in range(200):
        a = {str(index): draw.gauss(0, 1) for index in range(80)}
        found = paired_bootstrap(a, dict.fromkeys(a, 0.0), seed, samples=600)
        covered += found.low <= 0 <= found.high
    assert 0.90 <= covered / 200 <= 0.99


def test_one_query_has_an_interval_of_its_value():
    found = paired_bootstrap({"q": 0.5}, {"q": 0.25})
    assert (found.difference, found.low, found.high) == (0.25, 0.25, 0.25)


def test_wider_with_more_confidence():
    a = {str(index): float(index % 7) for index in range(40)}
    b = dict.fromkeys(a, 3.0)
    narrow, wide = (paired_bootstrap(a, b, 0, 2000, confidence) for confidence in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.difference < narrow.high < wide.high


@pytest.mark.parametrize(
    ("a", "b", "settings_", "word"),
    [
        ({"q": 1.0}, {"r": 1.0}, {}, "paired_bootstrap needs [^\n]+ got 2 that only one has, first 'q'"),
        ({}, {}, {}, "paired_bootstrap needs at least one query, got none"),
        ({"q": 1.0}, {"q": 1.0}, {"samples": 0}, "samples must be at least 1, got 0"),
        ({"q": 1.0}, {"q": 1.0}, {"confidence": 1.0}, "confidence must be above 0 and below 1, got 1.0"),
    ],
)
def test_impossible_intervals(a, b, settings_, word):
    with pytest.raises(ValueError, match=rf"^{word}: [^\n]+\.$"):
        paired_bootstrap(a, b, 0, **settings_)
