"""Files that a reader sees whole or not at all."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write an object as indented JSON so that a reader sees the old file or the new one, never a part of it.

    The text goes to a temporary file in the same folder, which then takes the place of ``path``. Missing folders
    are made.

    Args:
        path: File to write.
        obj: Anything that :mod:`json` can write; numbers that JSON does not know (NaN, infinity) are refused.

    Raises:
        ValueError: If the object cannot be written as JSON, or the folder does not take the file. Nothing is left
            behind then.
    """
    target = Path(path)
    try:
        text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot write {target} as JSON: {error}") from error
    write_text(target, text)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write text as UTF-8, whole or not at all; see :func:`write_json`.

    Args:
        path: File to write; missing folders are made.
        text: Its whole content.

    Raises:
        ValueError: If the folder does not take the file.
    """
    target = Path(path)
    temporary: str | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        # mkstemp makes files that only the owner reads; results are to be read like any other file
        os.fchmod(handle, 0o666 & ~_umask())
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(temporary, target)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise ValueError(f"cannot write {target}: {reason}; choose a folder that can be written") from error


def _umask() -> int:
    """The process's file mode mask; the system only tells it in exchange for a new one."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
