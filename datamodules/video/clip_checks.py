"""What can be known of a manifest's clips before training: whether files open, texts are clean, sequences fit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lightning.pytorch import Trainer

from saccade.common.progress import progress_bar
from saccade.datamodules.video.reading import ManifestRow, clip_size

_MANY = 200  # clips from which on a progress bar is shown
_NAMED = 5  # lines of a manifest that an error names


def check_clips(rows: Sequence[ManifestRow], trainer: Trainer | None = None) -> dict[Path, tuple[int, int]]:
    """Open every clip and read its header, several at a time; frames are not decoded.

    Args:
        rows: Rows of a manifest.
        trainer: The trainer on whose screen a bar is shown.

    Returns:
        Height and width of each clip in pixels, before its frames are turned.

    Raises:
        ValueError: Clips are missing or cannot be read; the message says what is wrong with the first and names the
            lines of the others.
    """
    first: dict[Path, ManifestRow] = {}
    for row in rows:
        first.setdefault(row.video, row)
    sizes: dict[Path, tuple[int, int]] = {}
    broken: list[tuple[ManifestRow, str]] = []
    # reading waits for the disk or the network most of the time
    pool = ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1)))
    try:
        with progress_bar(len(first), "opening clips", trainer, enabled=len(first) >= _MANY) as bar:
            step = len(first) // 100 + 1
            for number, (row, found) in enumerate(zip(first.values(), pool.map(_size_or_error, first), strict=True), 1):
                if isinstance(found, str):
                    broken.append((row, found))
                else:
                    sizes[row.video] = found
                if number % step == 0:
                    bar.advance(step)
    finally:
        pool.shutdown(cancel_futures=True)
    if broken:
        row, message = broken[0]
        others = [str(row.line) for row, _ in broken[1:]]
        more = f" The same holds for {len(others)} more clips, in lines {_listed(others)}." if others else ""
        raise ValueError(f"{row.place}: {message}{more}")
    return sizes


def _size_or_error(video: Path) -> tuple[int, int] | str:
    try:
        return clip_size(video)
    except ValueError as error:
        return str(error)


def _listed(lines: Sequence[str]) -> str:
    return ", ".join(lines[:_NAMED]) + (" ..." if len(lines) > _NAMED else "")
