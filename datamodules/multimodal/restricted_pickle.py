"""Open pickles from strangers: plain containers, numbers, strings and arrays, and nothing else."""

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
# whatever the bytes of a damaged file make the machine of pickle do
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


class _RefusedError(Exception):
    """The file asks for something that is not data."""


class _Data:
    """What a name of the file stands for. Without attributes, so that a file cannot change it."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> Any:
        raise _RefusedError("it calls a class that is no function")


class _Dtype:
    """A data type, kept as its code; numpy's own reader of data types never sees the file."""

    __slots__ = ("code",)

    def __init__(self, code: str) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Take the byte order; compound types are refused."""
        if any(part is not None for part in state[2:5]):
            raise _RefusedError("it holds an array of records")
        if state[1] in ("<", ">"):
            self.code = state[1] + self.code.lstrip("<>=|")

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.code)


class _Array:
    """An array; `__setstate__` is given what numpy's would be given."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array: Array = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self.fill(content, dtype, shape, "F" if fortran else "C")

    def fill(self, content: Any, dtype: Any, shape: Any, order: str) -> None:
        """Make the array from raw bytes, or from a list of objects."""
        if not isinstance(dtype, _Dtype) or order not in ("C", "F"):
            raise _RefusedError("it holds an array of no known type")
        # a product with a list or string in it would repeat that
        if not isinstance(shape, tuple) or not all(isinstance(size, int) for size in shape):
            raise _RefusedError("it holds an array of no known shape")
        if dtype.dtype.hasobject:
            if not isinstance(content, list) or len(content) != math.prod(shape):
                raise ValueError("an array of objects does not have as many as its shape says")
            flat = np.empty(len(content), object)
            for place, item in enumerate(content):
                flat[place] = plain(item)
        else:
            raw = content.encode("latin1") if isinstance(content, str) else content
            flat = np.frombuffer(raw, dtype.dtype)
        self.array = flat.reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    if kind is not _NDARRAY:
        raise _RefusedError("it makes an array of a class of its own")
    return _Array()


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> _Array:
    if axes is not None:
        raise _RefusedError("it holds an array with permuted axes")
    made = _Array()
    made.fill(content, dtype, shape, order)
    return made


def _dtype(code: Any, align: Any = False, copy: Any = False) -> _Dtype:
    if not isinstance(code, str) or not _DTYPE.fullmatch(code):
        raise _RefusedError(f"it holds values of type {_shown(code)}")
    return _Dtype(code)


def _scalar(dtype: Any, content: Any) -> Any:
    if not isinstance(dtype, _Dtype) or dtype.dtype.hasobject:
        raise _RefusedError("it holds a number of no known type")
    raw = content.encode("latin1") if isinstance(content, str) else content
    return np.frombuffer(raw, dtype.dtype, count=1)[0].item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise _RefusedError(f"it asks for the encoding {_shown(encoding)} of a {type(text).__name__}")
    return text.encode("latin1")


def _shown(value: Any) -> str:
    """For messages: lists that hold one another many times over would be endless there."""
    return repr(value[:80]) if isinstance(value, str) else f"({type(value).__name__})"


class _Call(_Data):
    """A function that the file may call, which is one of the above."""

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
    ("__builtin__", "bytes"): _Call(lambda: b""),  # how protocol 2 writes empty ones
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
    """Knows the names above; looks nothing up and imports nothing.

    The one written in Python: that in C keeps its memory of objects in a list, which a file of ten bytes can make as
    long as it likes. Feature files are few and large objects, so that it is not slower.
    """

    def _read_bytearray(self) -> None:
        # as bytes, which take no room before they have been read
        (size,) = struct.unpack("<Q", self.read(8))  # type: ignore[attr-defined]
        self.append(self.read(size))  # type: ignore[attr-defined]

    dispatch: ClassVar = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: _read_bytearray}  # type: ignore[dict-item]

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name of the file."""
        found = _ALLOWED.get((module, name))
        if found is None:
            raise _RefusedError(f"it asks for {_shown(f'{module}.{name}')}")
        return found

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references out of the file."""
        raise _RefusedError("it refers to something outside the file")


def plain(value: Any) -> Any:
    """An array or number where the file had one; anything else as it is.

    Args:
        value: Out of what `read_pickle` returned.
    """
    return value.array if isinstance(value, _Array) else value


def read_pickle(path: Path, where: str) -> Any:
    """Read a pickle that holds dictionaries, lists, tuples, strings, numbers, None and numpy arrays.

    A pickle is a program. This one can call nothing but the few functions above, which make arrays from bytes: it
    imports no module, and not even numpy's own unpickling runs. Whatever else the file asks for ends the reading.

    Args:
        path: The file.
        where: Beginning of the messages: the setting and the file.

    Returns:
        The content. Arrays in it are to be taken out with `plain`; they may be read-only.

    Raises:
        ValueError: The file cannot be opened, is no pickle, ends too early, or asks for something that is not data.
    """
    try:
        with path.open("rb") as stream:
            return _Unpickler(stream, encoding="latin1").load()
    except FileNotFoundError as error:
        raise ValueError(f"{where}: the file does not exist; correct the path") from error
    except OSError as error:
        raise ValueError(f"{where}: the file cannot be read ({error.strerror}); choose another one") from error
    except _RefusedError as error:
        raise ValueError(
            f"{where}: the file is refused, {error}; a feature file holds dictionaries, lists, strings, numbers and"
            " numpy arrays only, nothing of it was run"
        ) from error
    except _DAMAGED as error:
        early = isinstance(error, EOFError | struct.error) or "truncated" in str(error) or "exhausted" in str(error)
        why = "ends too early, it is not whole" if early and path.stat().st_size else "is not a readable pickle"
        raise ValueError(f"{where}: the file {why}; download or write it again") from error
