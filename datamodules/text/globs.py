"""The files that a glob matches: each real file once, also where links lead in a circle."""

import fnmatch
import glob
import heapq
import os
from collections.abc import Iterator
from pathlib import Path


def files_matching(pattern: str) -> list[tuple[str, Path, str]]:
    """Find the files that a glob matches.

    Globs mean what they mean for `glob.glob`: `**` matches any number of folders, and names that begin with a dot need
    a pattern that does. Unlike there, `**` enters every real folder once, so that links in a circle end. A file that
    several paths lead to is named by the path with the fewest links, then the fewest folders, then the first in the
    alphabet.

    Args:
        pattern: The glob; `~` is the home folder.

    Returns:
        For each real file its name (the path relative to the part of the pattern before the first wildcard, with
        forward slashes), its path, and its real path. The order is that of the real paths.
    """
    root, pieces = _divided(Path(pattern).expanduser())
    found: dict[str, tuple[int, int, str]] = {}
    entered: set[tuple[int, str]] = set()
    # places to look at: links on the way, depth, name, how many pieces are matched, real path; best names first
    queue = [(0, 0, "", 0, os.path.realpath(root))]
    while queue:
        links, depth, name, index, real = heapq.heappop(queue)
        if (index, real) in entered:
            continue
        entered.add((index, real))
        any_depth = pieces[index] == "**"
        if any_depth:
            heapq.heappush(queue, (links, depth, name, index + 1, real))
        last = index + 1 == len(pieces)
        for child, link in _children(root / name, pieces[index], folders=not last):
            target = os.path.realpath(root / name / child) if link else os.path.join(real, child)
            rank = (links + link, depth + 1, f"{name}/{child}" if name else child)
            if last:
                found[target] = min(found.get(target, rank), rank)
            else:
                heapq.heappush(queue, (*rank, index if any_depth else index + 1, target))
    return [(name, root / name, real) for real, (_, _, name) in sorted(found.items())]


def _divided(pattern: Path) -> tuple[Path, list[str]]:
    """The folder before the first wildcard, and the pieces after it, of which the last is not `**`."""
    parts = pattern.parts
    fixed = next((place for place, part in enumerate(parts[:-1]) if glob.has_magic(part)), max(len(parts) - 1, 0))
    pieces = list(parts[fixed:]) or ["."]
    if pieces[-1] == "**":
        pieces.append("*")
    return Path(*parts[:fixed]), [
        piece for place, piece in enumerate(pieces) if piece != "**" or pieces[place - 1 : place] != ["**"]
    ]


def _children(folder: Path, piece: str, folders: bool) -> Iterator[tuple[str, bool]]:
    """The names in a folder that a piece of a glob matches, of folders or of files, and whether each is a link."""
    if not glob.has_magic(piece):
        path = folder / piece
        if path.is_dir() if folders else path.is_file():
            yield piece, path.is_symlink() or piece == ".."  # of both the real path must be asked for
        return
    wanted = "*" if piece == "**" else piece
    try:
        entries = list(os.scandir(folder))
    except OSError:  # it vanished, or may not be read: glob passes over it too
        return
    for entry in entries:
        if entry.name.startswith(".") and not wanted.startswith("."):
            continue
        if not fnmatch.fnmatch(entry.name, wanted):
            continue
        try:
            fits = entry.is_dir() if folders else entry.is_file()
        except OSError:  # a link that leads to itself
            continue
        if fits:
            yield entry.name, entry.is_symlink()
