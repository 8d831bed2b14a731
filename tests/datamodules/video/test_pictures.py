"""Pictures as a person sees them: turned, scaled, on white, in order; and one line for broken ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.datamodules.video.pictures import frame_files, picture_size
from saccade.datamodules.video.reading import read_clip
from tests.support.errors import one_line

# what a viewer does with a picture of each EXIF orientation
TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", TURNED)
def test_pictures_are_turned_and_mirrored_as_their_exif_says(orientation: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name, settings in (("a.png", {}), ("a.tiff", {}), ("a.webp", {"lossless": True}), ("a.jpg", {"quality": 100})):
        Image.fromarray(values).save(tmp_path / name, exif=exif, **settings)  # type: ignore[arg-type]
        with Image.open(tmp_path / name) as image:
            stored = np.asarray(image if name != "a.tiff" else Image.fromarray(values))  # Pillow turns these by itself
        np.testing.assert_array_equal(read_clip(tmp_path / name, 1)[0], TURNED[orientation](stored))


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([[0, 1000, 32768, 65535]], np.uint16), [0, 4, 128, 255]),
        (np.array([[0, 10, 20, 30]], np.uint16), [0, 0, 0, 0]),  # the range of 16 bits, not that of the picture
        (np.array([[0, 51, 255, 204]], np.int32), [0, 51, 255, 204]),
        (np.array([[0, 257, 25700, 65535]], np.int32), [0, 1, 100, 255]),
        (np.array([[-100, 0, 100, 300]], np.int32), [0, 64, 128, 255]),
        (np.array([[0, 0.2, 0.5, 1]], np.float32), [0, 51, 128, 255]),
        (np.array([[0, 1.5, 100, 254.6]], np.float32), [0, 2, 100, 255]),
        (np.array([[0, 257, 2570, 60000]], np.float32), [0, 1, 10, 233]),
        (np.array([[-1, 0, 0.5, 1]], np.float32), [0, 128, 191, 255]),
        (np.array([[0, 1e6, 5e5, 0]], np.float32), [0, 255, 128, 0]),
        (np.full((1, 4), -3, np.float32), [0, 0, 0, 0]),
    ],
)
def test_deep_pictures_are_scaled_to_8_bits(values: np.ndarray, wanted: list[int], tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "deep.tiff")
    clip = read_clip(tmp_path / "deep.tiff", 2)
    assert clip.dtype == np.uint8
    for frame in clip:
        assert frame[0].tolist() == [[value] * 3 for value in wanted]


def test_frames_of_a_clip_have_one_scale(tmp_path: Path) -> None:
    for number, top in enumerate((0.5, 100, 200)):
        Image.fromarray(np.full((2, 2), top, np.float32)).save(tmp_path / f"{number}.tiff")
    assert read_clip(tmp_path, 3)[:, 0, 0, 0].tolist() == [0, 100, 200]
    Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(tmp_path / "1.tiff")
    one_line(lambda: read_clip(tmp_path, 3), str(tmp_path), "its values are not all numbers")


def test_what_is_transparent_is_on_white(tmp_path: Path) -> None:
    colours = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    colours.putpixel((1, 0), (0, 0, 0, 0))
    colours.putpixel((2, 0), (0, 0, 255, 128))
    colours.save(tmp_path / "a.png")
    assert read_clip(tmp_path / "a.png", 1)[0, 0].tolist() == [[255, 0, 0], [255] * 3, [127, 127, 255], [255, 0, 0]]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 0)
    palette.save(tmp_path / "p.png", transparency=0)
    assert read_clip(tmp_path / "p.png", 1)[0, 0, :2].tolist() == [[10, 20, 30], [255] * 3]
    Image.fromarray(np.array([[[40, 0], [40, 255]]], np.uint8), "LA").save(tmp_path / "la.png")
    assert read_clip(tmp_path / "la.png", 1)[0, 0].tolist() == [[255] * 3, [40] * 3]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB"])
def test_other_kinds_of_colours_are_converted(mode: str, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (250, 250, 250)).convert(mode).save(tmp_path / "a.tiff")
    assert (read_clip(tmp_path / "a.tiff", 1) >= 248).all()


NAMES = [
    (["f1.png", "f2.png", "f10.png", "f11.png", "f100.png"], "plain numbers"),
    (["f01.png", "f2.png", "f003.png", "f10.png", "F011.PNG", "f12.jpg"], "some with zeros in front"),
    (["a 1-2.png", "a 1-10.png", "a 2-1.png", "b 1-1.png"], "several numbers"),
    (["9.png", "10.png", "99999999999999999999998.png", "99999999999999999999999.png"], "long ones"),
]


@pytest.mark.parametrize("names", [names for names, _ in NAMES], ids=[kind for _, kind in NAMES])
def test_frames_of_a_folder_are_in_the_order_of_their_numbers(names: list[str], tmp_path: Path) -> None:
    for number, name in sorted(enumerate(names), key=lambda item: item[1]):
        Image.new("RGB", (4, 4), (20 * number,) * 3).save(tmp_path / name)
    for other in (".f0.png", "._f1.png", "notes.txt", "Thumbs.db"):  # hidden ones, and no pictures
        (tmp_path / other).write_bytes(b"no picture")
    (tmp_path / "f5").mkdir()
    assert [file.name for file in frame_files(tmp_path)] == names
    assert np.allclose(read_clip(tmp_path, len(names))[:, 0, 0, 0], np.arange(len(names)) * 20, atol=2)


def test_folders_without_frames_or_with_lost_ones_are_refused(tmp_path: Path) -> None:
    one_line(lambda: read_clip(tmp_path, 1), "has zero frames, because the folder has no images: name")
    (tmp_path / "clip.mp4").touch()
    one_line(lambda: read_clip(tmp_path, 1), "has no images (it has clip.mp4): name a folder of images, or a file.")
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    (tmp_path / "2.png").symlink_to(tmp_path / "gone.png")
    one_line(lambda: read_clip(tmp_path, 1), "has 2.png, which is no file or a link that leads nowhere: remove it.")


def _moving(count: int = 6) -> list[Image.Image]:
    """Frames with a bar that moves over nothing."""
    frames = []
    for number in range(count):
        frame = Image.new("RGBA", (16, 8), (0, 0, 0, 0))
        frame.paste((200, 30 * number, 0, 255), (number, 0, number + 4, 8))
        frames.append(frame)
    return frames


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.gif", {"disposal": 2}),
        ("a.webp", {"lossless": True}),
        ("a.png", {}),
        ("a.apng", {"format": "PNG"}),
        ("a.tiff", {}),
    ],
)
def test_animated_pictures_are_clips(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    first, *others = _moving()
    first.save(tmp_path / name, save_all=True, append_images=others, **settings)
    clip = read_clip(tmp_path / name, 6)
    for number, frame in enumerate(clip):
        assert np.abs(frame[4, number].astype(int) - [200, 30 * number, 0]).max() <= 4  # a GIF has few colours
        assert frame[4, 15].tolist() == [255] * 3
    np.testing.assert_array_equal(read_clip(tmp_path / name, 3), clip[::2])


def test_pictures_beside_the_frames_are_left_out(tmp_path: Path) -> None:
    """The picture for programs that do not know animations, and what phones put behind a photo."""
    first, *others = _moving()
    first.save(tmp_path / "a.png", save_all=True, append_images=others, default_image=True)
    assert [int(frame[4, place + 1, 1]) for place, frame in enumerate(read_clip(tmp_path / "a.png", 5))] == [
        30, 60, 90, 120, 150,
    ]  # fmt: skip
    photo, depth = Image.new("RGB", (16, 8), (200, 0, 0)), Image.new("RGB", (4, 2))
    photo.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[depth])
    clip = read_clip(tmp_path / "phone.jpg", 4)
    assert clip.shape == (4, 8, 16, 3)
    assert (clip[..., 0] > 190).all()


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "one.png", "one.jpg", "one.tiff", "one.bmp"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8])
def test_pictures_that_are_cut_off_are_refused(name: str, share: float, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 60, 80, 3), dtype=np.uint8)
    first, *others = map(Image.fromarray, noise)
    first.save(tmp_path / name, **({} if name.startswith("one") else {"save_all": True, "append_images": others}))
    whole = (tmp_path / name).read_bytes()
    assert read_clip(tmp_path / name, 8).shape == (8, 60, 80, 3)
    (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    one_line(lambda: read_clip(tmp_path / name, 8), f"video {tmp_path / name} cannot be read as an image (", "replace")
    if name == "a.gif":  # without it, Pillow would read a shorter animation
        one_line(lambda: picture_size(tmp_path / name), f"{name} cannot be read as an image (")


def test_headers_tell_the_size_or_refuse(tmp_path: Path) -> None:
    Image.new("L", (9, 5)).save(tmp_path / "a.png")
    assert picture_size(tmp_path / "a.png") == (5, 9)
    (tmp_path / "b.png").write_bytes(b"GIF89a no")
    one_line(lambda: picture_size(tmp_path / "b.png"), "b.png cannot be read as an image (")
    frames = [Image.new("L", (8, 8)), Image.new("L", (9, 8))]
    frames[0].save(tmp_path / "a.tiff", save_all=True, append_images=frames[1:])
    one_line(
        lambda: read_clip(tmp_path / "a.tiff", 2), "a.tiff cannot be read as an image (its pictures differ in size)"
    )


def test_pictures_too_large_to_be_meant_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (40, 40)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    one_line(lambda: read_clip(tmp_path / "large.png", 1), "large.png cannot be read as an image (Image size (1600")
