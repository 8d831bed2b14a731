"""Reading of video files with PyAV: turned as players show them, never shorter than they were, few frames in memory."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from saccade.datamodules.video.frames import reason, sample_positions

# formats whose header says how long the video is, so that a file that was cut off can be told from a short one
_LENGTH_KNOWN = ("asf", "avi", "flv", "matroska", "mov")
_NO_VIDEO = frozenset({"adf", "bin", "idf", "tty", "xbin"})  # FFmpeg draws texts as pictures
_PHOTOS = frozenset({".heic", ".heif"})  # of which FFmpeg gives single tiles


def read_video(file: Path, frames: int) -> np.ndarray:
    """Read evenly spread frames of a video file.

    The file is read once to find the times of its frames, without decoding or holding them; then the wanted frames are
    decoded from the keyframe before each. Where times are missing, equal or not found, all frames are decoded twice,
    and only the wanted ones are held.

    Args:
        file: Anything that FFmpeg reads.
        frames: Number of frames, at least 1. They are spread over the frames of the video, whatever their rate.

    Returns:
        uint8 RGB [frames, height, width, 3], turned and mirrored as the file says. Frames of another size than the
        first are resized to it.

    Raises:
        ValueError: The file cannot be decoded, is cut off or has no frames, or PyAV is not installed.
    """
    with _opened(file) as (container, stream):
        index = _index(container, stream, file)
        if index.exact:
            wanted = [index.times[position] for position in sample_positions(len(index.times), frames)]
            found = _jump(container, stream, wanted, index.keys)
            if found is not None:
                return np.stack(found)
    return _from_the_start(file, frames)


def video_rate(file: Path) -> tuple[int, float | None]:
    """Count the frames of a video, and read how many it shows in a second.

    Args:
        file: Anything that FFmpeg reads.

    Returns:
        The number of frames, and their mean rate; None where the file does not tell it.

    Raises:
        ValueError: The file cannot be decoded, is cut off or has no frames, or PyAV is not installed.
    """
    with _opened(file) as (container, stream):
        rate = float(stream.average_rate) if stream.average_rate else None
        index = _index(container, stream, file)
    total = len(index.times) if index.exact else _counted(file)
    return total, rate


def video_size(file: Path) -> tuple[int, int]:
    """Read the size of a video from its header, to find out early whether it is one.

    Args:
        file: Anything that FFmpeg reads.

    Returns:
        Height and width in pixels, before frames are turned.

    Raises:
        ValueError: The file is no video, or ends before what its header lists, or PyAV is not installed.
    """
    with _opened(file) as (container, stream):
        context = stream.codec_context
        if not context.width or not context.height:
            raise ValueError(f"video {file} has zero frames: check the file.")
        end = _End(container, stream)
        end.read()
        if end.missing():
            raise _cut_off(file)
        return context.height, context.width


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Any, Any]]:
    """Open a video file: the container, and its first video stream that is no cover picture."""
    if file.suffix.lower() in _PHOTOS:
        raise ValueError(
            f"video {file} must be a video or an image, got a HEIF photo, which is not read: save it as JPEG."
        )
    try:
        import av
    except ImportError as error:
        raise ValueError(
            f"video {file.name} needs the package PyAV, which is not installed: pip install 'saccade[video]'."
        ) from error
    try:
        # titles and the like are of no interest, whatever their encoding
        with av.open(str(file), metadata_errors="replace") as container:
            if container.format.name in _NO_VIDEO:
                raise ValueError(f"video {file} has zero frames, because it is a text: check the file.")
            streams = [stream for stream in container.streams.video if not _is_cover(stream)]
            if not streams:
                raise ValueError(f"video {file} has zero frames, because it has no video stream: check the file.")
            stream = streams[0]
            if stream.codec_context is None:
                raise ValueError(f"video {file} cannot be decoded (unknown codec): convert it to H.264.")
            stream.thread_type = "AUTO"
            yield container, stream
    except av.error.EOFError as error:
        raise ValueError(f"video {file} has zero frames, because it ends behind its header: check the file.") from error
    except av.error.FFmpegError as error:
        raise ValueError(f"video {file} cannot be decoded ({reason(error)}): replace it.") from error


def _is_cover(stream: Any) -> bool:
    """Whether a stream is the cover picture of a song."""
    return any(flag.name == "attached_pic" for flag in type(stream.disposition) if flag & stream.disposition)


class _End:
    """Finds out whether a file ends before its header says: from its index, or from its last packets.

    Streams that are made to be cut, such as MPEG-TS, say nothing about their length.

    Args:
        container: The opened file.
        stream: Its video stream.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        self._container, self._stream = container, stream
        self._end = self._widest = 0.0  # seconds
        self._last: float | None = None
        self._torn = False

    def add(self, packet: Any) -> None:
        """Count a packet, in the order of the file."""
        if not packet.size or packet.pts is None:
            return
        begin = float(packet.pts * packet.time_base)
        self._end = max(self._end, begin + float((packet.duration or 0) * packet.time_base))
        self._torn = packet.is_corrupt
        if packet.stream.index == self._stream.index:
            if self._last is not None:
                self._widest = max(self._widest, begin - self._last)
            self._last = begin

    def read(self) -> None:
        """Count the last packets of the file alone."""
        if self._container.duration is not None and not self._indexed():
            with suppress(OSError):
                self._container.seek(self._container.duration)
                for packet in self._container.demux():
                    self.add(packet)
                return
        self._end = float("inf")

    def missing(self) -> bool:
        """Whether something is missing that was written once."""
        name = str(self._container.format.name)
        if not name.startswith(_LENGTH_KNOWN):
            return False
        if self._torn:
            return True
        if entries := self._indexed():
            last = entries[len(entries) - 1]
            return bool(last.pos + last.size > self._container.size)
        if self._container.duration is None:
            return name == "asf"  # FFmpeg believes its header only if the file is as long as it says
        return bool(self._end + max(2 * self._widest, 0.1) < self._container.duration / 1e6)

    def _indexed(self) -> Any:
        """The index of the video stream, where newer versions of PyAV tell it and it is complete by design."""
        if not str(self._container.format.name).startswith("mov"):
            return None
        return getattr(self._stream, "index_entries", None)


def _cut_off(file: Path) -> ValueError:
    return ValueError(f"video {file} is cut off, because it ends before its header says: replace it.")


@dataclass
class _Index:
    """The frames of a video stream.

    Attributes:
        times: Their times in increasing order, in units of the stream.
        keys: The times of those from which decoding can start, in increasing order.
        exact: Whether every frame has a time of its own.
    """

    times: array[int] = field(default_factory=lambda: array("q"))
    keys: array[int] = field(default_factory=lambda: array("q"))
    exact: bool = True


def _index(container: Any, stream: Any, file: Path) -> _Index:
    """List the frames of a file without decoding them, and refuse a file that was cut off."""
    index = _Index()
    end = _End(container, stream)
    for packet in container.demux():
        if not packet.size:
            continue
        end.add(packet)
        if packet.stream.index != stream.index:
            continue
        if packet.pts is None:
            index.exact = False
            continue
        if packet.is_keyframe:
            index.keys.append(packet.pts)
        # what an edit takes off the beginning or the end is decoded, but not shown
        if not packet.is_discard:
            index.times.append(packet.pts)
    index.times = array("q", sorted(index.times))
    index.keys = array("q", sorted(index.keys))
    index.exact &= len(index.times) > 0 and len(set(index.times)) == len(index.times)
    if end.missing():
        raise _cut_off(file)
    return index


def _jump(container: Any, stream: Any, wanted: list[int], keys: array[int]) -> list[np.ndarray] | None:
    """Read the pictures at given times, in increasing order, decoding from the keyframe before each.

    Returns:
        The pictures; None if one is not found at its time.
    """
    found: list[np.ndarray] = []
    frames: Any = iter(())
    converter = _Converter()
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
            now, picture = time, converter.picture(frame)
        found.append(picture)
    return found


def _from_the_start(file: Path, frames: int) -> np.ndarray:
    """Read evenly spread frames by decoding the whole file twice: to count its frames, and to take the wanted ones."""
    total = _counted(file)
    positions = sample_positions(total, frames)
    wanted = set(positions)
    pictures: dict[int, np.ndarray] = {}
    with _opened(file) as (container, stream):
        converter = _Converter()
        for position, frame in enumerate(container.decode(stream)):
            if position in wanted:
                pictures[position] = converter.picture(frame)
    return np.stack([pictures[position] for position in positions])


def _counted(file: Path) -> int:
    """Count the frames of a file by decoding it."""
    with _opened(file) as (container, stream):
        total = sum(1 for _ in container.decode(stream))
    if not total:
        raise ValueError(f"video {file} has zero frames: check the file.")
    return total


class _Converter:
    """Makes pictures of frames, in the size of the first one and turned as its display matrix says."""

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        # not that of a frame: its threads would live until garbage is collected, and where a forked process does that,
        # which has none of the threads, it would wait for them for ever
        self._reformatter = VideoReformatter()
        self._size: tuple[int, int] | None = None
        self._matrix = (1, 0, 0, 1)

    def picture(self, frame: Any) -> np.ndarray:
        """A frame as uint8 RGB [H, W, 3]."""
        if self._size is None:
            self._size = frame.width, frame.height
            # only once: a frame whose side data were looked at is not freed before garbage is collected
            for data in frame.side_data:
                if data.type.name == "DISPLAYMATRIX":
                    a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32).tolist()
                    self._matrix = a, b, c, d
        picture: np.ndarray = self._reformatter.reformat(frame, *self._size, "rgb24").to_ndarray()
        # x' = a x + c y and y' = b x + d y
        a, b, c, d = self._matrix
        if abs(a) + abs(d) < abs(b) + abs(c):
            picture, a, d = picture.transpose(1, 0, 2), c, b
        return np.ascontiguousarray(picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
