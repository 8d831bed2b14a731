"""Reading of clips and manifests."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saccade.common.checks import check_count
from saccade.common.json_lines import read_json_lines
from saccade.datamodules.video.frames import FRAMES_PER_SECOND, sample_positions
from saccade.datamodules.video.pictures import (
    PICTURE_SUFFIXES,
    frame_files,
    picture_pages,
    picture_size,
    read_folder,
    read_picture,
)
from saccade.datamodules.video.video_files import read_video, video_rate, video_size

KEYS = ("video", "prompt", "answer")


@dataclass(frozen=True)
class ManifestRow:
    """One line of a manifest.

    Attributes:
        name: Path of the clip as written in the manifest.
        video: Path of the clip.
        prompt: The question.
        answer: The answer.
        id: The line's `id`, or the path of the clip as written.
        manifest: Path of the manifest.
        line: Number of the line, from 1.
    """

    name: str
    video: Path
    prompt: str
    answer: str
    id: str
    manifest: str
    line: int

    @property
    def place(self) -> str:
        """Manifest and line, for messages."""
        return f"{self.manifest}, line {self.line}"


def read_manifest(path: str) -> list[ManifestRow]:
    """Read a manifest: in each line one JSON object with `video`, `prompt` and `answer`, and optionally `id`.

    Args:
        path: The file, in UTF-8. Paths of clips are relative to its folder. Empty lines and other keys are ignored.

    Returns:
        The rows, in order.

    Raises:
        ValueError: The file or a clip is missing, or a line is invalid; the message names the line.
    """
    file = Path(os.path.expanduser(path))
    rows: list[ManifestRow] = []
    lines: dict[str, int] = {}
    for number, entry in read_json_lines(file):
        row = _row(entry, str(path), number, file.parent)
        if "id" in entry and lines.setdefault(row.id, number) != number:
            first = lines[row.id]
            raise ValueError(f"{row.place}: id must be unique, got {row.id!r}, the id of line {first}: rename it.")
        rows.append(row)
    if not rows:
        raise ValueError(f"manifest {path} has no rows: write one JSON object with {', '.join(KEYS)} in each line.")
    return rows


def _row(entry: Any, manifest: str, line: int, folder: Path) -> ManifestRow:
    place = f"{manifest}, line {line}"
    if not isinstance(entry, Mapping):
        raise ValueError(f"{place}: row must be an object, got {str(entry)[:40]!r}: write {', '.join(KEYS)}.")
    for key in (*KEYS, *({"id"} & set(entry))):
        if key not in entry:
            raise ValueError(f"{place}: {key} is missing, got {', '.join(map(repr, entry)) or 'no keys'}: add it.")
        if not isinstance(entry[key], str) or not entry[key].strip():
            raise ValueError(f"{place}: {key} must be a text that is not empty, got {entry[key]!r}: correct it.")
    video = folder / os.path.expanduser(entry["video"])
    if not os.path.exists(video):  # unlike the method, it refuses nothing
        raise ValueError(f"{place}: video must exist, got {video}: give a path relative to the folder of the manifest.")
    name, prompt, answer = (entry[key] for key in KEYS)
    return ManifestRow(name, video, prompt, answer, entry.get("id", name), manifest, line)


def read_clip(path: str | Path, frames: int) -> np.ndarray:
    """Read evenly spread frames of a clip.

    Args:
        path: A video file (needs PyAV, the extra `video`), an image (also an animated one), or a folder of images,
            which are frames in the order of the numbers in their names.
        frames: Number of frames to read, at least 1; a shorter clip repeats some.

    Returns:
        uint8 RGB [frames, height, width, 3], turned as the file says.

    Raises:
        ValueError: The clip does not exist, cannot be decoded, is cut off or has no frames, or PyAV is not installed.
    """
    check_count("frames", frames)
    file = _existing(path)
    if file.is_dir():
        return read_folder(file, frames)
    if file.suffix.lower() in PICTURE_SUFFIXES:
        return read_picture(file, frames)
    return read_video(file, frames)


def clip_times(path: str | Path, frames: int) -> list[float]:
    """Read when the frames that `read_clip` reads are shown.

    Args:
        path: A clip, as for `read_clip`.
        frames: Number of frames, at least 1.

    Returns:
        The time of each frame in seconds: its place in the clip divided by the clip's rate. Images, folders of images
        and videos that do not tell it have 24 frames a second.

    Raises:
        ValueError: The clip does not exist, is no clip, or PyAV is not installed.
    """
    check_count("frames", frames)
    file = _existing(path)
    rate: float | None = None
    if file.is_dir():
        total = len(frame_files(file))
    elif file.suffix.lower() in PICTURE_SUFFIXES:
        total = picture_pages(file)
    else:
        total, rate = video_rate(file)
    return [position / (rate or FRAMES_PER_SECOND) for position in sample_positions(total, frames)]


def clip_size(path: str | Path) -> tuple[int, int]:
    """Read the size of a clip from its header, which finds most files that cannot be read without decoding them.

    Args:
        path: A clip, as for `read_clip`.

    Returns:
        Height and width in pixels, before the frames are turned.

    Raises:
        ValueError: The clip does not exist, is no clip, or PyAV is not installed.
    """
    file = _existing(path)
    if file.is_dir():
        return picture_size(frame_files(file)[0])
    if file.suffix.lower() in PICTURE_SUFFIXES:
        return picture_size(file)
    return video_size(file)


def _existing(path: str | Path) -> Path:
    file = Path(os.path.expanduser(path))
    if not os.path.exists(file):
        raise ValueError(f"video must exist, got {path}: check the path.")
    if not file.is_dir() and not file.is_file():
        raise ValueError(f"video must be a file or a folder, got {path}, which is neither: check the path.")
    return file
