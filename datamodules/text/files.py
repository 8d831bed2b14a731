"""Find the files of a text corpus and decide which part each one belongs to."""

import glob
import hashlib
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PARTS = ("train", "validation", "test")

# `encodings` and `pydoc_data` are machine-made tables: near copies of one another that flatter any loss.
_SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "encodings",
        "idle_test",
        "idlelib",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    }
)


@dataclass(frozen=True)
class CorpusFile:
    """One text of the corpus.

    Attributes:
        name: Path relative to the corpus root, with forward slashes; the only thing the split looks at.
        path: Where the file lies on this machine.
    """

    name: str
    path: Path


def standard_library_files() -> list[CorpusFile]:
    """List the Python standard library's own sources: real text that is there wherever Python is.

    Tests, IDLE, lib2to3, installed packages, generated tables and build settings are left out.

    Returns:
        The files, sorted by name.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        # the build settings hold paths and compiler flags of one machine
        if _SKIPPED_FOLDERS.isdisjoint(relative.parts[:-1]) and not relative.name.startswith("_sysconfigdata"):
            found.append(CorpusFile(relative.as_posix(), path))
    return sorted(found, key=lambda file: file.name)


def matching_files(patterns: Sequence[str]) -> list[CorpusFile]:
    """List the files that match glob patterns.

    A name is relative to the part of its pattern before the first wildcard, so that moving the whole corpus, or adding
    another pattern, does not move files between the parts.

    Args:
        patterns: Globs; `**` matches any number of folders, `~` is the home folder.

    Returns:
        The files, sorted by name, each once.

    Raises:
        ValueError: A pattern matches no file.
    """
    found: dict[Path, CorpusFile] = {}
    for pattern in patterns:
        expanded = Path(pattern).expanduser()
        fixed = []
        for piece in expanded.parts[:-1]:
            if glob.has_magic(piece):
                break
            fixed.append(piece)
        root = Path(*fixed) if fixed else Path()
        paths = [Path(match) for match in glob.glob(str(expanded), recursive=True)]
        files = [path for path in paths if path.is_file()]
        if not files:
            hint = "it is a folder: add /**/*.txt or the like" if expanded.is_dir() else "check the path and the quotes"
            raise ValueError(f"paths: no file matches {pattern!r}; {hint}")
        for path in files:
            found.setdefault(path.resolve(), CorpusFile(path.relative_to(root).as_posix(), path))
    return sorted(found.values(), key=lambda file: (file.name, str(file.path)))


def _position(seed: int, purpose: str, name: str) -> float:
    """Place a name in [0, 1), independently for every purpose and seed."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def select(files: Sequence[CorpusFile], max_files: int | None, max_bytes: int | None, seed: int) -> list[CorpusFile]:
    """Take a deterministic sample of the files.

    Args:
        files: The candidates.
        max_files: Most files to take; None takes all.
        max_bytes: Most bytes to take together; a file that no longer fits is left out. None takes all.
        seed: Changes the sample and the order.

    Returns:
        The chosen files, in an order that depends on their names and the seed only.

    Raises:
        ValueError: No file is left.
    """
    chosen: list[CorpusFile] = []
    total = 0
    for file in sorted(files, key=lambda file: (_position(seed, "order", file.name), str(file.path))):
        size = file.path.stat().st_size
        if size == 0 or (max_bytes is not None and total + size > max_bytes):
            continue
        if max_files is not None and len(chosen) == max_files:
            break
        chosen.append(file)
        total += size
    if not chosen:
        raise ValueError(
            f"max_bytes: no file that is not empty fits into max_bytes={max_bytes}, max_files={max_files}; raise them"
        )
    return chosen


def part_of(name: str, validation_fraction: float, test_fraction: float, seed: int) -> str:
    """Say which part a file belongs to, from its name and the seed alone.

    Other files do not matter: a corpus may grow and no file changes its part.

    Args:
        name: Path relative to the corpus root.
        validation_fraction: Share of the files for validation, 0 to 1.
        test_fraction: Share of the files for the test, 0 to 1.
        seed: Changes the split.

    Returns:
        "train", "validation" or "test".
    """
    position = _position(seed, "split", name)
    if position < test_fraction:
        return "test"
    return "validation" if position < test_fraction + validation_fraction else "train"
