"""Preparing a text corpus: the tokenizer and the tokens of each part, written to a folder in bounded memory."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
from lightning.pytorch import Trainer
from numpy.lib import format as npy
from transformers import PreTrainedTokenizerFast

from saccade.common.progress import progress_bar
from saccade.datamodules.text.encoding import PIECE, Piece, TextEncoder, in_batches
from saccade.datamodules.text.files import PARTS, CorpusFile
from saccade.datamodules.text.reading import Block, Source, examine, text_blocks
from saccade.datamodules.text.splitting import Split
from saccade.datamodules.text.tokenization import train_tokenizer

SAMPLE = 32_000_000
"""Most bytes of the training part that a new tokenizer is trained on, in pieces from all over it."""
DISTINCT = 4_000_000
"""Most bytes of distinct words in it. Training takes about 90 bytes of memory for each, so less text is taken where
nearly all words are new, as in Chinese, where a word is all that stands between two marks, or in DNA."""
MEGABYTE = 1_000_000
_WORD = re.compile(r"\w+")
_WORTH_A_BAR = 5 * MEGABYTE


@dataclass(frozen=True)
class Faults:
    """What was found in the files while they were read.

    Attributes:
        unreadable: For each file with bytes that are no text the place of the first.
        other_cuts: Places where a long text was cut and tokens may differ from those of the whole text.
    """

    unreadable: list[str]
    other_cuts: int


class TokenFile:
    """Writes a one-dimensional `.npy` file of int32 piece by piece; `numpy.load` reads it, also memory-mapped.

    Args:
        path: The file to write.

    Attributes:
        count: Tokens written so far.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.count = 0

    def __enter__(self) -> Self:
        self._file: BinaryIO = self._path.open("wb")
        self._write_header()
        return self

    def append(self, tokens: np.ndarray) -> None:
        """Add tokens, int32 [N], at the end."""
        self._file.write(tokens.astype(np.int32, copy=False).tobytes())
        self.count += len(tokens)

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if kind is None:
            self._file.seek(0)
            self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        # numpy leaves room in the header for the length to grow, so its size does not depend on it
        shape = {"descr": npy.dtype_to_descr(np.dtype(np.int32)), "fortran_order": False, "shape": (self.count,)}
        npy.write_array_header_1_0(self._file, shape)


def examined(files: Sequence[CorpusFile], trainer: Trainer | None = None) -> list[Source]:
    """Read files once for their digests, with a bar where that takes a while.

    Args:
        files: The files.
        trainer: A trainer whose bar may be on screen.

    Returns:
        The files with their states.

    Raises:
        ValueError: A file cannot be read.
    """
    total = sum(file.path.stat().st_size for file in files)
    with _megabytes(total, "looking for changes in the text (MB)", trainer) as advance:
        return [examine(file, advance) for file in files]


def fill(
    folder: Path,
    sources: Sequence[Source],
    split: Split,
    given: PreTrainedTokenizerFast | None,
    vocab_size: int,
    trainer: Trainer | None = None,
) -> Faults:
    """Write `tokenizer/`, unless one is given, and `train.npy`, `validation.npy` and `test.npy` with tokens.

    `test_documents.npy` says which files the test part is made of (see `NamedSequences`).

    Files are read block by block, and tokens are written as they come, so the memory needed does not depend on the size
    of the corpus. While one batch of pieces is encoded, the next is read and the one before is written.

    Args:
        folder: An existing folder to write to.
        sources: The files.
        split: Their parts.
        given: The tokenizer; None trains one on the training part, or on a sample of it if it is longer than `SAMPLE`.
        vocab_size: Size of the vocabulary to train.
        trainer: A trainer whose bar may be on screen.

    Returns:
        What was found in the files.

    Raises:
        ValueError: A file cannot be read, or has changed since it was examined.
    """
    tokenizer = given
    if tokenizer is None:
        with _megabytes(split.size("train"), "training the tokenizer (MB read)", trainer) as advance:
            tokenizer = train_tokenizer(training_sample(sources, split, advance=advance), vocab_size)
        tokenizer.save_pretrained(folder / "tokenizer")
    encoder = TextEncoder(tokenizer)
    unreadable: list[str] = []
    total = sum(source.size for source in sources)
    with ExitStack() as stack:
        advance = stack.enter_context(_megabytes(total, "encoding the text (MB)", trainer))
        files = {part: stack.enter_context(TokenFile(folder / f"{part}.npy")) for part in PARTS}
        pieces = (
            piece
            for number, (source, cuts) in enumerate(zip(sources, split.cuts, strict=True))
            for piece in encoder.pieces(text_blocks(source, cuts, unreadable, advance), number)
        )
        documents: list[tuple[int, int, int]] = []  # of the test part
        number, before = -1, 0  # a file, and its tokens in the other parts
        for piece, tokens in _encoded(encoder, pieces):
            if piece.file != number:
                number, before = piece.file, 0
            files[piece.part].append(tokens)
            if piece.part != "test":
                before += len(tokens) - piece.last  # the end-of-sequence token is not the file's
            elif piece.last:
                documents.append((number, before, files["test"].count))
    np.save(folder / "test_documents.npy", np.array(documents, dtype=np.int64).reshape(-1, 3))
    return Faults(unreadable, encoder.other_cuts)


def training_sample(
    sources: Sequence[Source],
    split: Split,
    most: int = SAMPLE,
    distinct: int = DISTINCT,
    advance: Callable[[int], None] = lambda count: None,
) -> Iterator[str]:
    """The text of the training part, or pieces from all over it where it is longer than wanted.

    Args:
        sources: The files.
        split: Their parts.
        most: Most bytes of text.
        distinct: About the most bytes of distinct words.
        advance: Called with the number of bytes of each block that was read.

    Yields:
        Texts of at most `PIECE` characters, which end at the end of a line where there is one.
    """
    total = split.size("train")
    words: set[int] = set()
    seen = taken = new = 0
    for source, cuts in zip(sources, split.cuts, strict=True):
        if cuts[0][0] != "train":  # a file's training part comes first
            continue
        for text in _whole_lines(_of_training(text_blocks(source, cuts, advance=advance))):
            # both limits are reached at the end only; the beginning, where most words are new, has a quarter in advance
            if taken * total <= seen * most and new <= distinct * (0.25 + 0.75 * seen / total):
                taken += len(text)
                if total > distinct:
                    found = {hash(word): len(word.encode()) for word in _WORD.findall(text)}
                    new += sum(size for word, size in found.items() if word not in words)
                    words.update(found)
                yield text
            seen += len(text)


def _of_training(blocks: Iterable[Block]) -> Iterator[Block]:
    """The blocks of a file's training part; reads nothing behind it."""
    for block in blocks:
        if block.part != "train":
            return
        yield block
        if block.last:
            return


def _whole_lines(blocks: Iterable[Block]) -> Iterator[str]:
    """Cuts text into pieces of at most `PIECE` characters, where possible at the end of a line."""
    rest = ""
    for block in blocks:
        rest += block.text
        start = 0
        while len(rest) - start > PIECE:
            end = rest.rfind("\n", start, start + PIECE) + 1 or start + PIECE
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def _encoded(encoder: TextEncoder, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, np.ndarray]]:
    """Encodes pieces in another thread; reads the next ones and hands out those before meanwhile."""

    def done(batch: list[Piece], tokens: Future[list[np.ndarray]]) -> Iterator[tuple[Piece, np.ndarray]]:
        return zip(batch, tokens.result(), strict=True)

    with ThreadPoolExecutor(1) as pool:
        before = None
        for batch in in_batches(pieces):
            running = (batch, pool.submit(encoder.encode, batch))
            if before is not None:
                yield from done(*before)
            before = running
        if before is not None:
            yield from done(*before)


@contextmanager
def _megabytes(total: int, text: str, trainer: Trainer | None) -> Iterator[Callable[[int], None]]:
    """A bar that counts megabytes and is told bytes; there is none where the work takes a moment only."""
    with progress_bar(-(-total // MEGABYTE), text, trainer, enabled=total >= _WORTH_A_BAR) as bar:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            steps = (done + count) // MEGABYTE - done // MEGABYTE
            done += count
            if steps:
                bar.advance(steps)

        yield advance
