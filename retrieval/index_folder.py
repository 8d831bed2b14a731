"""A vector index as files: the vectors as FAISS writes them, and beside them the ids and settings as JSON."""

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
    """Write an index; a stop at any moment leaves the old state or the new one.

    The file of vectors is named by its content, and `index.json`, which names it, is put in place by one rename.

    Args:
        folder: Made when there is none.
        faiss: The package.
        index: On the CPU, or None when there is no vector yet.
        facts: `factory`, `metric`, `parameters` and `ids`.

    Raises:
        ValueError: The folder cannot be made.
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
    """Read what `write_index` wrote.

    Args:
        folder: Where it is.
        faiss: The package.

    Returns:
        `factory`, `metric`, `parameters` and `ids`, and the index, None when there was no vector.

    Raises:
        ValueError: Something is missing or was changed.
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
        raise _broken(path, "was changed or cut off since it was written")
    try:
        index = faiss.read_index(str(path))
    except RuntimeError:
        raise _broken(path, f"cannot be read by faiss {faiss.__version__}") from None
    if index.ntotal != len(ids):
        raise _broken(path, f"holds {index.ntotal} vectors for {len(ids)} documents")
    return facts, index


def _facts(folder: Path) -> dict[str, Any]:
    """The content of the JSON file, checked."""
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
        raise _broken(path, "has ids that are no strings or come twice")
    if "vectors" not in facts or "sha256" not in facts:
        raise _broken(path, "does not name the file of vectors")
    return facts


def _sum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _broken(path: Path, how: str) -> ValueError:
    """The one line."""
    return ValueError(f"folder: must hold an index as VectorIndex.save wrote it, but {path} {how}; save it again")
