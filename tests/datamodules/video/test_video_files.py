"""Video files: turned as players show them, right for any times, never shorter than they were, few frames in memory."""

import gc
import struct
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from saccade.datamodules.video.frames import sample_positions
from saccade.datamodules.video.reading import clip_size, read_clip
from tests.datamodules.video.made_clips import every_frame, grey_film, greys, pyav, write_sound, write_video
from tests.support.errors import one_line
from tests.support.shared_data import shared_file


@pytest.mark.parametrize("keyframes", [1, 3, 50])
def test_seeking_gives_what_reading_from_the_start_gives(keyframes: int, tmp_path: Path) -> None:
    write_video(tmp_path / "long.mp4", grey_film(60, 4), keyframes)
    everything = every_frame(tmp_path / "long.mp4")
    assert len(everything) == 60
    for count in (2, 7, 30, 60):
        np.testing.assert_array_equal(read_clip(tmp_path / "long.mp4", count), everything[sample_positions(60, count)])


@pytest.mark.parametrize(("name", "codec"), [("b.avi", "mpeg4"), ("b.ts", "mpeg2video"), ("b.m2v", "mpeg2video")])
def test_files_that_cannot_be_searched_are_read_from_their_start(name: str, codec: str, tmp_path: Path) -> None:
    """Frames without times, streams that jump too far, streams without times at all."""
    pyav()
    film = np.repeat(np.arange(20, dtype=np.uint8) * 12, 48 * 64 * 3).reshape(20, 48, 64, 3)
    write_video(tmp_path / name, film, 6, codec)
    everything = every_frame(tmp_path / name)
    assert len(everything) >= 18
    for count in (1, 5, 20):
        wanted = everything[sample_positions(len(everything), count)]
        np.testing.assert_array_equal(read_clip(tmp_path / name, count), wanted)


TIMES = {
    "irregular": [0, 40, 80, 1000, 1040, 3000, 3040, 3080, 9000, 9040],
    "below zero": [-500, -460, -420, -380, -340, -100, 0, 40, 80, 120],
    "late": [5000 + 40 * number for number in range(10)],
}


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
def test_frames_are_found_whatever_their_times(name: str, times: list[int], tmp_path: Path) -> None:
    write_video(tmp_path / name, grey_film(), times=times)
    # what an mp4 has below zero is taken off by an edit, as players do
    shown = [number for number, time in enumerate(times) if time >= 0 or name == "a.mkv"]
    for count in (1, 4, len(shown)):
        wanted = [shown[position] for position in sample_positions(len(shown), count)]
        assert greys(read_clip(tmp_path / name, count)) == wanted
    assert clip_size(tmp_path / name) == (24, 32)


# a matrix of a track moves x to a x + c y, and y to b x + d y
MATRICES = {
    (1, 0, 0, 1): lambda frame: frame,
    (0, 1, -1, 0): lambda frame: np.rot90(frame, -1),
    (-1, 0, 0, -1): lambda frame: np.rot90(frame, 2),
    (0, -1, 1, 0): lambda frame: np.rot90(frame),
    (-1, 0, 0, 1): lambda frame: frame[:, ::-1],
    (1, 0, 0, -1): lambda frame: frame[::-1],
    (0, 1, 1, 0): lambda frame: frame.transpose(1, 0, 2),
    (0, -1, -1, 0): lambda frame: np.rot90(frame, 2).transpose(1, 0, 2),
}


@pytest.mark.parametrize("matrix", MATRICES)
def test_videos_are_turned_and_mirrored_as_their_matrix_says(matrix: tuple[int, ...], tmp_path: Path) -> None:
    film = np.zeros((4, 32, 48, 3), np.uint8)
    film[:, :8, :16] = 250  # one corner of a frame that is wider than high
    write_video(tmp_path / "phone.mp4", film)
    plain = read_clip(tmp_path / "phone.mp4", 2)
    content = bytearray((tmp_path / "phone.mp4").read_bytes())
    place = content.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "phone.mp4").write_bytes(content)
    wanted = np.stack([MATRICES[matrix](frame) for frame in plain])
    np.testing.assert_array_equal(read_clip(tmp_path / "phone.mp4", 2), wanted)
    with pyav().open(str(tmp_path / "phone.mp4")) as container:
        turns = next(container.decode(video=0)).rotation // 90
    if a * d - b * c > 0:  # not mirrored: the same as by the angle that PyAV tells
        np.testing.assert_array_equal(wanted[0], np.rot90(plain[0], turns))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("end.mp4", "mpeg4", {}),
        ("begin.mp4", "mpeg4", {"movflags": "faststart"}),
        ("pieces.mp4", "mpeg4", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.mkv", "mpeg4", {}),
        ("a.avi", "mpeg4", {}),
        ("a.flv", "flv", {}),
        ("a.wmv", "wmv2", {}),
    ],
)
def test_videos_that_are_cut_off_are_refused(name: str, codec: str, options: dict[str, str], tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 48, 64, 3), dtype=np.uint8)
    write_video(tmp_path / name, noise, 10, codec, **options)
    assert read_clip(tmp_path / name, 4).shape == (4, 48, 64, 3)
    assert clip_size(tmp_path / name) == (48, 64)
    whole = (tmp_path / name).read_bytes()
    for share in (0.2, 0.5, 0.8):
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
        for read in (lambda: read_clip(tmp_path / name, 4), lambda: clip_size(tmp_path / name)):
            one_line(read, f"video {tmp_path / name} ", ": replace it.")  # also seen without decoding anything


def test_a_file_that_is_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    """Its times are all there, and only decoding finds out."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mp4", noise, 1, "mjpeg")
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    start, end = len(content) // 3, len(content) // 2
    content[start:end] = bytes(end - start)
    (tmp_path / "a.mp4").write_bytes(content)
    assert clip_size(tmp_path / "a.mp4") == (48, 64)
    one_line(lambda: read_clip(tmp_path / "a.mp4", 20), f"video {tmp_path / 'a.mp4'} cannot be decoded (Invalid data")


def test_what_is_no_video_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sound(tmp_path / "sound.mkv")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "story.txt").write_text("Once upon a time\n" * 100)  # FFmpeg would draw it
    (tmp_path / "photo.HEIC").touch()
    av = pyav()
    with av.open(str(tmp_path / "header.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        container.start_encoding()
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        sound, cover = container.add_stream("aac", rate=8000, layout="mono"), container.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 32, 24, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(grey_film()[0], format="rgb24")))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(sound.encode(frame))
        for stream in (cover, sound):
            container.mux(stream.encode())
    for name, message in (
        ("sound.mkv", "has zero frames, because it has no video stream: check the file."),
        ("song.mp4", "has zero frames, because it has no video stream: check the file."),
        ("noise.mp4", "cannot be decoded (Invalid data found when processing input): replace it."),
        ("empty.mp4", "cannot be decoded (Invalid data found when processing input): replace it."),
        ("story.txt", "has zero frames, because it is a text: check the file."),
        ("photo.HEIC", "got a HEIF photo, which is not read: save it as JPEG."),
    ):
        for read in (lambda name=name: read_clip(tmp_path / name, 4), lambda name=name: clip_size(tmp_path / name)):
            one_line(read, f"video {tmp_path / name} ", message)
    one_line(
        lambda: read_clip(tmp_path / "header.mkv", 4), "header.mkv has zero frames, because it ends behind its header: "
    )
    monkeypatch.setitem(sys.modules, "av", None)
    one_line(lambda: read_clip(tmp_path / "noise.mp4", 4), "noise.mp4 needs the package PyAV", "'saccade[video]'")


def test_titles_in_any_encoding_are_no_obstacle(tmp_path: Path) -> None:
    av = pyav()
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        container.metadata["title"] = "Xylofon"
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for frame in grey_film():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    content = (tmp_path / "a.avi").read_bytes()
    assert content.count(b"Xylofon") == 1
    (tmp_path / "a.avi").write_bytes(content.replace(b"Xylofon", b"Xylof\xf6n"))
    assert greys(read_clip(tmp_path / "a.avi", 2)) == [0, 5]


def test_frames_that_change_their_size_are_resized_to_the_first(tmp_path: Path) -> None:
    """As calls over a network record it."""
    parts = []
    for name, film in (("a.m2v", grey_film()), ("b.m2v", np.repeat(np.repeat(grey_film(), 2, 1), 2, 2))):
        write_video(tmp_path / name, film, codec="mpeg2video")
        parts.append((tmp_path / name).read_bytes())
    (tmp_path / "both.m2v").write_bytes(b"".join(parts))
    with pyav().open(str(tmp_path / "both.m2v")) as container:
        sizes = [(frame.height, frame.width) for frame in container.decode(video=0)]
    assert set(sizes) == {(24, 32), (48, 64)}
    assert read_clip(tmp_path / "both.m2v", len(sizes)).shape == (len(sizes), 24, 32, 3)


def test_a_long_file_is_not_held_in_memory(tmp_path: Path) -> None:
    """A file of 100 MB with 100 frames, of which four are read."""
    av = pyav()
    memory = Path("/proc/self/status")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest value
    except OSError:
        pytest.skip("this system does not tell the highest use of memory of a process")

    def kilobytes(key: str) -> int:
        return next(int(line.split()[1]) for line in memory.read_text().splitlines() if line.startswith(key))

    noise = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), dtype=np.uint8)
    with av.open(str(tmp_path / "long.mkv"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25, options={"qmin": "1", "qmax": "1"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuvj420p"
        (packet,) = stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24"))
        content = bytes(packet)
        for number in range(100 * 1_000_000 // len(content) + 1):
            copy = av.Packet(content)
            copy.pts = copy.dts = number * 40
            copy.time_base, copy.stream, copy.is_keyframe = Fraction(1, 1000), stream, True
            container.mux(copy)
    size = (tmp_path / "long.mkv").stat().st_size
    assert size > 95e6
    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes("VmRSS")
    assert read_clip(tmp_path / "long.mkv", 4).shape == (4, 720, 1280, 3)
    assert kilobytes("VmHWM") - before < 60_000  # four frames in RGB are 11 MB


def test_no_threads_are_left_for_loader_processes_to_wait_for(tmp_path: Path) -> None:
    """A process that is forked has none of them, and would wait for ever when it collects the decoder as garbage."""
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        pytest.skip("this system does not list the threads of a process")
    write_video(tmp_path / "a.mp4", np.zeros((5, 240, 320, 3), np.uint8))
    gc.collect()
    before = len(list(tasks.iterdir()))
    gc.disable()
    try:
        read_clip(tmp_path / "a.mp4", 5)
        clip_size(tmp_path / "a.mp4")
        assert len(list(tasks.iterdir())) == before
    finally:
        gc.enable()


def test_a_real_clip_is_read() -> None:
    pyav()
    clip = read_clip(shared_file("video/car-detection.mp4"), 6)
    assert clip.shape == (6, 432, 768, 3)
    assert clip.std() > 10
    # cars pass: the frames differ, and a fixed camera sees mostly the same
    assert 0 < np.abs(clip[0].astype(int) - clip[3]).mean() < 30
