"""The first stage: real collections, ties, and texts without words."""

import csv
import json
import os
import random
import subprocess
import sys

import pytest

from saccade.retrieval.bm25 import BM25
from saccade.retrieval.measures import measure
from tests.support.processes import TIME_LIMIT
from tests.support.shared_data import shared_file

# bm25s defaults, English stop words, title + " " + text
COLLECTIONS = {
    "adi": (0.4458, 0.8092),
    "cacm": (0.4247, 0.6013),
    "cisi": (0.3494, 0.4175),
    "cran": (0.3370, 0.7041),
    "med": (0.6674, 0.7767),
    "npl": (0.3535, 0.4701),
}


def read_lines(path):
    return {item["_id"]: item for item in map(json.loads, path.read_text().splitlines())}


@pytest.mark.parametrize("name", COLLECTIONS)
def test_real_collections(name):
    folder = shared_file(f"retrieval/{name}")
    documents = {key: item["title"] + " " + item["text"] for key, item in read_lines(folder / "corpus.jsonl").items()}
    qrels = {}
    with (folder / "qrels" / "test.tsv").open() as stream:
        for line in csv.DictReader(stream, delimiter="\t"):
            qrels.setdefault(line["query-id"], {})[line["corpus-id"]] = int(line["score"])
    texts = read_lines(folder / "queries.jsonl")
    run = BM25(documents).search({query: texts[query]["text"] for query in qrels}, 100)
    found = measure(run, qrels, ("ndcg_cut_10", "recall_100")).mean
    assert (found["ndcg_cut_10"], found["recall_100"]) == pytest.approx(COLLECTIONS[name], abs=0.005)


def test_ties_are_decided_by_the_id_also_at_the_cut():
    names = [f"d{index:02}" for index in range(50)]
    expected = {"q": ["best", "d49", "d48", "d47"]}
    for seed in range(3):
        random.Random(seed).shuffle(names)
        documents = dict.fromkeys(names, "the cat sat") | {"best": "cat cat cat", "none": "dog house"}
        run = BM25(documents).search({"q": "cat"}, 4)
        assert {query: list(found) for query, found in run.items()} == expected
    assert len(BM25(documents).search({"q": "cat"}, 1000)["q"]) == 51


def test_a_document_of_the_query_goes_only_when_asked_and_no_other():
    documents = {"1": "wing in the slipstream", "2": "wing and flow", "3": "heat"}
    queries = {"1": "wing", "x": "wing"}
    assert BM25(documents).search(queries, 10) == {query: run_of("2", "1", documents, query) for query in queries}
    dropped = BM25(documents, drop_same_id=True).search(queries, 10)
    assert list(dropped["1"]) == ["2"]
    assert sorted(dropped["x"]) == ["1", "2"]
    assert list(BM25(documents, drop_same_id=True).search({"1": "wing"}, 1)["1"]) == ["2"]


def run_of(first, second, documents, query):
    found = BM25(documents).search({query: "wing"}, 10)[query]
    assert set(found) == {first, second}
    return found


@pytest.mark.parametrize("documents", [{}, {"a": ""}, {"a": "the", "b": "of and"}])
def test_documents_without_words(documents):
    first_stage = BM25(documents)
    assert len(first_stage) == len(documents)
    assert first_stage.search({"q": "cat", "r": ""}, 3) == {"q": {}, "r": {}}


def test_queries_without_known_words_are_kept_and_empty():
    first_stage = BM25({"a": "cat dog", "b": ""}, progress=True)
    assert first_stage.search({"q": "zebra", "r": "", "s": "the", "t": "dog"}, 3, progress=True) == {
        "q": {},
        "r": {},
        "s": {},
        "t": {"a": pytest.approx(first_stage.search({"t": "dog"}, 1)["t"]["a"])},
    }
    assert first_stage.search({}, 3) == {}


LIBRARY = {
    "zh1": "机器学习是人工智能的一个分支。",
    "zh2": "今天北京的天气很好。",
    "ja1": "東京の天気は晴れです。",
    "ja2": "機械学習は面白い。",
    "ko1": "서울의 날씨는 맑습니다.",
    "ko2": "기계 학습은 재미있다.",
    "en1": "machine learning in the clouds",
}


@pytest.mark.parametrize(
    ("query", "best"),
    [
        ("北京天气", "zh2"),
        ("什么是机器学习？", "zh1"),
        ("東京の天気", "ja1"),
        ("機械学習", "ja2"),
        ("서울 날씨", "ko1"),
        ("학습이란", "ko2"),
        ("ｍａｃｈｉｎｅ", "en1"),
    ],
)
def test_chinese_japanese_and_korean_are_found(query, best):
    found = BM25(LIBRARY).search({"q": query}, 3)["q"]
    assert next(iter(found)) == best


def test_queries_without_a_document_are_told_in_one_line(recwarn):
    first_stage = BM25(LIBRARY)
    first_stage.search({"a": "北京天气"}, 3)
    assert not [str(each.message) for each in recwarn]
    found = first_stage.search({"a": "北京天气", "b": "水", "c": "zebra"}, 3)
    assert (found["b"], found["c"]) == ({}, {})
    (said,) = [str(each.message) for each in recwarn]
    assert said.startswith("saccade: BM25 finds no document for 2 of 3 queries, for example 'b' ('水'): ")
    assert "\n" not in said
    first_stage.search({"c": "zebra"}, 3, report=False)
    assert len(recwarn) == 1


def test_a_cut_below_one_is_refused():
    with pytest.raises(ValueError, match=r"^top_k must be at least 1, got 0: [^\n]+\.$"):
        BM25({"a": "cat"}).search({"q": "cat"}, 0)


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ValueError, match=r"^BM25 [^\n]+pip install 'saccade\[retrieval\]'\.$"):
        BM25({"a": "cat"})


@pytest.mark.parametrize("before", ["", "import jax.lax; "])
def test_jax_is_left_alone(before, tmp_path):
    # the import of bm25s uses a JAX that it finds, which takes most of a GPU's memory
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("")
    (tmp_path / "jax" / "lax.py").write_text("def top_k(*arguments):\n    raise SystemExit('JAX was used')\n")
    script = before + (
        "from saccade.retrieval.bm25 import BM25; "
        "print(BM25({'a': 'one apple', 'b': 'two pears'}).search({'q': 'apple'}, 1)); import jax.lax; jax.lax"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=TIME_LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'q': {'a'" in done.stdout
