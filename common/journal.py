"""The trial log of a search: one JSON object a line, so that a search that stopped goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TrialLog:
    """An append-only file. Its first line says what was searched; a torn last line is cut off.

    Args:
        path: The file; it is created with the first entry.
        header: What must be the same for the entries to mean the same: model, texts, settings, seed.

    Raises:
        ValueError: The file belongs to another search, or is no trial log.
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.header = json.loads(json.dumps({"kind": "search", **header}))
        self.entries = self._read()

    def find(self, kind: str) -> list[dict[str, Any]]:
        """The entries of one kind, oldest first."""
        return [entry for entry in self.entries if entry["kind"] == kind]

    def append(self, kind: str, entry: Mapping[str, Any]) -> None:
        """Adds an entry; when this returns, it is on the disk.

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
                f"trial log {self.path} cannot be written ({error.strerror}): choose another folder."
            ) from error
        self.entries.append(json.loads(json.dumps(lines[-1])))

    def _read(self) -> list[dict[str, Any]]:
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
                raise ValueError(f"line {number} of {self.path} is not a trial: move the file away to search anew.")
            entries.append(entry)
        if all(entry["kind"] in ("search", "costs") for entry in entries) and entries[:1] != [self.header]:
            entries = []  # a search that failed before its first trial keeps nobody from mending its settings
        if entries and entries[0] != self.header:
            theirs, ours = entries[0], self.header
            different = sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key))
            raise ValueError(
                f"{self.path} belongs to another search (different: {', '.join(different)}): move it away, or repeat "
                "that search's settings to resume it."
            )
        if len(entries) <= 1:  # a header alone says nothing: it is written again with the first entry
            whole = 0
        if whole < len(content):  # the last line was cut off in the middle of writing
            os.truncate(self.path, whole)
        return entries[1:]
