"""Hard negatives: near documents that do not answer the query, independent of other queries."""

from saccade.datamodules.retrieval.files import Pair
from saccade.datamodules.retrieval.negatives import hard_negatives

DOCUMENTS = [f"red apple number{place} of the garden" for place in range(30)] + ["blue river", "green train"]
PAIRS = [Pair("red apple", DOCUMENTS[0], 1), Pair("red apple", DOCUMENTS[1], 1), Pair("blue river", "blue river", 1)]


def test_negatives_share_words_with_the_query_and_do_not_answer_it() -> None:
    found = hard_negatives([*PAIRS, Pair("green train", "blue river", 0)], DOCUMENTS, 4)
    assert set(found) == {"red apple", "blue river"}, "queries without a positive pair have none"
    assert len(set(found["red apple"])) == 4
    assert set(found["red apple"]) <= set(DOCUMENTS[2:30])
    assert found["blue river"] == [], "no other document shares a word"


def test_queries_of_chinese_get_negatives_and_those_without_any_document_are_told(recwarn) -> None:
    documents = ["北京的天气很好", "上海的天气很好", "今天有雨"]
    pairs = [Pair("北京天气", documents[0], 1), Pair("火车", documents[2], 1)]
    assert hard_negatives(pairs, documents, 2) == {"北京天气": [documents[1]], "火车": []}
    (said,) = [str(each.message) for each in recwarn]
    assert said.startswith("saccade: BM25 finds no document for 1 of 2 queries, for example '火车': ")
    assert said.endswith("They get no hard negatives.")
    recwarn.clear()
    few = [Pair(f"red number{place}", DOCUMENTS[place], 1) for place in range(9)] + [Pair("zebra", "blue river", 1)]
    assert hard_negatives(few, DOCUMENTS, 2)["zebra"] == []
    assert not recwarn.list, "one in ten is usual"


def test_negatives_of_a_query_depend_on_it_and_the_seed_only() -> None:
    found = hard_negatives(PAIRS, DOCUMENTS, 4)
    assert hard_negatives(PAIRS[:2], DOCUMENTS, 4)["red apple"] == found["red apple"]
    assert hard_negatives(PAIRS, DOCUMENTS, 4, seed=1)["red apple"] != found["red apple"]
