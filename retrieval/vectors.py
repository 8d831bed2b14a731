"""Texts to vectors, and vectors as FAISS takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

Array = np.ndarray[Any, np.dtype[np.float32]]
Encode = Callable[[list[str]], Tensor]
"""Texts to vectors [n, width], one for each text, of any float type and on any device."""


def encode_all(encode: Encode, texts: list[str], batch_size: int, words: str | None = None) -> Array:
    """The vectors of all texts.

    Args:
        encode: Gives the vectors of a batch; it runs without gradients.
        texts: At least one.
        batch_size: Texts that `encode` gets at once.
        words: Before the progress bar; None shows none.

    Returns:
        Float32 [n, width] in main memory.

    Raises:
        ValueError: Vectors are not [n, width] of one width, or not finite.
    """
    vectors: Array = np.empty((0, 0), np.float32)
    for start in track(range(0, len(texts), batch_size), words or "", transient=True, disable=words is None):
        asked = texts[start : start + batch_size]
        with torch.no_grad():
            part = as_float32(encode(asked), "encode")
        if len(part) != len(asked):
            raise ValueError(
                f"encode: must give one vector for each text, but gives {len(part)} for {len(asked)} texts; look at the"
                f" encoder"
            )
        if start == 0:
            vectors = np.empty((len(texts), part.shape[1]), np.float32)
        elif part.shape[1] != vectors.shape[1]:
            raise ValueError(
                f"encode: must give one width for all texts, but gives {vectors.shape[1]} and {part.shape[1]}; look at"
                f" the encoder"
            )
        vectors[start : start + len(part)] = part
    return vectors


def unit_length(vectors: Array) -> Array:
    """Vectors [n, width] scaled to length 1; a vector of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, np.where(lengths > 0, lengths, 1), dtype=np.float32)


def as_float32(vectors: Tensor | np.ndarray[Any, Any], name: str) -> Array:
    """Vectors as FAISS takes them.

    Args:
        vectors: Float of any precision, on any device, [n, width].
        name: What the message calls them.

    Returns:
        Contiguous float32 [n, width] in main memory.

    Raises:
        ValueError: They are not [n, width] with a width of at least 1, or hold NaN or infinity.
    """
    # .float() first: numpy has no bfloat16
    plain = vectors.detach().float().cpu().numpy() if isinstance(vectors, Tensor) else np.asarray(vectors)
    if plain.ndim != 2 or plain.shape[1] < 1:
        raise ValueError(f"{name}: vectors must be [n, width], but are {list(plain.shape)}; one row for each text")
    rows: Array = np.ascontiguousarray(plain, np.float32)
    finite = np.isfinite(rows).all(1)
    if not finite.all():
        raise ValueError(
            f"{name}: vectors must be finite, but {int((~finite).sum())} of {len(rows)} hold NaN or infinity, the first"
            f" is row {int((~finite).argmax())}; look at the model's weights"
        )
    return rows
