"""Parts of a manifest: by clip, never changed by other clips, and none empty where clips are few."""

from pathlib import Path
from typing import Any

import pytest

from saccade.datamodules.text.files import PARTS, part_of
from saccade.datamodules.video import splits
from saccade.datamodules.video.reading import ManifestRow
from saccade.datamodules.video.splits import split_rows


def _rows(clips: int, questions: int = 1) -> list[ManifestRow]:
    names = [f"clips/{number}.mp4" for number in range(clips)]
    return [
        ManifestRow(name, Path(name), "What?", "That.", name, "m.jsonl", line)
        for line, name in enumerate(names * questions, 1)
    ]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that a split says."""
    lines: list[str] = []
    monkeypatch.setattr(splits, "rank_zero_info", lines.append)
    return lines


def test_many_clips_are_split_by_their_hash_alone(said: list[str]) -> None:
    parts = split_rows(_rows(300, 2), 0.1, 0.2, seed=3)
    for part in PARTS:
        assert parts[part] == [row for row in _rows(300, 2) if part_of(row.name, 0.1, 0.2, 3) == part]
    assert not said


@pytest.mark.parametrize("seed", range(12))
def test_few_clips_leave_no_part_empty(seed: int, said: list[str]) -> None:
    for clips in (3, 5, 8):
        said.clear()
        rows = _rows(clips, 2)
        parts = split_rows(rows, 0.1, 0.1, seed)
        names = {part: {row.name for row in own} for part, own in parts.items()}
        assert all(names.values())
        assert sum(map(len, names.values())) == clips  # no clip is in two parts
        assert sorted((row for own in parts.values() for row in own), key=lambda row: row.line) == rows
        by_hash = {name: part_of(name, 0.1, 0.1, seed) for name in {row.name for row in rows}}
        moved = [name for part, own in names.items() for name in own if by_hash[name] != part]
        assert len(said) == bool(moved)
        assert all(name in said[0] for name in moved)
        assert parts == split_rows(rows, 0.1, 0.1, seed)


@pytest.mark.parametrize(
    ("clips", "fractions", "wanted"),
    [
        (1, (0.1, 0.1), 1),
        (2, (0.1, 0.1), 2),
        (5, (0.0, 0.0), 1),
        (5, (1.0, 0.0), 1),
        (5, (0.9, 0.1), 2),
        (5, (0.5, 0.0), 2),
    ],
)
def test_only_parts_with_a_share_get_a_clip(clips: int, fractions: tuple[float, float], wanted: int) -> None:
    for seed in range(8):
        parts: dict[str, Any] = split_rows(_rows(clips), *fractions, seed)
        assert sum(map(bool, parts.values())) == wanted
        if fractions == (0.1, 0.1) and clips == 2:
            assert parts["train"]
