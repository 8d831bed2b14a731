"""A journal of a search: a file of JSON lines from which an interrupted search resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any


class Journal:
    """An append-only file of JSON lines. The first line describes the search; an incomplete last line is removed.

    Args:
        path: The file; it is created with the first entry.
        header: What the entries depend on, for example model, texts, settings and seed. A file with another header is
            refused.
        preliminary: Kinds of entries that precede the first trial. A file with nothing else may have another header; it
            is then started again.

    Raises:
        ValueError: The file belongs to another search, or is not a journal.
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any], preliminary: Collection[str] = ()) -> None:
        self.path = Path(path)
        self.header = json.loads(json.dumps({"kind": "search", **header}))
        self.entries = self._read(preliminary)

    def find(self, kind: str) -> list[dict[str, Any]]:
        """Return the entries of one kind, oldest first."""
        return [entry for entry in self.entries if entry["kind"] == kind]

    def append(self, kind: str, entry: Mapping[str, Any]) -> None:
        """Add an entry. It is on the disk when this returns.

        Args:
            kind: Kind of the entry.
            entry: Its content, as JSON knows it.

        Raises:
            ValueError: The file cannot be written.
        """
        lines = [] if self.entries else [self.header]
        lines.append({"kind": kind, **entry})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ValueError(
                f"cannot write {self.path} ({error.strerror}): choose a folder that can be written to."
            ) from error
        self.entries.append(json.loads(json.dumps(lines[-1])))

    def _read(self, preliminary: Collection[str]) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        entries = []
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            if not isinstance(entry, dict) or "kind" not in entry:
                raise ValueError(
                    f"line {number} of {self.path} is not an entry of a journal: move the file to start a new search."
                )
            entries.append(entry)
        if all(entry["kind"] in ("search", *preliminary) for entry in entries) and entries[:1] != [self.header]:
            entries = []  # a search that failed before its first trial may be repeated with other settings
        if entries and entries[0] != self.header:
            theirs, ours = entries[0], self.header
            different = sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key))
            raise ValueError(
                f"{self.path} belongs to another search (different: {', '.join(different)}): move the file, or use that"
                " search's settings to resume it."
            )
        if len(entries) <= 1:  # a header without trials is written again with the first entry
            whole = 0
        if whole < len(content):  # the last line was not written completely
            os.truncate(self.path, whole)
        return entries[1:]
