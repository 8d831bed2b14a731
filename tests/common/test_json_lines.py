"""JSON lines: what ends a line and what does not, and one line that names the place of whatever is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saccade.common.json_lines import read_json_lines
from tests.support.errors import one_line

# all that `str.splitlines` takes for the end of a line, beside the newline and the carriage return
BREAKS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    """Writes a file and returns its path."""

    def written(content: bytes) -> Path:
        (tmp_path / "rows.jsonl").write_bytes(content)
        return tmp_path / "rows.jsonl"

    return written


def test_only_a_newline_ends_a_line(file: Callable[[bytes], Path]) -> None:
    rows = [{"text": f"before{mark}after"} for mark in BREAKS if mark >= " "]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    for end in ("\n", "\r\n"):
        for last in ("", end):
            found = list(read_json_lines(file((end.join(lines) + last).encode())))
            assert found == list(enumerate(rows, 1))
    # as escapes, the control characters may stand in a text too
    escaped = [{"text": f"before{mark}after"} for mark in BREAKS]
    assert [row for _, row in read_json_lines(file("\n".join(map(json.dumps, escaped)).encode()))] == escaped


def test_blank_lines_are_counted_and_a_byte_order_mark_is_no_text(file: Callable[[bytes], Path]) -> None:
    content = b'\xef\xbb\xbf\r\n{"a": 1}\n \t\r\n[2]\n\n"\xef\xbb\xbfthree"\nnull'
    wanted = [(2, {"a": 1}), (4, [2]), (6, "\ufeffthree"), (7, None)]
    assert list(read_json_lines(file(content))) == wanted
    for empty in (b"", b"\n\r\n", b"\xef\xbb\xbf"):
        assert list(read_json_lines(file(empty))) == []


def test_whole_surrogate_pairs_and_escaped_backslashes_are_text(file: Callable[[bytes], Path]) -> None:
    lines = [r'{"a": "\ud83d\ude00"}', r'{"a": "C:\\ud83d"}', '{"a": "\U0001f600"}']
    found = [row["a"] for _, row in read_json_lines(file("\n".join(lines).encode()))]
    assert found == ["\U0001f600", "C:\\ud83d", "\U0001f600"]


@pytest.mark.parametrize(
    ("line", "needles"),
    [
        (b'{"a": 1', ("row must be JSON, got invalid JSON (Expecting ',' delimiter at character 8)",)),
        (b'{"a": 1} {"a": 2}', ("got invalid JSON (Extra data at character 10)",)),
        (b'{"a": "\xff"}', ("text must be UTF-8, got byte 0xff at 7 (invalid start byte)",)),
        (b'{"a": "gr\xfc\xdfe"}', ("got byte 0xfc at 9", "save the file as UTF-8")),
        (rb'{"a": "half \ud83d"}', (r"text must have whole characters, got half of one, '\ud83d'",)),
        (rb'{"a": [1, {"b": "\uDE00\uD83D"}]}', (r"got half of one, '\ude00'",)),
        (rb'{"\ud83d": 1}', (r"got half of one, '\ud83d'",)),
        (b'{"a": 1, "b": 2, "a": 3}', ("row must name each key once, got 'a' twice",)),
        (rb'{"\ud83d": 1, "\ud83d": 2}', (r"got '\ud83d' twice",)),
        (b'{"a": {"b": 1, "b": 1}}', ("got 'b' twice",)),
        (b"[" * 200_000, ("too many levels",)),
        (b"9" * 5000, ("Exceeds the limit",)),
        (b'{"a": 1}\r{"a": 2}\r', ("lines end with carriage returns instead of newlines",)),
    ],
)
def test_a_bad_line_is_named(line: bytes, needles: tuple[str, ...], file: Callable[[bytes], Path]) -> None:
    path = file(b'{"a": "fine"}\n\n' + line + b"\n")
    rows = read_json_lines(path)
    assert next(rows) == (1, {"a": "fine"})  # a good line is there before a bad one is read
    one_line(lambda: next(rows), f"{path}, line 3: ", *needles)


def test_files_that_are_no_utf8_or_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "wide.jsonl").write_text('{"a": 1}\n', encoding="utf-16")
    cases: list[tuple[Any, str]] = [
        (tmp_path / "wide.jsonl", "line 1: text must be UTF-8, got UTF-16 or UTF-32: save the file as UTF-8."),
        (tmp_path / "nowhere.jsonl", "(No such file or directory): check the path."),
        (str(tmp_path), "(Is a directory): check the path."),
    ]
    for path, needle in cases:
        one_line(lambda path=path: list(read_json_lines(path)), str(path), needle)  # type: ignore[misc]
