"""What the selection of training data may see of its target: a few labelled queries, made ones, or other targets.

The paper (Trait, Findings of EMNLP 2025; only its abstract is public) speaks of few-shot and zero-shot targets; how the
slice is drawn and what stands in for labels are ours.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from saccade.datamodules.retrieval.docstrings import docstring_documents, docstring_queries, docstring_task
from saccade.datamodules.retrieval.files import Document, RetrievalTask, read_beir, read_corpus, read_queries

Signal = Literal["fewshot", "pseudo", "both", "loto"]

_FEWEST_WORDS = 4  # of a made query
_MOST_WORDS = 40
_FEWEST_LEFT = 8  # words of the document that is left
_RUN = 10  # words of a query where a text has no sentences


@dataclass(frozen=True)
class Target:
    """A target as the selection sees it.

    Args:
        name: Of the collection.
        dev: What children are measured on: one task, with `both` the made queries and the slice, or with `loto` one
            for each other target.
        held_out: What the result is reported on, never measured in the search. None with `pseudo`, which opens no
            judgements.
        known: Texts of all of the target's queries, and of those in `dev`: no source may have them.
        documents: Texts of the target's documents.
    """

    name: str
    dev: list[RetrievalTask]
    held_out: RetrievalTask | None
    known: frozenset[str] = field(repr=False)
    documents: frozenset[str] = field(repr=False)


def check_signal(signal: str) -> None:
    """Refuse a signal that there is not.

    Args:
        signal: A setting.

    Raises:
        ValueError: The line has all that there are.
    """
    *names, last = get_args(Signal)
    if signal not in (*names, last):
        raise ValueError(f"signal: must be {', '.join(names)} or {last}, but is {signal!r}; choose one")


def is_path(setting: str) -> bool:
    """Say whether a setting names a folder or file; what has no slash, dot or tilde is a package's name.

    Args:
        setting: Of a source or target.

    Returns:
        True for a folder or file.
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
    """Open a target for one of the four signals.

    With `pseudo`, only the corpus and the texts of the queries are read (the latter to keep them out of the sources):
    no function is called that opens judgements, so the file need not exist. The held-out part is the same for
    `fewshot` and `loto`; measure a `pseudo` result on it with `open_held_out` when the search is over.

    Args:
        setting: BEIR folder (with a slash), or the name of an installed package.
        signal: `fewshot`: a labelled slice of the queries. `pseudo`: queries made from the corpus. `both`: the mean of
            the two scores, because a slice is small and made queries are not the real ones. `loto`: slices of
            `other_targets`, whose mean score stands for the target's.
        dev_fraction: Share of the queries in the slice, above 0 and below 1.
        seed: Of the slice and of the made queries.
        split: Which judgements.
        pseudo_queries: How many to make; fewer where the corpus does not give them.
        other_targets: For `loto`, settings as the first.
        allow_unknown: As in `read_beir`.

    Returns:
        The target.

    Raises:
        ValueError: A setting is impossible, a file is broken, or a target has not enough queries.
    """
    check_signal(signal)
    if bool(other_targets) != (signal == "loto"):
        given = ", ".join(other_targets) if other_targets else "none"
        raise ValueError(f"other_targets: must be given with signal=loto and only there, but is {given}; change either")
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
                f"other_targets: must not have {setting} nor a repetition, but is {', '.join(other_targets)}"
            )
        others = [_open_task(other, split, seed, allow_unknown) for other in other_targets]
        for other in others:
            shared = sorted({query_key(query) for query in other.queries.values()} & set(map(query_key, known)))
            if shared:
                raise ValueError(
                    f"other_targets: {other.name} must not have queries of the target {task.name}, but shares"
                    f" {len(shared)}, such as {shared[0]!r}; leave it out"
                )
        tasks = [split_task(other, dev_fraction, seed)[0] for other in others]
        known |= {query for other in others for query in other.queries.values()}
    return Target(task.name, tasks, held_out, frozenset(map(query_key, known)), frozenset(documents))


def open_held_out(
    setting: str, dev_fraction: float = 0.2, seed: int = 0, split: str = "test", allow_unknown: bool = False
) -> RetrievalTask:
    """Open the held-out part of a target: for the report of a `pseudo` run, after its search.

    Args:
        setting: As in `open_target`.
        dev_fraction: As in `open_target`.
        seed: As in `open_target`.
        split: As in `open_target`.
        allow_unknown: As in `open_target`.

    Returns:
        The same queries that `fewshot` holds out.

    Raises:
        ValueError: As in `open_target`.
    """
    return split_task(_open_task(setting, split, seed, allow_unknown), dev_fraction, seed)[1]


def few_shot_slice(query_ids: Iterable[str], fraction: float, seed: int = 0) -> tuple[list[str], list[str]]:
    """Split queries by a hash of their ids: the lowest hashes are the slice.

    Args:
        query_ids: Of the judged queries; their order does not matter.
        fraction: Share of the slice, above 0 and below 1; at least one query is on either side.
        seed: Changes the hash.

    Returns:
        Ids of the slice and of the held-out rest, each sorted; they have none in common.

    Raises:
        ValueError: There are fewer than two queries, or the fraction leaves no room.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"dev_fraction: must lie between 0 and 1, but is {fraction}")
    ids = sorted(set(query_ids), key=lambda name: (_digest(seed, "few-shot", name), name))
    if len(ids) < 2:
        raise ValueError(
            f"target: must have at least 2 judged queries, to measure on one part and report on another, but has"
            f" {len(ids)}; take another split or target"
        )
    count = min(max(1, round(fraction * len(ids))), len(ids) - 1)
    return sorted(ids[:count]), sorted(ids[count:])


def split_task(task: RetrievalTask, fraction: float, seed: int = 0) -> tuple[RetrievalTask, RetrievalTask]:
    """Split a judged collection into few-shot slice and held-out part; both keep the whole corpus.

    Args:
        task: The collection.
        fraction: As in `few_shot_slice`.
        seed: As in `few_shot_slice`.

    Returns:
        The slice and the rest, each with the judgements of its own queries only.

    Raises:
        ValueError: The line names the collection.
    """
    judged = [query for query in task.queries if any(grade > 0 for grade in task.qrels.get(query, {}).values())]
    try:
        parts = few_shot_slice(judged, fraction, seed)
    except ValueError as error:
        raise ValueError(f"{error} ({task.name})") from None
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
    """Make a judged collection from documents alone: a part of a document asks for the rest of it.

    The title asks where there is one. Otherwise a sentence does (inverse cloze; in code a comment, where there is one;
    in texts without sentences a run of ten words). What asks is cut out of its document.

    Args:
        name: Of the collection.
        documents: The corpus by id.
        count: Queries to make; at least 1.
        seed: Of the choice of documents and sentences.

    Returns:
        The corpus, `count` queries or as many as it gives, and one relevant document each.

    Raises:
        ValueError: No document can be cut in two.
    """
    if count < 1:
        raise ValueError(f"pseudo_queries: must be at least 1, but is {count}; 100 to 200 are usual")
    corpus = {each: document.joined for each, document in documents.items()}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    asked: set[str] = set()
    for each in sorted(documents, key=lambda each: (_digest(seed, "pseudo", each), each)):
        if len(queries) == count:
            break
        query, rest = cut(documents[each], _digest(seed, "sentence", each))
        # a query with two answers, of which one counts, would measure chance
        if not query or query_key(query) in asked:
            continue
        asked.add(query_key(query))
        corpus[each] = rest
        queries[f"pseudo:{each}"], qrels[f"pseudo:{each}"] = query, {each: 1}
    if not queries:
        raise ValueError(
            f"target: {name} must have documents of at least {_FEWEST_WORDS + _FEWEST_LEFT} words for signal=pseudo,"
            f" but none of its {len(documents)} can be cut into query and rest; use signal=fewshot"
        )
    return RetrievalTask(name, corpus, queries, qrels)


def cut(document: Document, draw: int) -> tuple[str, str]:
    """Cut a document into a query and the rest.

    Args:
        document: With or without title.
        draw: A number that chooses the sentence, at least 0.

    Returns:
        Query and rest; both empty where the document is too short.
    """
    title, text = document.title.strip(), document.text.strip()
    if title and _words(title) >= 2:
        if text.casefold().startswith(title.casefold()):  # some collections repeat the title
            text = text[len(title) :].strip()
        if _words(text) >= _FEWEST_LEFT:
            return title, text
    pieces = [piece for piece in re.split(r"(?<=[.!?])\s+|\n+", text) if piece.strip()]
    if len(pieces) == 1:
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
    """Reduce a query to what makes it the same query: words, without case, punctuation and blanks.

    Args:
        query: Text.

    Returns:
        The words in lower case.
    """
    return " ".join(re.findall(r"\w+", query.casefold())) or query.strip()


def _open_pseudo(setting: str, count: int, seed: int) -> Target:
    known: set[str] = set()
    if is_path(setting):
        folder = Path(setting).expanduser()
        name, documents = folder.resolve().name, read_corpus(folder)
        # texts only: what is asked is no label, and a source that has it would teach the test
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
    return len(re.findall(r"\w+", text))


def _digest(seed: int, purpose: str, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest()[:8], "big")
