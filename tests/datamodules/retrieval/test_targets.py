"""Targets: the slice and the held-out part never meet, and `pseudo` opens no judgements."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.datamodules.retrieval import files as retrieval_files
from saccade.datamodules.retrieval import targets as retrieval_targets
from saccade.datamodules.retrieval.files import Document, RetrievalTask
from saccade.datamodules.retrieval.targets import (
    cut,
    few_shot_slice,
    open_held_out,
    open_target,
    pseudo_task,
    query_key,
    split_task,
)
from tests.support.retrieval_files import write_beir
from tests.support.shared_data import shared_file

WORDS = (
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "omikron",
    "pi",
    "rho",
    "sigma",
    "tau",
)


def text(number: int) -> str:
    """Two sentences that no other number has."""
    words = [f"{word}{number}" for word in WORDS]
    return f"{' '.join(words[:7])}. {' '.join(words[7:])}."


def made(name: str, queries: int = 20, documents: int = 30) -> RetrievalTask:
    """A collection in which query i asks for document i."""
    return RetrievalTask(
        name,
        {f"d{i}": f"{name} {text(i)}" for i in range(documents)},
        {f"q{i}": f"{name} asks {i}" for i in range(queries)},
        {f"q{i}": {f"d{i}": 1} for i in range(queries)},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_beir(made("goal"), tmp_path / "goal")


@given(st.sets(st.text(min_size=1), min_size=2), st.floats(0.01, 0.99), st.integers(0, 9))
def test_slice_and_rest_are_disjoint_whole_and_settled(ids: set[str], fraction: float, seed: int) -> None:
    dev, rest = few_shot_slice(ids, fraction, seed)
    assert not set(dev) & set(rest)
    assert set(dev) | set(rest) == ids
    assert len(dev) == min(max(1, round(fraction * len(ids))), len(ids) - 1)
    assert few_shot_slice(sorted(ids, reverse=True), fraction, seed) == (dev, rest)


def test_slice_follows_the_seed_and_is_written_in_stone() -> None:
    ids = [str(i) for i in range(50)]
    slices = [tuple(few_shot_slice(ids, 0.2, seed)[0]) for seed in range(5)]
    assert len(set(slices)) == 5
    # results of different versions are compared on the same queries
    assert slices[0] == ("1", "12", "15", "2", "25", "29", "37", "41", "7", "9")


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_impossible_fractions_are_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="dev_fraction must be above 0 and below 1"):
        few_shot_slice(["a", "b"], fraction)


def test_parts_judge_their_own_queries_only() -> None:
    task = made("goal")
    dev, held_out = split_task(task, 0.2, 3)
    assert (len(dev.queries), len(held_out.queries)) == (4, 16)
    for part in (dev, held_out):
        assert set(part.qrels) == set(part.queries)
        assert part.corpus == task.corpus


@pytest.mark.parametrize("grades", [{}, {"q1": {"d1": 0}, "q2": {"d2": 0}}, {"q1": {"d1": 1}}])
def test_target_without_queries_ends_with_one_line(tmp_path: Path, grades: dict[str, dict[str, int]]) -> None:
    whole = made("poor")
    task = RetrievalTask("poor", whole.corpus, whole.queries, grades)
    with pytest.raises(ValueError, match=r"target poor must have at least 2 judged queries") as caught:
        split_task(task, 0.2)
    assert "\n" not in str(caught.value)


def test_fewshot_measures_on_the_slice_and_knows_all_queries(folder: Path) -> None:
    target = open_target(str(folder), "fewshot", 0.3, seed=1)
    (dev,), held_out = target.dev, target.held_out
    assert held_out is not None
    assert not set(dev.queries) & set(held_out.queries)
    assert len(dev.queries) == 6
    assert target.known == {query_key(query) for query in made("goal").queries.values()}
    assert open_held_out(str(folder), 0.3, seed=1) == held_out


def test_pseudo_never_opens_judgements(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_file = open_target(str(folder), "pseudo", pseudo_queries=10)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("judgements were opened")

    for module, name in (
        (retrieval_files, "read_qrels"),
        (retrieval_files, "read_beir"),
        (retrieval_targets, "read_beir"),
    ):
        monkeypatch.setattr(module, name, refuse)
    (folder / "qrels" / "test.tsv").unlink()
    (folder / "qrels").rmdir()
    target = open_target(str(folder), "pseudo", pseudo_queries=10)
    assert target == with_file
    assert target.held_out is None
    assert len(target.dev[0].queries) == 10
    assert query_key("goal asks 3") in target.known
    (folder / "queries.jsonl").unlink()
    assert open_target(str(folder), "pseudo", pseudo_queries=10).dev == with_file.dev
    # the spies are where the other signals go through
    with pytest.raises(AssertionError, match="judgements were opened"):
        open_target(str(folder), "fewshot")


def test_both_measures_on_made_queries_and_on_the_slice(folder: Path) -> None:
    target = open_target(str(folder), "both", 0.3, seed=1, pseudo_queries=10)
    made_ones = open_target(str(folder), "pseudo", seed=1, pseudo_queries=10)
    labelled = open_target(str(folder), "fewshot", 0.3, seed=1)
    assert target.dev == [*made_ones.dev, *labelled.dev]
    assert target.held_out == labelled.held_out
    assert target.known == made_ones.known | labelled.known
    assert target.documents == labelled.documents
    seen = [query for task in target.dev for query in task.queries]
    assert len(seen) == len(set(seen)) == 16
    assert target.held_out is not None
    assert not set(seen) & set(target.held_out.queries)


def test_loto_measures_on_slices_of_the_others(folder: Path, tmp_path: Path) -> None:
    others = [str(write_beir(made(name), tmp_path / name)) for name in ("one", "two")]
    target = open_target(str(folder), "loto", 0.2, other_targets=others)
    assert [(task.name, len(task.queries)) for task in target.dev] == [("one", 4), ("two", 4)]
    assert target.held_out == open_target(str(folder), "fewshot", 0.2).held_out
    assert {query_key("goal asks 1"), query_key("two asks 1")} <= target.known
    for wrong in ([str(folder)], [others[0], others[0]]):
        with pytest.raises(ValueError, match="other_targets must be unique and without"):
            open_target(str(folder), "loto", other_targets=wrong)
    twin = write_beir(
        RetrievalTask("twin", made("twin").corpus, made("goal").queries, made("goal").qrels), tmp_path / "twin"
    )
    with pytest.raises(ValueError, match="other_targets must not have queries of the target goal, got 20 in twin"):
        open_target(str(folder), "loto", other_targets=[str(twin)])
    with pytest.raises(ValueError, match="other_targets must be given with signal=loto"):
        open_target(str(folder), "loto")
    with pytest.raises(ValueError, match="other_targets must be given with signal=loto and only then"):
        open_target(str(folder), "fewshot", other_targets=others)
    with pytest.raises(ValueError, match="signal must be fewshot, pseudo, both or loto"):
        open_target(str(folder), "zero")  # type: ignore[arg-type]


def test_made_queries_are_cut_out_of_their_documents() -> None:
    documents = {f"d{i}": Document("", text(i)) for i in range(30)}
    task = pseudo_task("goal", documents, 12, seed=2)
    assert len(task.queries) == 12
    assert set(task.corpus) == set(documents)
    for query, asked in task.queries.items():
        ((source, grade),) = task.qrels[query].items()
        assert grade == 1
        assert asked in documents[source].text
        assert asked not in task.corpus[source]
        assert sorted(f"{asked} {task.corpus[source]}".split()) == sorted(documents[source].text.split())
    untouched = set(documents) - {source for judged in task.qrels.values() for source in judged}
    assert all(task.corpus[name] == documents[name].joined for name in untouched)
    assert pseudo_task("goal", documents, 12, seed=2) == task
    assert pseudo_task("goal", documents, 12, seed=3) != task
    assert len(pseudo_task("goal", documents, 100).queries) == 30


def test_what_asks_is_a_title_a_comment_a_sentence_or_a_run_of_words() -> None:
    body = text(1)
    assert cut(Document("On Greek letters", body), 5) == ("On Greek letters", body)
    assert cut(Document("On Greek letters", f"on greek letters {body}"), 5) == ("On Greek letters", body)
    first, second = re.split(r"(?<=\.) ", body)
    assert {cut(Document("", body), draw) for draw in range(4)} == {(first, second), (second, first)} - {
        (second, first)
    }
    code = "def function(a, b, c, d):\n    # add what is given here\n    e = a + b + c + d\n    return e + a"
    assert cut(Document("", code), 7)[0] == "add what is given here"
    assert "#" not in cut(Document("", code), 7)[1]
    plain = " ".join(f"word{i}" for i in range(25))
    asked, rest = cut(Document("", plain), 1)
    assert asked == " ".join(f"word{i}" for i in range(10, 20))
    assert len(rest.split()) == 15
    assert cut(Document("A title of words", "too short"), 0) == ("", "")


def test_made_queries_of_chinese_and_japanese() -> None:
    first, second = "今天北京的天气很好。", "我们去公园散步了吗？"
    assert {cut(Document("", first + second), draw) for draw in range(4)} == {(first, second), (second, first)}
    assert cut(Document("北京的天气", f"{first}{second}"), 0) == ("北京的天气", first + second)
    plain = "東京都の天気予報によると明日は晴れのち曇りで最高気温は二十度になる見込みです"
    asked, rest = cut(Document("", plain), 1)
    assert asked == plain[16:32]
    assert rest.replace(" ", "") == plain[:16] + plain[32:]
    task = pseudo_task("goal", {f"d{i}": Document("", f"第{i}章は天気です。{second}{plain}") for i in range(9)}, 5)
    assert len(task.queries) >= 2


def test_corpora_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(ValueError, match="target tiny must have documents of at least 12 words for signal=pseudo"):
        pseudo_task("tiny", {"a": Document("", "too short"), "b": Document("title", "")})
    with pytest.raises(ValueError, match="pseudo_queries must be at least 1"):
        pseudo_task("tiny", {"a": Document("", text(1))}, 0)


def test_the_same_question_is_not_asked_of_two_documents() -> None:
    documents = {f"d{i}": Document("The same title", f"{text(i)}") for i in range(5)}
    assert len(pseudo_task("goal", documents).queries) == 1


def test_embedded_target_with_each_signal() -> None:
    few = open_target("networkx", "fewshot")
    made_up = open_target("networkx", "pseudo", pseudo_queries=100)
    assert few.held_out is not None
    assert len(few.dev[0].queries) + len(few.held_out.queries) == 400
    assert len(made_up.dev[0].queries) == 100
    assert made_up.documents == few.documents
    # the sentences are known, to be kept from the sources, but ask for nothing
    sentences = {query_key(query) for query in few.held_out.queries.values()}
    assert sentences <= made_up.known
    assert not sentences & {query_key(query) for query in made_up.dev[0].queries.values()}


@pytest.mark.parametrize("name", ["cran", "cisi", "med", "cacm", "npl", "adi"])
def test_real_collections_give_made_queries_and_slices(name: str) -> None:
    folder = str(shared_file(f"retrieval/{name}"))
    made_up, few = open_target(folder, "pseudo"), open_target(folder, "fewshot")
    assert len(made_up.dev[0].queries) >= (60 if name == "adi" else 150)
    assert few.held_out is not None
    assert not set(few.dev[0].queries) & set(few.held_out.queries)
