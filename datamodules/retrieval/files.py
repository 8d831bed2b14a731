"""Readers of retrieval files: collections in the layout of BEIR, and labelled pairs in the format of BERRI."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from saccade.common.json_lines import read_json_lines

SEPARATORS = ("</s>", "[SEP]")
"""Separators of instruction and query in BERRI: the first in the training file of TART-full, the second elsewhere."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and a document, one training example.

    Args:
        query: Text.
        document: Text.
        label: 1 if the document answers the query, else 0.
    """

    query: str
    document: str
    label: int


@dataclass(frozen=True, slots=True)
class Document:
    """A document as title and text.

    Args:
        title: May be empty.
        text: May be empty.
    """

    title: str
    text: str

    @property
    def joined(self) -> str:
        """Title and text with a space between them, as in BEIR."""
        return f"{self.title} {self.text}".strip()


@dataclass(frozen=True)
class RetrievalTask:
    """A judged collection.

    Args:
        name: Name of the collection.
        corpus: Text of each document, with its title in front, by document id.
        queries: Text of each judged query by query id.
        qrels: By query id, the grade of each judged document; above 0 is relevant.
    """

    name: str
    corpus: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]] = field(default_factory=dict)


def read_beir(folder: str | Path, split: str = "test", allow_unknown: bool = False) -> RetrievalTask:
    """Read a collection in the layout of BEIR.

    Args:
        folder: With `corpus.jsonl` (`_id`, `title`, `text`), `queries.jsonl` (`_id`, `text`) and `qrels/<split>.tsv`.
        split: Name of the judgements.
        allow_unknown: Keep judgements of documents that the corpus lacks. No retriever can find them, so they lower
            the recall. If false, they are an error.

    Returns:
        The collection, with those queries that have judgements in the split.

    Raises:
        ValueError: A file is missing, empty or invalid; the message names the file and the line.
    """
    root = Path(folder).expanduser()
    documents = read_corpus(root)
    queries = read_queries(root)
    qrels = read_qrels(root, split, queries, None if allow_unknown else documents)
    return RetrievalTask(
        root.resolve().name,
        {name: document.joined for name, document in documents.items()},
        {name: queries[name] for name in queries if name in qrels},
        {name: qrels[name] for name in queries if name in qrels},
    )


def read_corpus(folder: str | Path) -> dict[str, Document]:
    """Read the documents of a collection.

    Args:
        folder: With `corpus.jsonl`: `_id`, `text`, and optionally `title`.

    Returns:
        The documents by id, in the order of the file.

    Raises:
        ValueError: The file is missing, empty or broken.
    """
    path = Path(folder).expanduser() / "corpus.jsonl"
    documents: dict[str, Document] = {}
    for line, row in _json_lines(path):
        name = _new_id(path, line, row, documents)
        title = row.get("title")
        documents[name] = Document("" if title is None else _text(path, line, row, "title"), _text(path, line, row))
    return documents


def read_queries(folder: str | Path) -> dict[str, str]:
    """Read the queries of a collection.

    Args:
        folder: With `queries.jsonl`: `_id` and `text`.

    Returns:
        Texts by id, in the order of the file.

    Raises:
        ValueError: The file is missing, empty or invalid, or a query has no text.
    """
    path = Path(folder).expanduser() / "queries.jsonl"
    queries: dict[str, str] = {}
    for line, row in _json_lines(path):
        name = _new_id(path, line, row, queries)
        queries[name] = _text(path, line, row)
        if not queries[name].strip():
            _fail(path, line, f"query {name!r} must have a text, got a blank one", "write it, or remove the line")
    return queries


def read_qrels(
    folder: str | Path, split: str, queries: Iterable[str] = (), documents: Iterable[str] | None = None
) -> dict[str, dict[str, int]]:
    """Read judgements.

    The first row is taken for a header if its third field is no number and its ids are not in the collection. So files
    without a header are read completely.

    Args:
        folder: With `qrels/<split>.tsv`: query id, document id and grade, separated by tabs.
        split: Name of the judgements.
        queries: Ids of the collection.
        documents: Ids of the collection; None keeps judgements of unknown documents.

    Returns:
        Grades by query id and document id.

    Raises:
        ValueError: The file is missing, empty or invalid, or has unknown or repeated ids.
    """
    path = Path(folder).expanduser() / "qrels" / f"{split}.tsv"
    if not path.is_file():
        there = sorted(each.stem for each in path.parent.glob("*.tsv"))
        advice = f"choose one of the splits {', '.join(there)}" if there else "add the file"
        raise ValueError(f"{path} must hold the judgements of split {split!r}, and is missing: {advice}.")
    known = frozenset(queries)
    found = None if documents is None else frozenset(documents)
    qrels: dict[str, dict[str, int]] = {}
    first = True
    for line, text in _lines(path):
        fields = [each.strip() for each in text.split("\t")]
        beginning, first = first, False
        if len(fields) != 3:
            advice = "write query id, document id and grade"
            if len(fields) == 4:
                advice += ", without TREC's second column"
            _fail(path, line, f"row must have 3 fields separated by tabs, got {len(fields)}", advice)
        query, document, grade = fields[0], fields[1], _grade(fields[2])
        if grade is None:
            if beginning and query not in known and (found is None or document not in found):
                continue
            _fail(path, line, f"grade must be a whole number, got {fields[2]!r}", "correct it")
        if query not in known:
            _fail(path, line, f"query {query!r} is not in queries.jsonl", "add it, or remove the line")
        if found is not None and document not in found:
            _fail(path, line, f"document {document!r} is not in corpus.jsonl", "add it, or set allow_unknown")
        judged = qrels.setdefault(query, {})
        if document in judged:
            _fail(path, line, f"query {query!r} and document {document!r} are judged twice", "keep one of the lines")
        judged[document] = grade
    if not qrels:
        raise ValueError(f"{path} must hold at least one judgement, got none: write query id, document id and grade.")
    return qrels


def read_pairs(path: str | Path, keep_instruction: bool = False) -> list[Pair]:
    """Read labelled pairs in the format of BERRI (TART): JSON lines of `query`, `document` and `label`.

    Args:
        path: The file.
        keep_instruction: Keep the instruction and its separator (`</s>` or `[SEP]`) in front of the query. By default
            they are removed, because targets have no instructions.

    Returns:
        The pairs in the order of the file.

    Raises:
        ValueError: The file is missing, empty or invalid.
    """
    file = Path(path).expanduser()
    pairs = []
    for line, row in _json_lines(file):
        query, document = _text(file, line, row, "query"), _text(file, line, row, "document")
        if not keep_instruction:
            query = without_instruction(query)
        if not query.strip():
            _fail(file, line, "query must have a text, got a blank one", "write it, or remove the line")
        if "label" not in row:
            _fail(file, line, "label is missing", "write 1 for a document that answers the query, otherwise 0")
        if row["label"] not in (0, 1):
            _fail(file, line, f"label must be 0 or 1, got {row['label']!r}", "correct it")
        pairs.append(Pair(query, document, int(row["label"])))
    return pairs


def without_instruction(query: str) -> str:
    """Remove the instruction of BERRI, which is everything up to the first separator.

    Args:
        query: With or without an instruction.

    Returns:
        The query without the instruction.
    """
    places = [(query.index(mark), mark) for mark in SEPARATORS if mark in query]
    if not places:
        return query
    place, mark = min(places)
    return query[place + len(mark) :].strip()


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank; a line ends at a newline, with or without a carriage return."""
    try:
        with path.open("rb") as stream:
            for number, content in enumerate(stream, 1):
                text = content.decode("utf-8-sig")  # joined files have a mark in each
                if text.strip():
                    yield number, text.rstrip("\r\n")
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror}): check the path.") from error
    except UnicodeDecodeError as error:
        _fail(path, number, f"text must be UTF-8, got an invalid byte ({error.reason})", "convert the file")


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    line = 0
    for line, row in read_json_lines(path):
        if not isinstance(row, dict):
            _fail(path, line, f"row must be a JSON object, got {type(row).__name__}", "write one object in each line")
        yield line, row
    if not line:
        raise ValueError(f"{path} must hold at least one line, got none: write one JSON object in each line.")


def _new_id(path: Path, line: int, row: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    name = row.get("_id")
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        what = "is missing" if name is None else f"must be a text, got {name!r}"
        _fail(path, line, f"_id {what}", "give every line an id")
    name = str(name)
    if name != name.strip() or "\t" in name or "\n" in name:
        _fail(path, line, f"_id must not have blanks at its ends, tabs or line ends, got {name!r}", "rename it")
    if name in known:
        _fail(path, line, f"_id must be unique, got {name!r} again", "rename it")
    return name


def _text(path: Path, line: int, row: Mapping[str, Any], key: str = "text") -> str:
    value = row.get(key)
    if not isinstance(value, str):
        what = "is missing" if value is None else f"must be a text, got {type(value).__name__}"
        _fail(path, line, f"{key} {what}", "add it; it may be empty" if key in ("text", "document") else "add it")
    return value


def _grade(text: str) -> int | None:
    try:
        number = float(text)
        return int(number) if number == int(number) else None
    except (ValueError, OverflowError):
        return None


def _fail(path: Path, line: int, what: str, advice: str) -> NoReturn:
    raise ValueError(f"{path}, line {line}: {what}: {advice}.")
