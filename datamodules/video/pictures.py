"""Reading of pictures as a person sees them: single ones, animated ones, and folders whose pictures are frames."""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image, ImageOps

from saccade.datamodules.video.frames import reason, sample_positions

PICTURE_SUFFIXES = frozenset(
    {
        ".apng", ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif",
        ".tiff", ".webp",
    }
)  # fmt: skip
"""Files that are read as pictures; all others are read as videos."""

_DECODING_ERRORS = (
    OSError, EOFError, SyntaxError, ValueError, LookupError, TypeError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
_Key = TypeVar("_Key")


def read_picture(file: Path, frames: int) -> np.ndarray:
    """Read evenly spread frames of a picture; one that does not move is repeated.

    Args:
        file: A picture, also an animated one (GIF, WebP, PNG) or one with several pages (TIFF).
        frames: Number of frames, at least 1.

    Returns:
        uint8 RGB [frames, height, width, 3], turned as the file says. Transparent pixels are on white. What has more
        than 8 bits is scaled: 16 bits by their range; 32 bits by the first of the ranges 0 to 1 (not for integers), 0
        to 255 and 0 to 65535 that holds all values, otherwise from the lowest to the highest value.

    Raises:
        ValueError: The file cannot be decoded or is cut off, or its frames differ in size.
    """
    try:
        with Image.open(file) as image:
            _check_end(image, file)
            pages = _pages(image)
            chosen = [pages[position] for position in sample_positions(len(pages), frames)]
            pictures: dict[int, np.ndarray] = {}
            for page in dict.fromkeys(chosen):
                image.seek(page)
                pictures[page] = _values(image)
        return _clip(pictures, chosen)
    except _DECODING_ERRORS as error:
        raise ValueError(f"video {file} cannot be read as an image ({reason(error)}): replace it.") from error


def read_folder(folder: Path, frames: int) -> np.ndarray:
    """Read evenly spread pictures of a folder.

    Args:
        folder: Its pictures are the frames, in the order of the numbers in their names. Hidden files and files that
            are no pictures are left out; of an animated picture the first frame counts.
        frames: Number of pictures to read, at least 1.

    Returns:
        uint8 RGB [frames, height, width, 3]; see `read_picture`.

    Raises:
        ValueError: The folder has no pictures, or one of those to read is broken or of another size than the others.
    """
    files = frame_files(folder)
    chosen = [files[position] for position in sample_positions(len(files), frames)]
    pictures: dict[Path, np.ndarray] = {}
    for file in dict.fromkeys(chosen):
        try:
            with Image.open(file) as image:
                pictures[file] = _values(image)
        except _DECODING_ERRORS as error:
            raise ValueError(f"video {file} cannot be read as an image ({reason(error)}): replace it.") from error
    sizes = {picture.shape[:2]: file for file, picture in pictures.items()}
    if len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise ValueError(
            f"video {folder} must have images of one size, got {first.name} with {one[1]}x{one[0]} pixels and"
            f" {second.name} with {other[1]}x{other[0]}: resize them."
        )
    try:
        return _clip(pictures, chosen)
    except ValueError as error:
        raise ValueError(f"video {folder} cannot be read as images ({reason(error)}): replace them.") from error


def frame_files(folder: Path) -> list[Path]:
    """List the pictures of a folder in the order of the numbers in their names: `frame2` is before `frame10`.

    Args:
        folder: The folder; folders inside it are not searched.

    Returns:
        The pictures, at least one, without hidden files.

    Raises:
        ValueError: There are none, a link to one leads nowhere, or the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            seen = [(entry.name, entry.is_file()) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise ValueError(f"video {folder} cannot be read ({error.strerror or error}): check the folder.") from error
    found = [(name, there) for name, there in seen if Path(name).suffix.lower() in PICTURE_SUFFIXES]
    if not found:
        there = ", ".join(sorted(name for name, _ in seen)[:3])
        what = f" (it has {there})" if there else ""
        raise ValueError(
            f"video {folder} has zero frames, because the folder has no images{what}: name a folder of images,"
            " or a file."
        )
    if lost := sorted(name for name, there in found if not there):
        raise ValueError(f"video {folder} has {lost[0]}, which is no file or a link that leads nowhere: remove it.")
    return [folder / name for name in sorted((name for name, _ in found), key=_natural)]


def picture_pages(file: Path) -> int:
    """Count the frames of a picture.

    Args:
        file: A picture.

    Returns:
        1 for one that does not move.

    Raises:
        ValueError: The file is no picture, or is cut off.
    """
    try:
        with Image.open(file) as image:
            _check_end(image, file)
            return len(_pages(image))
    except _DECODING_ERRORS as error:
        raise ValueError(f"video {file} cannot be read as an image ({reason(error)}): replace it.") from error


def picture_size(file: Path) -> tuple[int, int]:
    """Read the size of a picture from its header, to find out early whether it is one.

    Args:
        file: A picture.

    Returns:
        Height and width in pixels, before it is turned.

    Raises:
        ValueError: The file is no picture, or a GIF that is cut off.
    """
    try:
        with Image.open(file) as image:
            _check_end(image, file)
            return image.height, image.width
    except _DECODING_ERRORS as error:
        raise ValueError(f"video {file} cannot be read as an image ({reason(error)}): replace it.") from error


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """A key that orders names as a person would: runs of digits are numbers, and capitals do not count."""
    pieces = re.split(r"([0-9]+)", name.casefold())
    return [(int(piece), "") if number % 2 else (0, piece) for number, piece in enumerate(pieces)], name


def _pages(image: Image.Image) -> range:
    """The positions of the frames in a file."""
    # the second picture in the photo of a phone is a depth map or the like
    total = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    # an animated PNG may begin with a picture that only programs show which do not know animations
    return range(1 if total > 1 and getattr(image, "default_image", False) else 0, total)


def _values(image: Image.Image) -> np.ndarray:
    """The frame at which a file stands: uint8 [H, W, 3], or [H, W] with more than 8 bits."""
    picture = ImageOps.exif_transpose(image)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return np.asarray(picture)
    if picture.has_transparency_data:
        colours = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    return np.asarray(picture.convert("RGB"))


def _clip(pictures: dict[_Key, np.ndarray], chosen: Sequence[_Key]) -> np.ndarray:
    """The chosen pictures, with the same scale for all of them, so that their brightness can be compared."""
    if len({picture.shape[:2] for picture in pictures.values()}) > 1:
        raise ValueError("its pictures differ in size")
    deep = [picture for picture in pictures.values() if picture.ndim == 2]
    if deep:
        low, high = _range(deep)
    frames = {
        key: picture if picture.ndim == 3 else _eight_bits(picture, low, high) for key, picture in pictures.items()
    }
    return np.stack([frames[key] for key in chosen])


def _range(pictures: Sequence[np.ndarray]) -> tuple[float, float]:
    """The values that become black and white."""
    if all(picture.dtype.kind == "u" for picture in pictures):
        return 0, 65535
    low, high = (float(of([of(picture) for picture in pictures])) for of in (np.min, np.max))
    if not np.isfinite([low, high]).all():
        raise ValueError("its values are not all numbers")
    tops = (255, 65535) if all(picture.dtype.kind in "iu" for picture in pictures) else (1, 255, 65535)
    if low >= 0:
        for top in tops:
            if high <= top:
                return 0, top
    return low, high


def _eight_bits(picture: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = (picture.astype(np.float64) - low) * 255 / ((high - low) or 1)
    return np.repeat(scaled.round().astype(np.uint8)[..., None], 3, axis=2)


def _check_end(image: Image.Image, file: Path) -> None:
    """Refuse a GIF without its end mark: Pillow would take what is there for the whole animation."""
    if image.format != "GIF":
        return
    with file.open("rb") as stream:
        _skip_colours(stream, stream.read(13)[10:11])
        while kind := stream.read(1):
            if kind == b";":
                return
            if kind == b",":
                _skip_colours(stream, stream.read(9)[8:9])
            if kind in b",!":
                stream.read(1)
                while length := stream.read(1).rstrip(b"\0"):
                    stream.seek(length[0], os.SEEK_CUR)
    raise ValueError("the file is cut off: its end mark is missing")


def _skip_colours(stream: BinaryIO, flags: bytes) -> None:
    """Skip the table of colours that flags announce."""
    if flags and flags[0] & 0x80:
        stream.seek(3 << (flags[0] & 7) + 1, os.SEEK_CUR)
