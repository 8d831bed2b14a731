"""Retrieval files: nothing is lost on the way, wrong files end with one line that names file and line number."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.datamodules.retrieval.files import (
    Pair,
    RetrievalTask,
    read_beir,
    read_corpus,
    read_pairs,
    read_qrels,
    without_instruction,
)
from tests.support.retrieval_files import write_beir, write_pairs
from tests.support.shared_data import shared_file

TASK = RetrievalTask(
    "small",
    {"a": "wings of birds", "b": "größe 🙂 of\u2028things", "c": ""},
    {"q1": "do birds fly", "q2": "how large"},
    {"q1": {"a": 2, "c": 0}, "q2": {"b": 1}},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_beir(TASK, tmp_path / "small")


def test_what_is_written_is_read_with_and_without_header(tmp_path: Path) -> None:
    for header in (True, False):
        assert read_beir(write_beir(TASK, tmp_path / "small", header=header)) == TASK


def test_crlf_byte_order_mark_and_blank_lines_change_nothing(folder: Path) -> None:
    for path in folder.rglob("*.*"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    assert read_beir(folder) == TASK


def test_title_and_text_are_joined_by_a_blank(folder: Path) -> None:
    rows = [{"_id": "a", "title": "On birds", "text": "wings"}, {"_id": "b", "title": None, "text": "x"}, {"_id": 3}]
    rows[2]["text"] = "no title, and a number as id"
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    documents = read_corpus(folder)
    assert [each.joined for each in documents.values()] == ["On birds wings", "x", "no title, and a number as id"]
    assert list(documents) == ["a", "b", "3"]


def test_only_judged_queries_are_kept_and_whole_grades_may_have_a_point(folder: Path) -> None:
    (folder / "qrels" / "dev.tsv").write_text("q2\tb\t3.0\n")
    task = read_beir(folder, "dev")
    assert (task.queries, task.qrels) == ({"q2": "how large"}, {"q2": {"b": 3}})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "corpus.jsonl",
            '{"_id": "a", "text": ""}\n{"_id": "a", "text": ""}',
            "line 2: _id must be unique, got 'a'",
        ),
        ("corpus.jsonl", '{"_id": "a", "text": ""}\n\n{"text": ""}', "line 3: _id is missing"),
        ("corpus.jsonl", '{"_id": "a", "title": "t"}', "line 1: text is missing"),
        ("corpus.jsonl", '{"_id": "a", "title": 3, "text": ""}', "line 1: title must be a text"),
        ("corpus.jsonl", '{"_id": true, "text": ""}', "line 1: _id must be a text"),
        ("corpus.jsonl", '{"_id": "a\\tb", "text": ""}', "line 1: _id must not have blanks at its ends, tabs"),
        ("corpus.jsonl", '{"_id": "a", "text": ', "line 1: row must be JSON"),
        ("corpus.jsonl", "[1]", "line 1: row must be a JSON object, got list"),
        ("corpus.jsonl", "\n \n", "must hold at least one line, got none"),
        ("queries.jsonl", '{"_id": "q1", "text": " "}', "line 1: query 'q1' must have a text"),
        ("queries.jsonl", "", "queries.jsonl must hold at least one line"),
        ("qrels/test.tsv", "", "must hold at least one judgement"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "must hold at least one judgement"),
        ("qrels/test.tsv", "q1\ta\t1\nq9\ta\t1", "line 2: query 'q9' is not in queries.jsonl"),
        ("qrels/test.tsv", "q1\ta\t1\nq1\tz\t1", "line 2: document 'z' is not in corpus.jsonl"),
        ("qrels/test.tsv", "q1\ta\t1\nq1\ta\t2", "line 2: query 'q1' and document 'a' are judged twice"),
        ("qrels/test.tsv", "q1\ta\thigh", "line 1: grade must be a whole number, got 'high'"),
        ("qrels/test.tsv", "q1\ta\t1\nquery-id\tcorpus-id\tscore", "line 2: grade must be a whole number"),
        ("qrels/test.tsv", "q1\ta\tnan", "line 1: grade must be a whole number"),
        ("qrels/test.tsv", "q1 0 a 1", "line 1: row must have 3 fields separated by tabs, got 1"),
        ("qrels/test.tsv", "q1\t0\ta\t1", "TREC's second column"),
    ],
)
def test_broken_collections_end_with_one_line(folder: Path, name: str, content: str, message: str) -> None:
    path = folder / name
    path.write_text(content)
    with pytest.raises(ValueError) as caught:
        read_beir(folder)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_undecodable_files_end_with_one_line(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"dev.tsv must hold the judgements of split 'dev', .* splits test\.$"):
        read_beir(folder, "dev")
    (folder / "corpus.jsonl").write_bytes(b'{"_id": "a", "text": "\xff"}')
    with pytest.raises(ValueError, match=r"corpus.jsonl, line 1: text must be UTF-8, got byte 0xff"):
        read_beir(folder)
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*corpus.jsonl \(No such file"):
        read_beir(folder)


LINE_ENDS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"


def test_lines_end_at_newlines_only(tmp_path: Path) -> None:
    """Written as they are, not escaped: the other characters that end lines in printed text are text here."""
    name = "x\u2028y\x85z"
    task = RetrievalTask("ends", {name: LINE_ENDS, "b": "two"}, {name: LINE_ENDS}, {name: {name: 1, "b": 0}})
    folder = write_beir(task, tmp_path / "ends")
    assert read_beir(folder) == task
    for path in (folder / "corpus.jsonl", folder / "queries.jsonl", folder / "qrels" / "test.tsv"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_beir(folder) == task


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("corpus.jsonl", {"_id": "d9", "text": "broken \ud83d half"}),
        ("corpus.jsonl", {"_id": "d9", "title": "\udc00", "text": "whole"}),
        ("corpus.jsonl", {"_id": "d\ude42", "text": "whole"}),
        ("queries.jsonl", {"_id": "q9", "text": "half \ud83d"}),
        ("queries.jsonl", {"_id": "\ud83dq", "text": "whole"}),
    ],
)
def test_half_characters_are_named_with_file_and_line(folder: Path, name: str, row: dict[str, str]) -> None:
    path = folder / name
    before = path.read_text(encoding="utf-8").splitlines()[0]
    path.write_text(before + "\n" + json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}, line 2: text must have whole characters[^\n]*$"):
        read_beir(folder)
    path.write_text(before + "\n" + json.dumps(row | dict.fromkeys(row, "whole \U0001f642")) + "\n", encoding="utf-8")
    if name == "corpus.jsonl":
        assert read_corpus(folder)["whole \U0001f642"].text == "whole \U0001f642"


def test_judgements_that_are_no_text_are_named_with_their_line(folder: Path) -> None:
    path = folder / "qrels" / "test.tsv"
    path.write_bytes(b"q1\ta\t1\nq2\tb\xed\xa0\xbd\t1\n")  # half a character, as Java writes it
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}, line 2: text must be UTF-8, got an invalid byte"):
        read_beir(folder)


def test_pairs_with_half_characters_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"query": "q \ud83d", "document": "d", "label": 1}))
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}, line 1: text must have whole characters"):
        read_pairs(path)


def test_unknown_documents_may_be_allowed(folder: Path) -> None:
    (folder / "qrels" / "test.tsv").write_text("q1\tz\t1\n")
    assert read_beir(folder, allow_unknown=True).qrels == {"q1": {"z": 1}}


def test_first_row_of_unknown_ids_with_a_grade_is_no_header(folder: Path) -> None:
    (folder / "qrels" / "test.tsv").write_text("q7\ta\t1\nq1\ta\t1\n")
    with pytest.raises(ValueError, match="line 1: query 'q7'"):
        read_qrels(folder, "test", TASK.queries, TASK.corpus)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(TEXTS, st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 1)), min_size=1))
def test_pairs_survive_writing(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, int]]) -> None:
    pairs = [Pair(*row) for row in rows]
    path = write_pairs(pairs, tmp_path_factory.mktemp("pairs") / "pairs.jsonl")
    assert read_pairs(path, keep_instruction=True) == pairs


def test_instruction_goes_at_the_first_separator_unless_it_is_kept(tmp_path: Path) -> None:
    texts = ["Find an answer.</s>who [SEP] won", "Find it. [SEP] who </s> won", "who won"]
    path = write_pairs([Pair(text, "they", 1) for text in texts], tmp_path / "pairs.jsonl")
    assert [pair.query for pair in read_pairs(path)] == ["who [SEP] won", "who </s> won", "who won"]
    assert [pair.query for pair in read_pairs(path, keep_instruction=True)] == texts
    assert without_instruction("only an instruction</s>") == ""


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "q", "document": "d"}, "label is missing"),
        ({"query": "q", "document": "d", "label": 2}, "label must be 0 or 1, got 2"),
        ({"query": "q", "document": "d", "label": [1]}, "label must be 0 or 1"),
        ({"query": "q", "label": 1}, "document is missing"),
        ({"query": "Find it.</s> ", "document": "d", "label": 1}, "query must have a text"),
    ],
)
def test_broken_pairs_end_with_one_line(tmp_path: Path, row: dict[str, object], message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"query": "q", "document": "d", "label": 1}) + "\n" + json.dumps(row))
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 2: {message}")):
        read_pairs(path)


def test_real_collections_are_read_whole() -> None:
    documents = queries = 0
    for name in ("cran", "cisi", "med", "cacm", "npl", "adi"):
        folder = shared_file(f"retrieval/{name}")
        task = read_beir(folder)
        documents, queries = documents + len(task.corpus), queries + len(task.queries)
        rows = (folder / "qrels" / "test.tsv").read_text().splitlines()
        assert sum(map(len, task.qrels.values())) == len(rows) - 1
        assert all(grade > 0 for judged in task.qrels.values() for grade in judged.values())
    assert (documents, queries) == (18606, 511)
