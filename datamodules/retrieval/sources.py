"""Labelled sources of training pairs: read, kept apart from the target, and cut into equal chunks."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from saccade.datamodules.retrieval.docstrings import docstring_pairs
from saccade.datamodules.retrieval.files import Pair, read_beir, read_pairs
from saccade.datamodules.retrieval.targets import Target, is_path, query_key

_TRIES = 20  # draws for a negative, before a query that nearly all documents answer goes without


@dataclass(frozen=True)
class Source:
    """One source.

    Args:
        name: Of the folder, file or package.
        setting: As it was given.
        kind: `beir`, `pairs` or `package`.
        pairs: In the order in which they were read.
        dropped: Pairs left out because the target has the query or the document.
        corpus: All documents, where there are more than those of the pairs.
    """

    name: str
    setting: str
    kind: Literal["beir", "pairs", "package"]
    pairs: list[Pair]
    dropped: int = 0
    corpus: tuple[str, ...] = field(default=(), repr=False)

    @property
    def documents(self) -> list[str]:
        """Every document once, those of the pairs first."""
        return list(dict.fromkeys([*(pair.document for pair in self.pairs), *self.corpus]))

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 sum of all pairs."""
        rows = hashlib.sha256()
        for pair in self.pairs:
            rows.update(json.dumps([pair.query, pair.document, pair.label]).encode())
        return rows.hexdigest()


def read_source(
    setting: str,
    split: str = "test",
    negatives: int = 0,
    seed: int = 0,
    max_pairs_per_package: int = 1280,
    keep_instruction: bool = False,
    allow_unknown: bool = False,
) -> Source:
    """Read a source.

    Args:
        setting: BEIR folder, file of JSON lines, or package; what has a slash, dot or tilde is a path.
        split: Judgements of a BEIR folder.
        negatives: Random documents with label 0 for each positive pair, where a source has only positives.
        seed: Of those documents.
        max_pairs_per_package: Reading a package stops after so many.
        keep_instruction: Leave BERRI's instructions in the queries.
        allow_unknown: Accept judgements of documents that the corpus lacks; they give no pair.

    Returns:
        The source; graded judgements count as positive above 0.

    Raises:
        ValueError: A file is missing or broken, or no pair is positive.
    """
    if not is_path(setting):
        pairs = docstring_pairs(setting, max_pairs_per_package)
        return Source(setting, setting, "package", _with_negatives(pairs, [], negatives, seed, setting))
    path = Path(setting).expanduser()
    if path.is_dir():
        task = read_beir(path, split, allow_unknown)
        pairs = [
            Pair(task.queries[query], task.corpus[document], 1)
            for query, judged in task.qrels.items()
            for document, grade in judged.items()
            if grade > 0 and document in task.corpus
        ]
        source = Source(task.name, setting, "beir", pairs, corpus=tuple(task.corpus.values()))
        documents = list(task.corpus.values())
    elif path.is_file():
        source = Source(path.stem, setting, "pairs", read_pairs(path, keep_instruction))
        documents = []
    else:
        raise ValueError(f"sources: {setting} must be a BEIR folder or a file of JSON lines, but is missing; check it")
    if not any(pair.label for pair in source.pairs):
        raise ValueError(f"sources: {setting} must have a positive pair, but has none; leave the source out")
    return replace(source, pairs=_with_negatives(source.pairs, documents, negatives, seed, source.name))


def without_shared(source: Source, target: Target, drop: bool = False) -> Source:
    """Keep a source apart from a target.

    Args:
        source: Of packages, pairs that have a query or a document of the target are always dropped: their ready-made
            sentences repeat.
        target: What is measured.
        drop: Drop such pairs of files too, instead of refusing the source.

    Returns:
        The source without them.

    Raises:
        ValueError: A source of files has queries of the target; the line names some.
    """
    package = source.kind == "package"
    shared = [query_key(pair.query) in target.known for pair in source.pairs]
    if any(shared) and not package and not drop:
        texts = list(dict.fromkeys(pair.query for pair, hit in zip(source.pairs, shared, strict=True) if hit))
        shown = ", ".join(repr(text if len(text) <= 60 else f"{text[:57]}...") for text in texts[:3])
        more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
        raise ValueError(
            f"sources: {source.name} must not have queries of the target {target.name}, but shares {len(texts)}:"
            f" {shown}{more}; leave the source out, or set shared_queries=drop"
        )
    kept = [
        pair
        for pair, hit in zip(source.pairs, shared, strict=True)
        if not hit and not (package and pair.document in target.documents)
    ]
    if not any(pair.label for pair in kept):
        raise ValueError(
            f"sources: {source.name} must have positive pairs that the target {target.name} has not, but has none;"
            " leave the source out"
        )
    return replace(source, pairs=kept, dropped=len(source.pairs) - len(kept))


class Chunks:
    """Sources cut into chunks of one size, each source shuffled once.

    Args:
        sources: With different names.
        size: Pairs per chunk; only the last of a source may be shorter.
        seed: Of the permutations. A source keeps its own when others come or go.

    Raises:
        ValueError: A source is smaller than a chunk, or two have the same name.
    """

    def __init__(self, sources: Sequence[Source], size: int, seed: int = 0) -> None:
        self.sources, self.size, self.seed = list(sources), size, seed
        self.permutations: list[np.ndarray] = []
        names: set[str] = set()
        for source in self.sources:
            if source.name in names:
                raise ValueError(f"sources: names must differ, but two are {source.name!r}; rename a file or folder")
            if len(source.pairs) < size:
                raise ValueError(
                    f"chunk_size: must not exceed a source's pairs, but is {size} and {source.name} has"
                    f" {len(source.pairs)}; lower it, or leave the source out"
                )
            names.add(source.name)
            number = int.from_bytes(hashlib.sha256(source.name.encode()).digest()[:8], "big")
            self.permutations.append(np.random.default_rng([seed, number]).permutation(len(source.pairs)))

    @property
    def counts(self) -> list[int]:
        """Chunks of each source: its pairs by the chunk size, rounded up."""
        return [-(-len(source.pairs) // self.size) for source in self.sources]

    def places(self, source: int, number: int) -> np.ndarray:
        """Find the pairs of a chunk.

        Args:
            source: Number of the source.
            number: Of the chunk.

        Returns:
            Their places among the source's pairs, int [size].

        Raises:
            ValueError: There is no such chunk.
        """
        if not 0 <= source < len(self.sources):
            raise ValueError(f"source: must lie between 0 and {len(self.sources) - 1}, but is {source}; see names")
        if not 0 <= number < self.counts[source]:
            raise ValueError(
                f"chunk: must lie between 0 and {self.counts[source] - 1} in {self.sources[source].name}, but is"
                f" {number}; see chunks_per_source"
            )
        return self.permutations[source][number * self.size : (number + 1) * self.size]

    def pairs(self, source: int, number: int) -> list[Pair]:
        """Give the pairs of a chunk.

        Args:
            source: Number of the source.
            number: Of the chunk.

        Returns:
            The pairs.

        Raises:
            ValueError: There is no such chunk.
        """
        return [self.sources[source].pairs[place] for place in self.places(source, number)]

    def manifest(self) -> dict[str, Any]:
        """Describe the cut, ready for JSON: seed, chunk size, and for each source its content's sum and permutation."""
        return {
            "seed": self.seed,
            "chunk_size": self.size,
            "sources": [
                {
                    "name": source.name,
                    "setting": source.setting,
                    "kind": source.kind,
                    "pairs": len(source.pairs),
                    "positives": sum(pair.label for pair in source.pairs),
                    "dropped": source.dropped,
                    "sha256": source.digest,
                    "chunks": count,
                    "permutation": permutation.tolist(),
                }
                for source, count, permutation in zip(self.sources, self.counts, self.permutations, strict=True)
            ],
        }


def _with_negatives(pairs: list[Pair], documents: list[str], negatives: int, seed: int, name: str) -> list[Pair]:
    """Each positive pair followed by random documents that its query was not judged for."""
    if not negatives or not all(pair.label for pair in pairs):
        return pairs
    documents = documents or list(dict.fromkeys(pair.document for pair in pairs))
    answers: dict[str, set[str]] = {}
    for pair in pairs:
        answers.setdefault(pair.query, set()).add(pair.document)
    draw = np.random.default_rng([seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"), 1])
    mixed = []
    for pair in pairs:
        mixed.append(pair)
        taken = set(answers[pair.query])
        for _ in range(negatives):
            for _ in range(_TRIES):
                document = documents[int(draw.integers(len(documents)))]
                if document not in taken:
                    taken.add(document)
                    mixed.append(Pair(pair.query, document, 0))
                    break
    return mixed
