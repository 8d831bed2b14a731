"""A tiny pool for the tests of TraitSelection: two sources that help on the target, and one that harms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saccade.datamodules.retrieval.chunk_pool import ChunkPool
from saccade.datamodules.retrieval.files import Pair, RetrievalTask
from tests.support.retrieval_files import write_beir, write_pairs

THINGS = ("apple", "river", "train", "cloud", "stone", "tiger", "violin", "window", "garden", "bridge")
STORY = "It has been there for as long as anybody in that place can remember it."


def corpus(colour: str, count: int) -> list[str]:
    return [
        f"{colour} {THINGS[place % 10]} {THINGS[place * 7 % 10]} lies at number{place}. {STORY}"
        for place in range(count)
    ]


def asked(place: int, count: int) -> str:
    """Two things that lie together in one document, and the number of another, which BM25 finds as good."""
    return f"{THINGS[place % 10]} {THINGS[place * 7 % 10]} number{(place + 1) % count}"


def make_pool(folder: Path, **settings: Any) -> ChunkPool:
    """Three sources of 24 pairs in chunks of 8, and 30 queries of the target, written into the folder."""
    for colour in ("red", "green", "blue"):
        texts = corpus(colour, 24)
        # where red and green mean the things, blue means the number: it harms
        shift = 1 if colour == "blue" else 0
        pairs = [Pair(f"{colour} {asked(place, 24)}", texts[(place + shift) % 24], 1) for place in range(24)]
        write_pairs(pairs, folder / f"{colour}.jsonl")
    documents = {f"d{place}": text for place, text in enumerate(corpus("white", 30))}
    queries = {f"q{place}": asked(place, 30) for place in range(30)}
    task = RetrievalTask("white", documents, queries, {f"q{place}": {f"d{place}": 1} for place in range(30)})
    write_beir(task, folder / "white")
    files = [str(folder / f"{colour}.jsonl") for colour in ("red", "green", "blue")]
    given = {"chunk_size": 8, "passes": 2, "batch_size": 4, "dev_fraction": 0.4, "hard_negatives": 3}
    return ChunkPool(files, str(folder / "white"), **given | settings)
