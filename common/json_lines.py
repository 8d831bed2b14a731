"""Reading of JSON lines: one JSON value in each line, and a line ends at a newline and nowhere else."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_OTHER_UNICODE = (b"\xff\xfe", b"\xfe\xff")  # how files in UTF-16 and UTF-32 begin


def read_json_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, Any]]:
    r"""Read a file of JSON lines, one line at a time, so that a file of any size needs little memory.

    A line ends with a newline, with or without a carriage return before it. Other characters that end lines in printed
    text, such as U+2028 or U+0085, are part of a text. A byte order mark at the beginning of a line, where joined files
    have one, is no text. Blank lines are left out, but counted.

    Args:
        path: The file, in UTF-8.

    Yields:
        The number of the line, from 1, and its value. A file without any value yields nothing.

    Raises:
        ValueError: The file cannot be read, or a line is not UTF-8, is not JSON, names a key of an object twice, or has
            half of a surrogate pair (`\ud83d` alone), which no file or tokenizer can hold. The message begins with the
            path and the number of the line.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if number == 1 and line.startswith(_OTHER_UNICODE):
                    _fail(file, 1, "text must be UTF-8, got UTF-16 or UTF-32", "save the file as UTF-8")
                content = line.removeprefix(_BYTE_ORDER_MARK).strip()
                if content:
                    yield number, _value(file, number, content)
    except OSError as error:
        raise ValueError(f"cannot read {file} ({error.strerror or error}): check the path.") from error


def _value(file: Path, number: int, line: bytes) -> Any:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        what = f"text must be UTF-8, got byte 0x{line[error.start]:02x} at {error.start} ({error.reason})"
        _fail(file, number, what, "save the file as UTF-8")
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except _RepeatedKeyError as error:
        _fail(file, number, f"row must name each key once, got {error.args[0]!a} twice", "keep one of them")
    except (ValueError, RecursionError) as error:
        what = f"row must be JSON, got invalid JSON ({_reason(error, text)})"
        _fail(file, number, what, "write one value in each line")
    # only an escape can give half of a surrogate pair, because UTF-8 itself has none
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            what = f"text must have whole characters, got half of one, {error.object[error.start]!a}"
            _fail(file, number, what, "write both halves or none")
    return value


class _RepeatedKeyError(Exception):
    """An object names a key twice; of the two values JSON would silently keep the last."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RepeatedKeyError(key)
            seen.add(key)
    return made


def _reason(error: Exception, text: str) -> str:
    if isinstance(error, RecursionError):
        return "too many levels"
    if not isinstance(error, json.JSONDecodeError):
        return str(error).splitlines()[0]
    if "\r" in text.rstrip():
        return "lines end with carriage returns instead of newlines"
    return f"{error.msg} at character {error.pos + 1}"


def _fail(file: Path, number: int, what: str, advice: str) -> NoReturn:
    raise ValueError(f"{file}, line {number}: {what}: {advice}.")
