"""Safe reading of untrusted pickles: containers, numbers, strings and arrays, and nothing else."""

from __future__ import annotations

import math
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_DTYPE = re.compile(r"[<>=|]?(?:b1|\?|[iu][1248]|f[248]|U\d*|S\d*|O8?)")
# what unpickling may raise for a damaged file
_DAMAGED = (
    pickle.UnpicklingError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


# the first bytes of files that hold features, too
_FORMATS = {
    b"PK\x03\x04": "a zip archive, as .npz and .pt files are",
    b"\x93NUMPY": "a .npy file",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "compressed with gzip",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
}


class _RefusedError(Exception):
    """The file contains something other than data."""


class _Data:
    """A placeholder for a name in the file. It has no attributes, so that a file cannot change it."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> Any:
        raise _RefusedError("it calls a class")


class _Dtype:
    """A data type, stored as its code, so that numpy's own unpickling of data types is not used."""

    __slots__ = ("code",)

    def __init__(self, code: str) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Set the byte order; compound types are refused."""
        if any(part is not None for part in state[2:5]):
            raise _RefusedError("it contains an array of records")
        if state[1] in ("<", ">"):
            self.code = state[1] + self.code.lstrip("<>=|")

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.code)


class _Array:
    """An array; its state is that of a pickled numpy array."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array: Array = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self.fill(content, dtype, shape, "F" if fortran else "C")

    def fill(self, content: Any, dtype: Any, shape: Any, order: str) -> None:
        """Make the array from raw bytes, or from a list of objects."""
        if not isinstance(dtype, _Dtype) or order not in ("C", "F"):
            raise _RefusedError("it contains an array of unknown type")
        # in a product, a list or string would be repeated
        if not isinstance(shape, tuple) or not all(isinstance(size, int) for size in shape):
            raise _RefusedError("it contains an array of unknown shape")
        if dtype.dtype.hasobject:
            if not isinstance(content, list) or len(content) != math.prod(shape):
                raise ValueError("the number of objects differs from the shape of their array")
            flat = np.empty(len(content), object)
            for place, item in enumerate(content):
                flat[place] = plain(item)
        else:
            raw = content.encode("latin1") if isinstance(content, str) else content
            flat = np.frombuffer(raw, dtype.dtype)
        self.array = flat.reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    if kind is not _NDARRAY:
        raise _RefusedError("it contains an array of another class")
    return _Array()


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> _Array:
    # "K": an array that is contiguous with its axes in another order, such as a transposed one
    permuted = order == "K" and isinstance(axes, list | tuple) and isinstance(shape, tuple) and len(axes) == len(shape)
    if not permuted and (order == "K" or axes is not None):
        raise _RefusedError("it contains an array with axes of unknown order")
    made = _Array()
    made.fill(content, dtype, shape, "C" if permuted else order)
    if permuted:
        made.array = made.array.transpose(axes)
    return made


def _dtype(code: Any, align: Any = False, copy: Any = False) -> _Dtype:
    if not isinstance(code, str) or not _DTYPE.fullmatch(code):
        raise _RefusedError(f"it contains values of type {_shown(code)}")
    return _Dtype(code)


def _scalar(dtype: Any, content: Any) -> Any:
    if not isinstance(dtype, _Dtype) or dtype.dtype.hasobject:
        raise _RefusedError("it contains a number of unknown type")
    raw = content.encode("latin1") if isinstance(content, str) else content
    return np.frombuffer(raw, dtype.dtype, count=1)[0].item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise _RefusedError(f"it requests the encoding {_shown(encoding)} of a {type(text).__name__}")
    return text.encode("latin1")


def _shown(value: Any) -> str:
    """A short form for messages, because nested lists that repeat each other can be endless."""
    return repr(value[:80]) if isinstance(value, str) else f"({type(value).__name__})"


class _Call(_Data):
    """One of the functions above, which a file may call."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any) -> None:
        raise _RefusedError("it changes a function")

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


_NDARRAY = _Data()
_ALLOWED = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Call(_dtype),
    ("_codecs", "encode"): _Call(_encode),
    ("__builtin__", "bytes"): _Call(lambda: b""),  # empty bytes in protocol 2
    **{
        (f"numpy.{core}.{module}", name): _Call(function)
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _frombuffer),
        )
    },
}


class _Unpickler(pickle._Unpickler):
    """An unpickler that knows the names above, and imports nothing.

    It is based on Python's unpickler in Python. The one in C stores its memo in an array, which a file of ten bytes can
    make arbitrarily long. Feature files consist of few large objects, so reading them is not slower.
    """

    def _read_bytearray(self) -> None:
        # read as bytes, for which no memory is allocated in advance
        (size,) = struct.unpack("<Q", self.read(8))  # type: ignore[attr-defined]
        self.append(self.read(size))  # type: ignore[attr-defined]

    dispatch: ClassVar = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: _read_bytearray}  # type: ignore[dict-item]

    def find_class(self, module: str, name: str) -> Any:
        """Return the placeholder of a name in the file."""
        found = _ALLOWED.get((module, name))
        if found is None:
            raise _RefusedError(f"it requests {_shown(f'{module}.{name}')}")
        return found

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to objects outside of the file."""
        raise _RefusedError("it refers to something outside of the file")


def plain(value: Any) -> Any:
    """Return the numpy array of an array in the content of a file, and any other value unchanged.

    Args:
        value: Part of what `read_pickle` returned.
    """
    return value.array if isinstance(value, _Array) else value


def read_pickle(path: Path, where: str) -> Any:
    """Read a pickle that holds dictionaries, lists, tuples, strings, numbers, None and numpy arrays.

    A pickle is a program. Here it can only call the few functions above, which make arrays from bytes. It cannot import
    a module, and numpy's own unpickling is not used. Anything else in the file is an error.

    Args:
        path: The file.
        where: Setting and file, the beginning of the messages.

    Returns:
        The content. Use `plain` to get its arrays, which may be read-only.

    Raises:
        ValueError: The file cannot be opened, is not a pickle, is truncated, or contains something other than data.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
            stream.seek(0)
            other = next((name for mark, name in _FORMATS.items() if start.startswith(mark)), "")
            if not other:
                return _Unpickler(stream, encoding="latin1").load()
    except FileNotFoundError as error:
        raise ValueError(f"{where} does not exist: correct the path.") from error
    except OSError as error:
        raise ValueError(f"{where} cannot be read ({error.strerror}): choose another file.") from error
    except _RefusedError as error:
        raise ValueError(
            f"{where} is refused because {error} (nothing in it was executed): write dictionaries, lists, strings,"
            " numbers and numpy arrays only."
        ) from error
    except _DAMAGED as error:
        early = isinstance(error, EOFError | struct.error) or "truncated" in str(error) or "exhausted" in str(error)
        why = "is truncated" if early and path.stat().st_size else "is not a readable pickle"
        raise ValueError(f"{where} {why}: download or write it again.") from error
    raise ValueError(
        f"{where} is not a readable pickle but {other}: read it as such, and write its dictionary of numpy arrays with"
        " pickle.dump."
    )
