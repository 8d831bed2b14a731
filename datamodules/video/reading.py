"""Reading of clips and manifests."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from saccade.common.checks import check_count

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
KEYS = ("video", "prompt", "answer")


@dataclass(frozen=True)
class ManifestRow:
    """One line of a manifest.

    Attributes:
        name: Path of the clip as written in the manifest.
        video: Path of the clip.
        prompt: The question.
        answer: The answer.
    """

    name: str
    video: Path
    prompt: str
    answer: str


def read_manifest(path: str) -> list[ManifestRow]:
    """Read a manifest: in each line one JSON object with `video`, `prompt` and `answer`.

    Args:
        path: The file. Paths of clips are relative to its folder; empty lines are ignored.

    Returns:
        The rows, in order.

    Raises:
        ValueError: The file or a clip is missing, or a line is invalid; the message names the line.
    """
    file = Path(path).expanduser()
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"cannot read manifest {path} ({error.strerror}): check the path.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"manifest {path} is not UTF-8 text ({error.reason}): save it as JSON lines.") from error
    rows = [
        _row(line, f"manifest {path}, line {number}", file.parent)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not rows:
        raise ValueError(f"manifest {path} has no rows: write one JSON object with {', '.join(KEYS)} in each line.")
    return rows


def _row(line: str, place: str, folder: Path) -> ManifestRow:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place}: row must be JSON, got invalid JSON ({error}): write one object.") from error
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: row must be an object, got {line.strip()[:40]!r}: write {', '.join(KEYS)}.")
    for key in KEYS:
        if key not in entry:
            raise ValueError(f"{place}: {key} is missing: add it.")
        if not isinstance(entry[key], str) or not entry[key].strip():
            raise ValueError(f"{place}: {key} must be a text that is not empty, got {entry[key]!r}: correct it.")
    video = folder / Path(entry["video"]).expanduser()
    if not video.exists():
        raise ValueError(f"{place}: video must exist, got {video}: give a path relative to the folder of the manifest.")
    return ManifestRow(entry["video"], video, entry["prompt"], entry["answer"])


def sample_positions(total: int, count: int) -> list[int]:
    """Choose evenly spread frames of a clip, beginning with its first one, as the video processors of transformers do.

    Args:
        total: Number of frames of the clip, at least 1.
        count: Number of frames to choose; if the clip has fewer, some are chosen repeatedly.

    Returns:
        `count` positions in increasing order, possibly with repetitions.
    """
    return [i * total // count for i in range(count)]


def read_clip(path: str | Path, frames: int) -> np.ndarray:
    """Read evenly spread frames of a clip.

    Args:
        path: A video file (needs PyAV, the extra `video`), an image (also an animated one), or a folder of images,
            which are frames in the order of their names.
        frames: Number of frames to read, at least 1.

    Returns:
        uint8 RGB [frames, height, width, 3].

    Raises:
        ValueError: The clip does not exist, cannot be decoded or has no frames, or PyAV is not installed.
    """
    check_count("frames", frames)
    file = Path(path).expanduser()
    if not file.exists():
        raise ValueError(f"video must exist, got {path}: check the path.")
    if file.is_dir():
        return _read_folder(file, frames)
    if file.suffix.lower() in IMAGE_SUFFIXES:
        return _read_image(file, frames)
    return _read_video(file, frames)


def _read_folder(folder: Path, frames: int) -> np.ndarray:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"video {folder} has zero frames, because the folder has no images: check the path.")
    chosen = [files[position] for position in sample_positions(len(files), frames)]
    images = {file: _read_image(file, 1)[0] for file in dict.fromkeys(chosen)}
    sizes = {image.shape: file for file, image in images.items()}
    if len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise ValueError(
            f"video {folder} must have images of one size, got {first.name} with {one[1]}x{one[0]} pixels and"
            f" {second.name} with {other[1]}x{other[0]}: resize them."
        )
    return np.stack([images[file] for file in chosen])


def _read_image(file: Path, frames: int) -> np.ndarray:
    try:
        with Image.open(file) as image:
            wanted = sample_positions(getattr(image, "n_frames", 1), frames)
            pictures: dict[int, np.ndarray] = {}
            for position, picture in enumerate(ImageSequence.Iterator(image)):
                if position in wanted:
                    pictures[position] = np.asarray(picture.convert("RGB"))
            return np.stack([pictures[position] for position in wanted])
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, KeyError) as error:
        raise ValueError(f"video {file} cannot be read as an image ({_reason(error)}): replace it.") from error


def _read_video(file: Path, frames: int) -> np.ndarray:
    try:
        import av
    except ImportError as error:
        raise ValueError(
            f"video {file.name} needs the package PyAV, which is not installed: pip install 'saccade[video]'."
        ) from error
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise ValueError(f"video {file} has zero frames, because it has no video stream: check the file.")
            packets = [packet for packet in container.demux(container.streams.video[0]) if packet.size]
            times = sorted(packet.pts for packet in packets if packet.pts is not None)
            keys = sorted(packet.pts for packet in packets if packet.pts is not None and packet.is_keyframe)
            if times and len(times) == len(packets):
                wanted = [times[position] for position in sample_positions(len(times), frames)]
                found = _jump(container, wanted, keys)
                if found is not None:
                    return np.stack(found)
        # in some files frames have no time, or seeking does not find the requested frame
        total = sum(1 for _ in _decoded(av, file))
        if not total:
            raise ValueError(f"video {file} has zero frames: check the file.")
        positions = sample_positions(total, frames)
        pictures = {
            position: frame.to_ndarray(format="rgb24")
            for position, frame in enumerate(_decoded(av, file))
            if position in positions
        }
        return np.stack([pictures[position] for position in positions])
    except av.error.FFmpegError as error:
        raise ValueError(f"video {file} cannot be decoded ({_reason(error)}): replace it.") from error


def _decoded(av: Any, file: Path) -> Iterator[Any]:
    """Decode all frames of a file, from its beginning."""
    with av.open(str(file)) as container:
        container.streams.video[0].thread_type = "AUTO"
        yield from container.decode(video=0)


def _jump(container: Any, wanted: list[int], keys: list[int]) -> list[np.ndarray] | None:
    """Read the pictures at given times, in increasing order, decoding from the keyframe before each.

    Returns:
        The pictures; None if one is not found at its time.
    """
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    found: list[np.ndarray] = []
    frames: Any = iter(())
    now: int | None = None  # the time of the last decoded frame
    for time in wanted:
        if time != now:
            before = bisect_right(keys, time)
            if before == 0:
                return None
            if now is None or keys[before - 1] > now:
                container.seek(keys[before - 1], stream=stream)
                frames = container.decode(stream)
            frame = next((frame for frame in frames if frame.pts is None or frame.pts >= time), None)
            if frame is None or frame.pts != time:
                return None
            now, picture = time, frame.to_ndarray(format="rgb24")
        found.append(picture)
    return found


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
