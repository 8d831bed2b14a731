"""Labelled sources of training pairs: reading, removal of what the target has, and cutting into equal chunks."""

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

_TRIES = 20  # draws for a negative; a query that nearly all documents answer may get none


@dataclass(frozen=True)
class Source:
    """A labelled source of training pairs.

    Args:
        name: Name of the folder, file or package.
        setting: The setting from which it was read.
        kind: `beir`, `pairs` or `package`.
        pairs: In the order in which they were read.
        dropped: Number of pairs left out because the target has the query or the document.
        corpus: All documents, if there are more than those of the pairs.
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
        """SHA-256 of all pairs."""
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
        setting: BEIR folder, file of JSON lines, or package; a text with a slash, dot or tilde is a path.
        split: Judgements of a BEIR folder.
        negatives: Random documents with label 0 for each positive pair, if the source has only positive pairs.
        seed: Seed of the choice of those documents.
        max_pairs_per_package: Most pairs to read from a package.
        keep_instruction: Keep the instructions of BERRI in the queries.
        allow_unknown: Ignore judgements of documents that the corpus lacks, instead of refusing them.

    Returns:
        The source; grades above 0 are positive.

    Raises:
        ValueError: A file is missing or invalid, or no pair is positive.
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
        raise ValueError(f"sources must be BEIR folders or files of JSON lines, got {setting}: check the path.")
    if not any(pair.label for pair in source.pairs):
        raise ValueError(f"sources must have a positive pair, got none in {setting}: leave the source out.")
    return replace(source, pairs=_with_negatives(source.pairs, documents, negatives, seed, source.name))


def without_shared(source: Source, target: Target, drop: bool = False) -> Source:
    """Remove pairs that the target has, too.

    Args:
        source: The source. From a package, pairs with a query or a document of the target are always removed, because
            packages have sentences in common.
        target: The target.
        drop: Remove pairs with a query of the target from a source of files, instead of refusing the source.

    Returns:
        The source without those pairs.

    Raises:
        ValueError: A source of files has queries of the target, or no positive pair is left.
    """
    package = source.kind == "package"
    shared = [query_key(pair.query) in target.known for pair in source.pairs]
    if any(shared) and not package and not drop:
        texts = list(dict.fromkeys(pair.query for pair, hit in zip(source.pairs, shared, strict=True) if hit))
        shown = ", ".join(repr(text if len(text) <= 60 else f"{text[:57]}...") for text in texts[:3])
        more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
        raise ValueError(
            f"sources must not have queries of the target {target.name}, got {len(texts)} in {source.name} ({shown}"
            f"{more}): leave the source out, or set shared_queries=drop."
        )
    kept = [
        pair
        for pair, hit in zip(source.pairs, shared, strict=True)
        if not hit and not (package and pair.document in target.documents)
    ]
    if not any(pair.label for pair in kept):
        raise ValueError(
            f"sources must have positive pairs that the target {target.name} lacks, got none in {source.name}: leave"
            " the source out."
        )
    return replace(source, pairs=kept, dropped=len(source.pairs) - len(kept))


class Chunks:
    """Sources, each shuffled once and cut into chunks of equal size.

    Args:
        sources: With different names.
        size: Pairs in each chunk; only the last chunk of a source may have fewer. A smaller source is one chunk.
        seed: Seed of the permutations. The permutation of a source does not depend on the other sources.

    Raises:
        ValueError: Two sources have the same name.
    """

    def __init__(self, sources: Sequence[Source], size: int, seed: int = 0) -> None:
        self.sources, self.size, self.seed = list(sources), size, seed
        self.permutations: list[np.ndarray] = []
        names: set[str] = set()
        for source in self.sources:
            if source.name in names:
                raise ValueError(f"sources must have different names, got {source.name!r} twice: rename one.")
            names.add(source.name)
            number = int.from_bytes(hashlib.sha256(source.name.encode()).digest()[:8], "big")
            self.permutations.append(np.random.default_rng([seed, number]).permutation(len(source.pairs)))

    def check_sizes(self) -> None:
        """Refuse a source that is smaller than a chunk, because only chunks of one size can be compared.

        Raises:
            ValueError: There is such a source.
        """
        for source in self.sources:
            if len(source.pairs) < self.size:
                raise ValueError(
                    f"chunk_size must be at most {len(source.pairs)}, the pairs of {source.name}, got {self.size}:"
                    " lower it, or leave the source out."
                )

    @property
    def counts(self) -> list[int]:
        """Number of chunks of each source: its pairs divided by the chunk size, rounded up."""
        return [-(-len(source.pairs) // self.size) for source in self.sources]

    def places(self, source: int, number: int) -> np.ndarray:
        """Return the indices of the pairs of a chunk.

        Args:
            source: Index of the source.
            number: Index of the chunk.

        Returns:
            Indices into the pairs of the source, int [size].

        Raises:
            ValueError: There is no such chunk.
        """
        if not 0 <= source < len(self.sources):
            raise ValueError(f"source must be from 0 to {len(self.sources) - 1}, got {source}: see names.")
        if not 0 <= number < self.counts[source]:
            raise ValueError(
                f"chunk must be from 0 to {self.counts[source] - 1} in {self.sources[source].name}, got {number}: see"
                " chunks_per_source."
            )
        return self.permutations[source][number * self.size : (number + 1) * self.size]

    def pairs(self, source: int, number: int) -> list[Pair]:
        """Return the pairs of a chunk.

        Args:
            source: Index of the source.
            number: Index of the chunk.

        Returns:
            The pairs.

        Raises:
            ValueError: There is no such chunk.
        """
        return [self.sources[source].pairs[place] for place in self.places(source, number)]

    def manifest(self) -> dict[str, Any]:
        """Describe the chunks for JSON: seed, chunk size, and the digest and permutation of each source."""
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
    """Each positive pair, followed by pairs of its query with random documents for which it has no judgement."""
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
