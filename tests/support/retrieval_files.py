"""Writes small retrieval collections and files of pairs for the tests."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from saccade.datamodules.retrieval.files import Pair, RetrievalTask


def write_beir(task: RetrievalTask, folder: Path, header: bool = True) -> Path:
    """Writes a collection in BEIR's layout, with the judgements as split ``test``; returns the folder."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    _write(folder / "corpus.jsonl", ({"_id": name, "title": "", "text": text} for name, text in task.corpus.items()))
    _write(folder / "queries.jsonl", ({"_id": name, "text": text} for name, text in task.queries.items()))
    rows = ["query-id\tcorpus-id\tscore"] if header else []
    rows += [f"{query}\t{name}\t{grade}" for query, judged in task.qrels.items() for name, grade in judged.items()]
    (folder / "qrels" / "test.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def write_pairs(pairs: Iterable[Pair], path: Path) -> Path:
    """Writes pairs as JSON lines; returns the file."""
    return _write(path, ({"query": pair.query, "document": pair.document, "label": pair.label} for pair in pairs))


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
