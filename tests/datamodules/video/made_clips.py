"""Clips that tests make: films in one grey for each frame, as video files of many kinds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def grey_film(frames: int = 10, step: int = 20) -> np.ndarray:
    """Frames [frames, 24, 32, 3], each of its own grey, `step` apart."""
    return np.repeat(np.arange(frames, dtype=np.uint8) * step, 24 * 32 * 3).reshape(frames, 24, 32, 3)


def greys(clip: np.ndarray, step: int = 20) -> list[int]:
    """Which frames of `grey_film` these are."""
    return [round(float(frame.mean()) / step) for frame in clip]


def pyav() -> Any:
    """PyAV; skips the calling test where it is not installed."""
    return pytest.importorskip("av", reason="PyAV is not installed: pip install 'saccade[video]'")


def write_video(
    path: Path,
    film: np.ndarray,
    keyframes: int = 4,
    codec: str = "mpeg4",
    times: Sequence[int] | None = None,
    rotation: int = 0,
    **options: str,
) -> None:
    """Writes a film of 25 frames a second, or with given times in milliseconds; options are those of the container."""
    av = pyav()
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.codec_context.thread_count = 1
        stream.gop_size, stream.max_b_frames = keyframes, 2 if codec in ("mpeg4", "mpeg2video") else 0
        stream.width, stream.height, stream.pix_fmt = (
            film.shape[2],
            film.shape[1],
            "yuvj420p" if codec == "mjpeg" else "yuv420p",
        )
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for number, values in enumerate(film):
            frame = av.VideoFrame.from_ndarray(values, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def every_frame(path: Path) -> np.ndarray:
    """All frames of a file, decoded from its start with PyAV's own loop."""
    with pyav().open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        container.streams.video[0].codec_context.thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def write_sound(path: Path) -> None:
    """Writes a file that has sound and no video."""
    av = pyav()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_manifest(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Writes a manifest and returns its path as a setting."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
