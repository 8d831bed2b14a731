"""A vector index as a folder: the vectors in a file of FAISS, the ids and settings in a JSON file."""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

from saccade.common.files import replacing, write_text

FACTS = "index.json"
_FORMAT = 1
_TYPES = {"factory": str, "metric": str, "parameters": str, "ids": list}


def write_index(folder: Path, faiss: Any, index: Any, facts: dict[str, Any]) -> None:
    """Write an index. An interruption at any time leaves the old index or the new one.

    The file of vectors gets a new name, and `index.json`, which holds that name, is replaced atomically.

    Args:
        folder: Made if it does not exist.
        faiss: The package.
        index: The index on the CPU; None if there are no vectors.
        facts: `factory`, `metric`, `parameters` and `ids`.

    Raises:
        ValueError: The folder cannot be written.
    """
    name = digest = None
    if index is not None:
        name = f"vectors-{uuid.uuid4().hex[:16]}.faiss"
        with replacing(folder / name) as temporary:
            faiss.write_index(index, str(temporary))
            digest = _sum(temporary)
    write_text(folder / FACTS, json.dumps({"format": _FORMAT, **facts, "vectors": name, "sha256": digest}))
    for other in folder.glob("vectors-*.faiss"):
        if other.name != name:
            other.unlink(missing_ok=True)


def read_index(folder: Path, faiss: Any) -> tuple[dict[str, Any], Any]:
    """Read an index that `write_index` wrote.

    Args:
        folder: The folder.
        faiss: The package.

    Returns:
        `factory`, `metric`, `parameters` and `ids`; and the index, None if there are no vectors.

    Raises:
        ValueError: A file is missing, was changed, or cannot be read.
    """
    facts = _facts(folder)
    name, ids = facts["vectors"], facts["ids"]
    if name is None:
        if ids:
            raise _broken(folder / FACTS, f"names {len(ids)} documents without vectors")
        return facts, None
    path = folder / Path(str(name)).name
    if not path.is_file():
        raise _broken(path, "is missing")
    if _sum(path) != facts["sha256"]:
        raise _broken(path, "was changed or truncated")
    try:
        index = faiss.read_index(str(path))
    except RuntimeError:
        raise _broken(path, f"cannot be read by faiss {faiss.__version__}") from None
    if index.ntotal != len(ids):
        raise _broken(path, f"holds {index.ntotal} vectors for {len(ids)} documents")
    return facts, index


def _facts(folder: Path) -> dict[str, Any]:
    """Read and check the JSON file."""
    path = folder / FACTS
    try:
        facts = json.loads(path.read_text())
    except FileNotFoundError:
        raise _broken(path, "is missing") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        raise _broken(path, "cannot be read as JSON") from None
    if not isinstance(facts, dict) or facts.get("format") != _FORMAT:
        raise _broken(path, f"is not of format {_FORMAT}")
    for key, kind in _TYPES.items():
        if not isinstance(facts.get(key), kind):
            raise _broken(path, f"has no usable {key!r}")
    ids = facts["ids"]
    if not all(isinstance(item, str) for item in ids) or len(set(ids)) != len(ids):
        raise _broken(path, "has ids that are not strings or not unique")
    if "vectors" not in facts or "sha256" not in facts:
        raise _broken(path, "does not name the file of vectors")
    return facts


def _sum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _broken(path: Path, how: str) -> ValueError:
    """The error about a file of the index."""
    return ValueError(f"folder must hold an index written by VectorIndex.save, and {path} {how}: save the index again.")
