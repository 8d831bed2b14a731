"""Clips and manifests from disk: every problem ends with one line that says where it is."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
KEYS = ("video", "prompt", "answer")


@dataclass(frozen=True)
class ManifestRow:
    """One line of a manifest.

    Attributes:
        name: The clip's path as the manifest gives it.
        video: Where the clip lies.
        prompt: What is asked about it.
        answer: What a model should say.
    """

    name: str
    video: Path
    prompt: str
    answer: str


def read_manifest(path: str) -> list[ManifestRow]:
    """Read a manifest: one JSON object a line, with `video`, `prompt` and `answer`.

    Args:
        path: The file; clips are looked for relative to its folder. Empty lines are passed over.

    Returns:
        Its rows, in their order.

    Raises:
        ValueError: The file or a clip is missing, or a line cannot be used; the message names the line.
    """
    file = Path(path).expanduser()
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"manifest: cannot read {path} ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"manifest: {path} is not UTF-8 text ({error.reason}); save it as JSON lines") from error
    rows = [_row(line, f"{path} line {number}", file.parent) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ValueError(f"manifest: {path} has no rows; write one JSON object a line with {', '.join(KEYS)}")
    return rows


def _row(line: str, place: str, folder: Path) -> ManifestRow:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ValueError(f"manifest: {place} is not JSON ({error}); write one object a line") from error
    if not isinstance(entry, dict):
        raise ValueError(f"manifest: {place} must be an object with {', '.join(KEYS)}, but is {line.strip()[:40]!r}")
    for key in KEYS:
        if key not in entry:
            raise ValueError(f"manifest: {place} has no {key!r}, which every row needs; add it")
        if not isinstance(entry[key], str) or not entry[key].strip():
            raise ValueError(f"manifest: {place}: {key!r} must be a text that is not empty, but is {entry[key]!r}")
    video = folder / Path(entry["video"]).expanduser()
    if not video.exists():
        raise ValueError(f"manifest: {place}: there is no clip {video}; paths are relative to the manifest's folder")
    return ManifestRow(entry["video"], video, entry["prompt"], entry["answer"])


def sample_positions(total: int, count: int) -> list[int]:
    """Spread frames evenly over a clip, from its first one; source: the video processors of transformers.

    Args:
        total: Frames of the clip, at least 1.
        count: Frames wanted; where the clip has fewer, some are taken twice or more.

    Returns:
        `count` positions that never fall.
    """
    return [i * total // count for i in range(count)]


def read_clip(path: str | Path, frames: int) -> np.ndarray:
    """Read evenly spread frames of a clip.

    Args:
        path: A video file (needs PyAV: the extra `video`), an image (also an animated one) or a folder of images, which
            are frames in the order of their names.
        frames: How many, at least 1.

    Returns:
        uint8 RGB [frames, height, width, 3].

    Raises:
        ValueError: The clip is missing, cannot be decoded or has no frames, or PyAV is not installed.
    """
    if frames < 1:
        raise ValueError(f"frames: must be at least 1, but is {frames}")
    file = Path(path).expanduser()
    if not file.exists():
        raise ValueError(f"video: there is no {path}; check the path")
    if file.is_dir():
        return _read_folder(file, frames)
    if file.suffix.lower() in IMAGE_SUFFIXES:
        return _read_image(file, frames)
    return _read_video(file, frames)


def _read_folder(folder: Path, frames: int) -> np.ndarray:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"video: the folder {folder} holds no images, so the clip has zero frames; check the path")
    chosen = [files[position] for position in sample_positions(len(files), frames)]
    images = {file: _read_image(file, 1)[0] for file in dict.fromkeys(chosen)}
    sizes = {image.shape: file for file, image in images.items()}
    if len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise ValueError(
            f"video: the images of {folder} must have one size, but {first.name} has {one[1]}x{one[0]} pixels and"
            f" {second.name} {other[1]}x{other[0]}; bring them to one"
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
        raise ValueError(f"video: {file} is not an image that can be read ({_reason(error)}); replace it") from error


def _read_video(file: Path, frames: int) -> np.ndarray:
    try:
        import av
    except ImportError as error:
        raise ValueError(
            f'video: reading {file.name} needs PyAV, which is not installed; run: pip install "saccade[video]"'
        ) from error
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise ValueError(f"video: {file} has no video stream, so the clip has zero frames; check the file")
            packets = [packet for packet in container.demux(container.streams.video[0]) if packet.size]
            times = sorted(packet.pts for packet in packets if packet.pts is not None)
            keys = sorted(packet.pts for packet in packets if packet.pts is not None and packet.is_keyframe)
            if times and len(times) == len(packets):
                wanted = [times[position] for position in sample_positions(len(times), frames)]
                found = _jump(container, wanted, keys)
                if found is not None:
                    return np.stack(found)
        # some files do not say when a frame is shown, or do not find the frame that they are asked for
        total = sum(1 for _ in _decoded(av, file))
        if not total:
            raise ValueError(f"video: {file} has zero frames; check the file")
        positions = sample_positions(total, frames)
        pictures = {
            position: frame.to_ndarray(format="rgb24")
            for position, frame in enumerate(_decoded(av, file))
            if position in positions
        }
        return np.stack([pictures[position] for position in positions])
    except av.error.FFmpegError as error:
        raise ValueError(f"video: {file} cannot be decoded ({_reason(error)}); replace it") from error


def _decoded(av: Any, file: Path) -> Iterator[Any]:
    """All frames of a file, from its beginning."""
    with av.open(str(file)) as container:
        container.streams.video[0].thread_type = "AUTO"
        yield from container.decode(video=0)


def _jump(container: Any, wanted: list[int], keys: list[int]) -> list[np.ndarray] | None:
    """The pictures that are shown at the wanted times, which never fall, decoding from the keyframe before each.

    None where a picture is not found at its time.
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
