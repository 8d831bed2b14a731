"""Atomic writing: a reader sees the old file or folder, or the new one, never a part of it."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_ADVICE = "choose a folder that can be written to"


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file under a temporary name beside its place, and move it there when it is complete.

    If the block fails, the temporary file is removed and the file at ``path``, if any, stays as it was. Do nothing
    but the writing in the block: its ``OSError`` is reported as a failure to write ``path``.

    Args:
        path: File to write or to replace; missing folders are made.

    Yields:
        The temporary file: empty, in the same folder, with the same suffix, readable like any other new file.

    Raises:
        ValueError: The file cannot be written.

    Example:
        >>> with replacing("weights.pt") as temporary:
        ...     torch.save(state, temporary)
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{uuid.uuid4().hex}{target.suffix}")
    with _reported(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch(exist_ok=False)
            yield temporary
            _flush(temporary)
            os.replace(temporary, target)
        finally:
            if temporary.exists():
                temporary.unlink()


@contextmanager
def replacing_folder(path: str | os.PathLike[str], keep: bool = False, advice: str = _ADVICE) -> Iterator[Path]:
    """Fill a folder under a temporary name beside its place, and rename it when it is complete; see ``replacing``.

    Args:
        path: Folder to make or to replace, with all that is in it; missing parents are made.
        keep: If the folder exists when the new one is complete, keep it and drop the new one. For caches that several
            processes may fill with the same content at the same time.
        advice: The end of the error: what to do about a folder that cannot be written.

    Yields:
        The temporary folder, empty.

    Raises:
        ValueError: The folder cannot be written.
    """
    target = Path(path)
    temporary, old = (target.with_name(f".{target.name}.{uuid.uuid4().hex}") for _ in range(2))
    with _reported(target, advice):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush(file)
            if not keep:
                if target.exists():
                    os.replace(target, old)
                os.replace(temporary, target)
                return
            try:
                os.rename(temporary, target)
            except OSError:
                if not target.is_dir():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write text as UTF-8; see ``replacing``.

    Args:
        path: File to write or to replace; missing folders are made.
        text: Its whole content. Line ends are written as they are.

    Raises:
        ValueError: The file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write an object as indented JSON; see ``replacing``.

    Args:
        path: File to write or to replace; missing folders are made.
        obj: Anything that :mod:`json` can write; numbers that JSON does not know (NaN, infinity) are refused.

    Raises:
        ValueError: The object cannot be written as JSON, or the file cannot be written.
    """
    try:
        text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot write {path} as JSON ({error}): use numbers, strings, lists and dicts.") from error
    write_text(path, text)


@contextmanager
def _reported(target: Path, advice: str = _ADVICE) -> Iterator[None]:
    """Raises errors of the operating system as one line that names the place."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"cannot write {target} ({reason}): {advice}.") from error


def _flush(file: Path) -> None:
    """Waits until the content of a file is on the disk."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
