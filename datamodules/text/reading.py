"""Text files, read in blocks: what they hold as text, without byte order marks, divided among the parts of a split."""

import codecs
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

from saccade.datamodules.text.files import CorpusFile

BLOCK_BYTES = 1 << 18
_REACH = 4096  # characters before the end of a part in which a better place for the cut is looked for

# the first that fits: the mark of UTF-32 begins with that of UTF-16
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Source:
    """A file and the state in which it was first read.

    Attributes:
        file: The file.
        digest: SHA-256 of its content.
        size: In bytes.
        changed: When its content was last changed, in nanoseconds.
    """

    file: CorpusFile
    digest: str
    size: int
    changed: int


@dataclass(frozen=True)
class Block:
    """A piece of the text of a file.

    Attributes:
        part: The part of the split that it belongs to.
        text: The text; it may be empty in a last block.
        last: Whether the file has no more text in this part.
    """

    part: str
    text: str
    last: bool


def examine(file: CorpusFile, advance: Callable[[int], None] = lambda count: None) -> Source:
    """Read a file once for its digest.

    Args:
        file: The file.
        advance: Called with the number of bytes of each block that was read.

    Returns:
        The file with its state.

    Raises:
        ValueError: The file cannot be read.
    """
    digest = hashlib.sha256()
    size = 0
    with _opened(file) as handle:
        changed = os.fstat(handle.fileno()).st_mtime_ns
        while block := handle.read(1 << 22):
            digest.update(block)
            size += len(block)
            advance(len(block))
    return Source(file, digest.hexdigest(), size, changed)


def text_blocks(
    source: Source,
    cuts: Sequence[tuple[str, int]],
    unreadable: list[str] | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Iterator[Block]:
    """Read the text of a file in blocks, as UTF-8, or as UTF-16 or UTF-32 if it begins with their byte order mark.

    Byte order marks are left out, line ends stay as they are. Invalid bytes, and halves of surrogate pairs, become
    U+FFFD. Where a file is cut into parts, the cut is moved back a little: behind the end of a line, else before a
    blank.

    Args:
        source: The file.
        cuts: Its parts in their order, each with the byte at which it ends.
        unreadable: Is given the place of the first invalid byte of the file, in words.
        advance: Called with the number of bytes of each block that was read.

    Yields:
        The blocks; each part that has text ends with one that is marked as the last.

    Raises:
        ValueError: The file cannot be read, has changed since `examine`, or is UTF-16 without byte order mark.
    """
    smallest = min(end - start for start, end in pairwise([0, *(end for _, end in cuts)]))
    with _opened(source.file) as handle:
        text = _Text(source, handle, advance)
        kept = ""  # the end of what was read, in which the next cut may lie
        for part, end in cuts:
            inner = end < source.size
            reach = min(_REACH, max(smallest // 4, 1)) if inner else 0
            begun = False
            for read in text.up_to(end):
                kept += read
                if len(kept) > reach:
                    begun = True
                    yield Block(part, kept[: len(kept) - reach], False)
                    kept = kept[len(kept) - reach :]
            place = _cut(kept) if inner else len(kept)
            if begun or place:
                yield Block(part, kept[:place], True)
            kept = kept[place:]
        state = os.fstat(handle.fileno())
    if (state.st_size, state.st_mtime_ns) != (source.size, source.changed):
        raise ValueError(
            f"paths must name files that do not change while they are read, got {source.file.path}, which did: run it"
            " again when nothing writes to the file."
        )
    if text.invalid is not None and unreadable is not None:
        unreadable.append(f"{source.file.path}, line {text.invalid}")


class _Text:
    """Decodes a file from its beginning on."""

    def __init__(self, source: Source, handle: BinaryIO, advance: Callable[[int], None]) -> None:
        start = handle.read(BLOCK_BYTES)
        handle.seek(0)
        codec = next((codec for mark, codec in _MARKS if start.startswith(mark)), "utf-8")
        if codec == "utf-8" and start.count(0) * 4 > len(start):
            raise ValueError(
                f"paths must name text files, got {source.file.path}, many bytes of which are 0, as in UTF-16 without a"
                " byte order mark: save it as UTF-8, or leave it out."
            )
        self._decoder = codecs.getincrementaldecoder(codec)()
        self._handle, self._size, self._advance = handle, source.size, advance
        self._place = self._lines = 0
        self._begun = False
        self.invalid: int | None = None
        """The line of the first invalid byte, from 1; None while there is none."""

    def up_to(self, end: int) -> Iterator[str]:
        """The text from the end of the last call to a byte; an incomplete character is left for the next call."""
        while self._place < end:
            content = self._handle.read(min(BLOCK_BYTES, end - self._place))
            if not content:  # the file has become shorter
                break
            self._place += len(content)
            self._advance(len(content))
            text = self._decoded(content, final=self._place == self._size)
            if not self._begun:
                text = text.lstrip("\ufeff")
                self._begun = bool(text)
            yield text

    def _decoded(self, content: bytes, final: bool) -> str:
        state = self._decoder.getstate()
        try:
            text = self._decoder.decode(content, final)
        except UnicodeDecodeError as error:
            before = error.object[: error.start].decode(error.encoding, "replace")
            self.invalid = self._lines + before.count("\n") + 1
            self._decoder.setstate(state)
            self._decoder.errors = "replace"
            text = self._decoder.decode(content, final)
        if self.invalid is None:
            self._lines += text.count("\n")
        return text


def _cut(text: str) -> int:
    """The best place for a cut near the end of a text: behind the last end of a line, else before the last blank."""
    if line := text.rfind("\n") + 1:
        return line
    blanks = (place for place in range(len(text) - 1, 0, -1) if text[place].isspace())
    return next(blanks, len(text))


@contextmanager
def _opened(file: CorpusFile) -> Iterator[BinaryIO]:
    """A file, opened for reading; errors of the operating system become one line that names it."""
    try:
        with file.path.open("rb") as handle:
            yield handle
    except OSError as error:
        raise ValueError(
            f"paths must name files that can be read, got {file.path} ({error.strerror or error}): change its"
            " permissions, or leave it out."
        ) from error
