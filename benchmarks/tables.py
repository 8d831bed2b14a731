"""Writes the tables of README and docs from the committed rows.

    python -m benchmarks.tables [--check]

A page asks for a table with the lines ``<!-- table NAME -->`` and ``<!-- end -->``; what is between them is replaced.
Each folder of benchmarks has the functions that make its tables in its ``tables.py``, as ``TABLES``.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

from saccade.common.files import write_text

ROOT = Path(__file__).parent.parent
MARKED = re.compile(r"<!-- table (\w+) -->\n.*?<!-- end -->", flags=re.DOTALL)


def pages_with_tables(root: Path) -> tuple[Path, ...]:
    """The README and the pages of ``docs`` that ask for a table."""
    pages = (root / "README.md", *sorted((root / "docs").rglob("*.md")))
    return tuple(page for page in pages if MARKED.search(page.read_text(encoding="utf-8")))


def tables_of_folders() -> dict[str, Callable[[], str]]:
    """The tables of all folders of benchmarks by name.

    Raises:
        ValueError: Two folders have a table of the same name.
    """
    found: dict[str, Callable[[], str]] = {}
    for path in sorted(Path(__file__).parent.glob("*/tables.py")):
        tables = importlib.import_module(f"benchmarks.{path.parent.name}.tables").TABLES
        if twice := sorted(set(found) & set(tables)):
            raise ValueError(f"The table {twice[0]} of {path.parent.name} has another folder's name: rename it.")
        found |= tables
    return found


PAGES = pages_with_tables(ROOT)
TABLES = tables_of_folders()


def render(text: str) -> str:
    """A page's text with every table made anew.

    Raises:
        ValueError: The page asks for a table that no folder has.
    """

    def block(match: re.Match[str]) -> str:
        if match[1] not in TABLES:
            raise ValueError(f"table must be one of {', '.join(sorted(TABLES))}, got {match[1]}: mend the page.")
        return f"<!-- table {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return MARKED.sub(block, text)


def main() -> int:
    """Writes the tables, or with ``--check`` compares them and returns 1 when a page is stale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare; exit status 1 when a page is stale")
    chosen = parser.parse_args()
    stale = 0
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = render(old)
        if old == new:
            continue
        if chosen.check:
            sys.stderr.write(f"{page.relative_to(ROOT)} differs from benchmarks/results: run 'make tables'.\n")
            stale = 1
        else:
            write_text(page, new)
    return stale


if __name__ == "__main__":
    sys.exit(main())
