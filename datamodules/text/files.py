"""The files of a text corpus, and the split into training, validation and test part."""

import hashlib
import os
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saccade.datamodules.text.globs import files_matching

PARTS = ("train", "validation", "test")

# `encodings` and `pydoc_data` are generated tables, nearly equal to each other, which would lower any loss
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
    """One file of the corpus.

    Attributes:
        name: Path relative to the corpus root, with forward slashes; the split depends on it alone.
        path: Path on this machine.
    """

    name: str
    path: Path


def standard_library_files() -> list[CorpusFile]:
    """List the sources of the Python standard library, which are installed with Python.

    Tests, IDLE, lib2to3, installed packages, generated tables and build settings are left out.

    Returns:
        The files, sorted by name.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for place, folders, names in os.walk(root):
        folders[:] = [folder for folder in folders if folder not in _SKIPPED_FOLDERS]  # most files are in these
        for name in names:
            # the build settings contain paths and compiler flags of the machine
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                path = Path(place, name)
                found.append(CorpusFile(path.relative_to(root).as_posix(), path))
    return sorted(found, key=lambda file: file.name)


def matching_files(patterns: Sequence[str]) -> list[CorpusFile]:
    """List the files that match glob patterns.

    A file's name is its path relative to the part of the pattern before the first wildcard. So moving the corpus or
    adding a pattern does not move files from one part of the split to another. Each real file is taken once, also where
    several paths lead to it; its name is then the one with the fewest links (see `files_matching`).

    Args:
        patterns: Globs; `**` matches any number of folders, `~` is the home folder.

    Returns:
        The files, sorted by name, each once.

    Raises:
        ValueError: A pattern matches no file.
    """
    found: dict[str, CorpusFile] = {}
    for pattern in patterns:
        files = files_matching(pattern)
        if not files:
            folder = Path(pattern).expanduser().is_dir()
            advice = "add /**/*.txt or another pattern to the folder" if folder else "check the path and the quotes"
            raise ValueError(f"paths must match files, got {pattern!r}, which matches none: {advice}.")
        for name, path, real in files:
            found.setdefault(real, CorpusFile(name, path))
    return sorted(found.values(), key=lambda file: (file.name, str(file.path)))


def hashed_position(seed: int, purpose: str, name: str) -> float:
    """Hash a name to a number in [0, 1), independent for every purpose and seed.

    Args:
        seed: The seed.
        purpose: What the number is for.
        name: The name.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def select(files: Sequence[CorpusFile], max_files: int | None, max_bytes: int | None, seed: int) -> list[CorpusFile]:
    """Choose a deterministic sample of the files.

    Args:
        files: The candidates.
        max_files: Most files to choose; None for all.
        max_bytes: Most bytes of all chosen files together; files that do not fit are left out. None for all.
        seed: Seed of the sample and its order.

    Returns:
        The chosen files, in an order that depends only on their names and the seed.

    Raises:
        ValueError: No file is left.
    """
    chosen: list[CorpusFile] = []
    total = 0
    for file in sorted(files, key=lambda file: (hashed_position(seed, "order", file.name), str(file.path))):
        size = file.path.stat().st_size
        if size == 0 or (max_bytes is not None and total + size > max_bytes):
            continue
        if max_files is not None and len(chosen) == max_files:
            break
        chosen.append(file)
        total += size
    if not chosen:
        raise ValueError(
            f"max_bytes must leave at least one file that is not empty, got {max_bytes} with max_files={max_files}:"
            " raise it, or give other files."
        )
    return chosen


def part_of(name: str, validation_fraction: float, test_fraction: float, seed: int) -> str:
    """Assign a file to a part of the corpus.

    The part depends on the name and the seed alone, so files do not change their part when the corpus grows.

    Args:
        name: Path relative to the corpus root.
        validation_fraction: Share of the files for validation, 0 to 1.
        test_fraction: Share of the files for test, 0 to 1.
        seed: Seed of the split.

    Returns:
        "train", "validation" or "test".
    """
    position = hashed_position(seed, "split", name)
    if position < test_fraction:
        return "test"
    return "validation" if position < test_fraction + validation_fraction else "train"
