"""The data of a target that the selection of training data may use: a few judged queries, made queries, other targets.

The paper (Trait, Findings of EMNLP 2025; only its abstract is public) has few-shot and zero-shot targets. How the
few-shot queries are drawn, and what replaces judgements in the zero-shot setting, are ours.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from saccade.common.checks import check_choice, check_count, check_fraction
from saccade.datamodules.retrieval.docstrings import docstring_documents, docstring_queries, docstring_task
from saccade.datamodules.retrieval.files import Document, RetrievalTask, read_beir, read_corpus, read_queries
from saccade.retrieval.words import UNSPACED, spaced

Signal = Literal["fewshot", "pseudo", "both", "loto"]

_FEWEST_WORDS = 4  # of a made query
_MOST_WORDS = 40
_FEWEST_LEFT = 8  # words in the rest of the document
_RUN = 10  # words of a query from a text without sentences
_SENTENCES = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_CHARACTERS = 16  # of a query from a text without sentences and without blanks


@dataclass(frozen=True)
class Target:
    """A target, split into a part for the search and a held-out part.

    Args:
        name: Name of the collection.
        dev: The collections on which the search evaluates models: one, with `both` the made queries and the few-shot
            queries, with `loto` one for each other target.
        held_out: The collection for the final report, not used in the search. None with `pseudo`, which reads no
            judgements.
        known: Keys (see `query_key`) of all queries of the target and of `dev`, which no source may have.
        documents: Texts of the target's documents.
    """

    name: str
    dev: list[RetrievalTask]
    held_out: RetrievalTask | None
    known: frozenset[str] = field(repr=False)
    documents: frozenset[str] = field(repr=False)


def is_path(setting: str) -> bool:
    """Tell whether a setting is a path rather than the name of a package.

    Args:
        setting: Setting of a source or target.

    Returns:
        True if it contains a slash, a backslash, a dot or a tilde.
    """
    return any(mark in setting for mark in ("/", "\\", ".", "~"))


def open_target(
    setting: str,
    signal: Signal,
    dev_fraction: float = 0.2,
    seed: int = 0,
    split: str = "test",
    pseudo_queries: int = 150,
    other_targets: Sequence[str] = (),
    allow_unknown: bool = False,
) -> Target:
    """Read a target for one of the four signals.

    With `pseudo`, only the documents and the texts of the queries are read (the latter to keep them out of the
    sources); the file of judgements need not exist. The held-out part is the same with `fewshot`, `both` and `loto`.
    For the report of a `pseudo` run, read it with `open_held_out` after the search.

    Args:
        setting: BEIR folder (with a slash), or the name of an installed package.
        signal: `fewshot`: a part of the judged queries. `pseudo`: queries made from the corpus. `both`: the two
            together, because few-shot queries are few and made queries differ from real ones; the mean score counts.
            `loto`: parts of `other_targets`; the mean score counts.
        dev_fraction: Share of the queries for the search, above 0 and below 1.
        seed: Seed of the split and of the made queries.
        split: Name of the judgements.
        pseudo_queries: Number of queries to make; fewer if the corpus does not have enough text.
        other_targets: For `loto`, settings like the first argument.
        allow_unknown: As in `read_beir`.

    Returns:
        The target.

    Raises:
        ValueError: A setting or a file is invalid, or a target has too few queries.
    """
    check_choice("signal", signal, get_args(Signal))
    if bool(other_targets) != (signal == "loto"):
        given = ", ".join(other_targets) if other_targets else "none"
        raise ValueError(f"other_targets must be given with signal=loto and only then, got {given}: change either.")
    if signal == "pseudo":
        return _open_pseudo(setting, pseudo_queries, seed)
    task = _open_task(setting, split, seed, allow_unknown)
    dev, held_out = split_task(task, dev_fraction, seed)
    known, documents = set(task.queries.values()), set(task.corpus.values())
    tasks = [dev]
    if signal == "both":
        made = _open_pseudo(setting, pseudo_queries, seed)
        tasks, known = [*made.dev, dev], known | made.known
    if signal == "loto":
        if setting in other_targets or len(set(other_targets)) < len(other_targets):
            raise ValueError(
                f"other_targets must be unique and without {setting}, got {', '.join(other_targets)}: remove some."
            )
        others = [_open_task(other, split, seed, allow_unknown) for other in other_targets]
        for other in others:
            shared = sorted({query_key(query) for query in other.queries.values()} & set(map(query_key, known)))
            if shared:
                raise ValueError(
                    f"other_targets must not have queries of the target {task.name}, got {len(shared)} in {other.name},"
                    f" for example {shared[0]!r}: leave it out."
                )
        tasks = [split_task(other, dev_fraction, seed)[0] for other in others]
        known |= {query for other in others for query in other.queries.values()}
    return Target(task.name, tasks, held_out, frozenset(map(query_key, known)), frozenset(documents))


def open_held_out(
    setting: str, dev_fraction: float = 0.2, seed: int = 0, split: str = "test", allow_unknown: bool = False
) -> RetrievalTask:
    """Read the held-out part of a target, for the report of a `pseudo` run after its search.

    Args:
        setting: As in `open_target`.
        dev_fraction: As in `open_target`.
        seed: As in `open_target`.
        split: As in `open_target`.
        allow_unknown: As in `open_target`.

    Returns:
        The collection with the queries that `fewshot` holds out.

    Raises:
        ValueError: As in `open_target`.
    """
    return split_task(_open_task(setting, split, seed, allow_unknown), dev_fraction, seed)[1]


def few_shot_slice(
    query_ids: Iterable[str], fraction: float, seed: int = 0, name: str = "target"
) -> tuple[list[str], list[str]]:
    """Split queries by a hash of their ids into few-shot queries and held-out queries.

    Args:
        query_ids: Ids of the judged queries; their order does not matter.
        fraction: Share of the few-shot queries, above 0 and below 1; each part gets at least one query.
        seed: Seed of the hash.
        name: Name of the target, for the message.

    Returns:
        Ids of the few-shot and of the held-out queries, each sorted; they have none in common.

    Raises:
        ValueError: There are fewer than two queries, or the fraction is invalid.
    """
    check_fraction("dev_fraction", fraction)
    ids = sorted(set(query_ids), key=lambda each: (_digest(seed, "few-shot", each), each))
    if len(ids) < 2:
        raise ValueError(
            f"{name} must have at least 2 judged queries, one for the search and one held out, got {len(ids)}: take"
            " another split or target."
        )
    count = min(max(1, round(fraction * len(ids))), len(ids) - 1)
    return sorted(ids[:count]), sorted(ids[count:])


def split_task(task: RetrievalTask, fraction: float, seed: int = 0) -> tuple[RetrievalTask, RetrievalTask]:
    """Split a judged collection into a few-shot part and a held-out part, both with the whole corpus.

    Args:
        task: The collection.
        fraction: As in `few_shot_slice`.
        seed: As in `few_shot_slice`.

    Returns:
        The few-shot part and the held-out part, each with the judgements of its own queries.

    Raises:
        ValueError: The collection has fewer than two judged queries, or the fraction is invalid.
    """
    judged = [query for query in task.queries if any(grade > 0 for grade in task.qrels.get(query, {}).values())]
    parts = few_shot_slice(judged, fraction, seed, f"target {task.name}")
    dev, held_out = (
        RetrievalTask(
            task.name,
            task.corpus,
            {query: task.queries[query] for query in part},
            {query: task.qrels[query] for query in part},
        )
        for part in parts
    )
    return dev, held_out


def pseudo_task(name: str, documents: Mapping[str, Document], count: int = 150, seed: int = 0) -> RetrievalTask:
    """Make a judged collection from documents: a part of a document is the query, its rest the relevant document.

    The query is the title if there is one, else a sentence (inverse cloze task): in code a comment if there is one, in
    a text without sentences ten consecutive words, or sixteen characters where there are no blanks between words. The
    query is removed from its document.

    Args:
        name: Name of the collection.
        documents: The corpus by id.
        count: Number of queries to make; at least 1.
        seed: Seed of the choice of documents and sentences.

    Returns:
        The corpus and at most `count` queries with one relevant document each.

    Raises:
        ValueError: No document is long enough.
    """
    check_count("pseudo_queries", count, advice="give a whole number, for example 150")
    corpus = {each: document.joined for each, document in documents.items()}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    asked: set[str] = set()
    for each in sorted(documents, key=lambda each: (_digest(seed, "pseudo", each), each)):
        if len(queries) == count:
            break
        query, rest = cut(documents[each], _digest(seed, "sentence", each))
        # a query with two answers, of which only one counts, would be misleading
        if not query or query_key(query) in asked:
            continue
        asked.add(query_key(query))
        corpus[each] = rest
        queries[f"pseudo:{each}"], qrels[f"pseudo:{each}"] = query, {each: 1}
    if not queries:
        raise ValueError(
            f"target {name} must have documents of at least {_FEWEST_WORDS + _FEWEST_LEFT} words for signal=pseudo, got"
            f" none among {len(documents)}: use signal=fewshot."
        )
    return RetrievalTask(name, corpus, queries, qrels)


def cut(document: Document, draw: int) -> tuple[str, str]:
    """Split a document into a query and the rest.

    Args:
        document: With or without title.
        draw: A number of at least 0 that chooses the sentence.

    Returns:
        Query and rest; both empty if the document is too short.
    """
    title, text = document.title.strip(), document.text.strip()
    if title and _words(title) >= 2:
        if text.casefold().startswith(title.casefold()):  # some collections repeat the title in the text
            text = text[len(title) :].strip()
        if _words(text) >= _FEWEST_LEFT:
            return title, text
    pieces = [piece for piece in _SENTENCES.split(text) if piece.strip()]
    if len(pieces) == 1 and re.search(f"[{UNSPACED}]", text):
        pieces = [text[place : place + _CHARACTERS] for place in range(0, len(text), _CHARACTERS)]
    elif len(pieces) == 1:
        words = pieces[0].split()
        pieces = [" ".join(words[place : place + _RUN]) for place in range(0, len(words), _RUN)]
    total = _words(text)
    fit = [
        place
        for place, piece in enumerate(pieces)
        if _FEWEST_WORDS <= _words(piece) <= _MOST_WORDS and total - _words(piece) >= _FEWEST_LEFT
    ]
    fit = [place for place in fit if pieces[place].lstrip().startswith("#")] or fit
    if not fit:
        return "", ""
    place = fit[draw % len(fit)]
    rest = pieces[:place] + pieces[place + 1 :]
    return pieces[place].strip().lstrip("#").strip(), ("\n" if "\n" in text else " ").join(rest)


def query_key(query: str) -> str:
    """Normalize a query for comparison: its words, without case, punctuation and line ends.

    Args:
        query: Text.

    Returns:
        The words in lower case, separated by spaces.
    """
    return " ".join(re.findall(r"\w+", query.casefold())) or query.strip()


def _open_pseudo(setting: str, count: int, seed: int) -> Target:
    known: set[str] = set()
    if is_path(setting):
        folder = Path(setting).expanduser()
        name, documents = folder.resolve().name, read_corpus(folder)
        # the texts of the queries, not their judgements: sources must not contain them
        if (folder / "queries.jsonl").is_file():
            known |= set(read_queries(folder).values())
    else:
        name, documents = setting, docstring_documents(setting)
        known |= docstring_queries(setting)
    dev = pseudo_task(name, documents, count, seed)
    texts = {document.joined for document in documents.values()}
    known |= set(dev.queries.values())
    return Target(name, [dev], None, frozenset(map(query_key, known)), frozenset(texts))


def _open_task(setting: str, split: str, seed: int, allow_unknown: bool) -> RetrievalTask:
    return read_beir(setting, split, allow_unknown) if is_path(setting) else docstring_task(setting, seed=seed)


def _words(text: str) -> int:
    return len(re.findall(r"\w+", spaced(text)))


def _digest(seed: int, purpose: str, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest()[:8], "big")
