"""Pickles from strangers: damaged ones end with one clear line, hostile ones run nothing and fill no memory."""

import copyreg
import os
import pickle
import pickletools
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saccade.datamodules.multimodal.feature_files import SPLITS, read_features
from tests.datamodules.multimodal.test_feature_files import mmsa, write


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "file.pkl"
    with pytest.raises(ValueError, match=r"file\.pkl does not exist"):
        read_features(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_features(tmp_path)
    for content in (
        b"",
        b"\x80",
        b"PK\x03\x04 a zip file",
        b"not a pickle at all\n",
        b"\x80\x04" + bytes(range(60, 120)),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"not a readable pickle|truncated|refused"):
            read_features(path)
    for content, kind in (
        (b"PK\x03\x04 and more", "a zip archive"),
        (b"\x1f\x8b\x08 and more", "compressed with gzip"),
    ):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=rf"^path [^\n]*file\.pkl is not a readable pickle but {kind}[^\n]*dump\.$"
        ):
            read_features(path)
    with pytest.raises(ValueError, match="content must be a dictionary of train, valid, test, got list"):
        read_features(write(tmp_path, [1, 2]))


def test_a_download_that_broke_off(tmp_path: Path) -> None:
    whole = pickle.dumps(mmsa(), protocol=4)
    path = tmp_path / "file.pkl"
    for size in range(1, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"file\.pkl is (truncated|not a readable pickle)"):
            read_features(path)


def test_damaged_bytes_never_end_in_anything_but_a_value_error(tmp_path: Path) -> None:
    small = {name: {key: value[:2] for key, value in split.items()} for name, split in mmsa().items()}
    draw = np.random.default_rng(0)
    path = tmp_path / "file.pkl"
    for protocol in (0, 2, 4, 5):
        whole = pickle.dumps(small, protocol=protocol)
        # the opcodes, not the numbers of the arrays
        places = [place for _, _, place in pickletools.genops(whole) if place]
        for place in draw.choice(places, 60):
            broken = bytearray(whole)
            broken[place] = draw.integers(256)
            path.write_bytes(bytes(broken))
            with suppress(ValueError):
                read_features(path)


# hostile files


class Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


class Plain:
    def __setstate__(self, state: Any) -> None:
        raise RuntimeError("it ran")


def stacked(module: str, name: str, *arguments: str) -> bytes:
    """A protocol-4 pickle that calls `module.name(*arguments)`; the name may have dots."""

    def text(value: str) -> bytes:
        return b"\x8c" + struct.pack("<B", len(value)) + value.encode()

    return b"\x80\x04" + text(module) + text(name) + b"\x93(" + b"".join(map(text, arguments)) + b"tR."


def hostile(marker: Path) -> dict[str, bytes]:
    touch = f"open({str(marker)!r}, 'w').close()"
    plain = Plain()
    plain.value = 1  # type: ignore[attr-defined]
    array = marker.parent / "array.npy"
    with array.open("wb") as stream:
        np.save(stream, np.array([Calls(exec, touch)], dtype=object), allow_pickle=True)
    return {
        "os.system": pickle.dumps(Calls(os.system, f"touch {marker}")),
        "old protocol": f"cos\nsystem\n(S'touch {marker}'\ntR.".encode(),
        "inst": f"(S'touch {marker}'\nios\nsystem\n.".encode(),
        "eval": stacked("builtins", "eval", touch),
        "exec": pickle.dumps(Calls(exec, touch)),
        "exec of Python 2": f"c__builtin__\nexec\n(V{touch}\ntR.".encode(),
        "getattr chain": pickle.dumps(Calls(getattr, Calls(__import__, "os"), "system")),
        "dotted name": stacked("numpy", "f2py.os.system", f"touch {marker}"),
        "dotted name in an allowed one": stacked("numpy", "ndarray.__init_subclass__.__self__", "x"),
        "numpy.load": pickle.dumps(Calls(np.load, str(array), None, True)),
        "numpy.fromfile": pickle.dumps(Calls(np.fromfile, str(array))),
        "numpy.memmap": stacked("numpy", "memmap", str(marker), "b"),
        "numpy.vectorize": stacked("numpy", "vectorize", "x"),
        "copyreg": pickle.dumps(Calls(copyreg._reconstructor, Plain, object, None)),  # type: ignore[attr-defined]
        "class with state": pickle.dumps(plain),
        "function": stacked("subprocess", "getoutput", f"touch {marker}"),
        "codecs": stacked("_codecs", "decode", "x", "zip"),
        "encodings": stacked("_codecs", "encode", "x", "idna"),
        "reference": b"\x80\x04\x8c\x01xQ.",
        "extension": b"\x80\x02\x82\x01.",
        "calls the array class": stacked("numpy", "ndarray", "x"),
        "array of another class": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR.",
        "type with commas": stacked("numpy", "dtype", "i4,(2,3)f8"),
        "axes without end": called("numpy._core.numeric", "_frombuffer", b"1" * 8, None, (8, 1), "K", [0]),
        "type of objects from bytes": (
            b"\x80\x04\x8c\x16numpy._core.multiarray\x8c\x06scalar\x93(\x8c\x05numpy\x8c\x05dtype\x93(\x8c\x02O8tRC\x08AAAAAAAAtR."
        ),
        # BUILD with attributes for a function that the file may name
        "changes a function": b"\x80\x02cnumpy.core.multiarray\nscalar\n(N}X\x09\x00\x00\x00_functionK\x01stb.",
        "changes an allowed name": b"\x80\x02cnumpy\nndarray\n(N}X\x08\x00\x00\x00__call__K\x01stb.",
    }


@pytest.mark.parametrize("inside", [False, True])
def test_hostile_files_are_refused_and_nothing_runs(tmp_path: Path, inside: bool) -> None:
    marker, path = tmp_path / "it_ran", tmp_path / "file.pkl"
    for name, content in hostile(marker).items():
        if inside:  # before the whole of a good file
            if content[:1] != b"\x80":
                continue
            content = b"\x80\x04(" + content[2:-1] + b"0" + pickle.dumps(mmsa(), protocol=4)[2:-1] + b"1."
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"file\.pkl is (refused|not a readable pickle)") as caught:
            read_features(path)
        assert "\n" not in str(caught.value), name
        assert not marker.exists(), name


def test_the_hostile_files_are_hostile(tmp_path: Path) -> None:
    marker = tmp_path / "it_ran"
    for name in ("os.system", "old protocol", "inst", "eval", "exec", "function", "numpy.load", "dotted name"):
        pickle.loads(hostile(marker)[name])  # noqa: S301
        assert marker.exists(), name
        marker.unlink()


def test_a_hostile_file_leaves_the_reader_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file.pkl"
    for content in hostile(tmp_path / "it_ran").values():
        path.write_bytes(content)
        with pytest.raises(ValueError):
            read_features(path)
    assert set(read_features(write(tmp_path, mmsa())).splits) == set(SPLITS)


# small files that would be large in memory

LIMITED = """
import resource, sys
from saccade.datamodules.multimodal.feature_files import read_features

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000,) * 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        read_features(path)
    except ValueError as error:
        print(len(str(error)), error)
    except MemoryError:
        print("out of memory", path)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def laughs(deepest: Any, width: int, depth: int) -> Any:
    for _ in range(depth):
        deepest = [deepest] * width
    return deepest


def called(module: str, name: str, *arguments: Any) -> bytes:
    head = stacked(module, name)
    return head[: head.index(b"(")] + pickle.dumps(arguments, protocol=4)[2:-1] + b"R."


def bombs() -> dict[str, tuple[bytes, str]]:
    """By name: the file, and what it is told."""

    def good_but(key: str, value: Any) -> bytes:
        raw = mmsa()
        raw["train"][key] = value
        return pickle.dumps(raw, protocol=4)

    long_names = ["x" * 100_000, *map(str, range(5000))]
    array_of = stacked("numpy._core.multiarray", "_reconstruct")[:-4] + b"cnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    shape = b"(J" + struct.pack("<i", 1 << 28) + b"](K\x01et"
    return {
        "place in the memory": (b"\x80\x04Nr" + struct.pack("<I", 1 << 30) + b".", "content must be a dictionary"),
        "place in the memory, as text": (b"Np1000000000\n.", "content must be a dictionary"),
        "bytes": (b"\x80\x05\x8e" + struct.pack("<Q", 1 << 40) + b".", ".pkl is "),
        "bytearray": (b"\x80\x05\x96" + struct.pack("<Q", 150_000_000) + b".", ".pkl is "),
        "lists in lists": (good_but("audio", laughs(1.0, 600, 3)), "audio must hold numbers or arrays as rows"),
        "one row": (good_but("audio", [np.ones((300, 300))] * 3000), "audio must have a row for each sample"),
        "one long name": (good_but("id", long_names), "text_bert must have 5001 samples"),
        "a name in lists": (good_but("id", [laughs("y", 10, 9)]), "id must be a list of names"),
        "long text for numbers": (
            good_but("audio_lengths", long_names),
            "audio_lengths must hold numbers or arrays",
        ),
        "type": (called("numpy", "dtype", laughs("y" * 1000, 10, 6)), "contains values of type (list)"),
        "encoding": (called("_codecs", "encode", "x", laughs("y" * 1000, 10, 6)), "the encoding (list)"),
        "encoded": (called("_codecs", "encode", laughs("y" * 1000, 10, 6), "latin1"), "of a list"),
        "shape": (
            array_of + b"(K\x01" + shape + b"cnumpy\ndtype\n\x8c\x02O8\x85R\x89]tb.",
            "an array of unknown shape",
        ),
    }


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its own size from /proc")
def test_small_files_do_not_fill_the_memory(tmp_path: Path) -> None:
    paths = {}
    for number, (name, (content, _)) in enumerate(bombs().items()):
        paths[name] = tmp_path / f"{number}.pkl"
        paths[name].write_bytes(content)
        assert len(content) < 1_000_000
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, paths.values())],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    *said, kilobytes = run.stdout.splitlines()
    assert len(said) == len(paths), run.stdout[:2000]
    for (name, (_, message)), line in zip(bombs().items(), said, strict=True):
        assert message in line, (name, line[:300])
        assert int(line.split()[0]) < 400, name
    assert int(kilobytes) < 60_000
