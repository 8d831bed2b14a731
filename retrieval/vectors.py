"""Encoding of texts in batches, and conversion of vectors to the format of FAISS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

Array = np.ndarray[Any, np.dtype[np.float32]]
Encode = Callable[[list[str]], Tensor]
"""A function from n texts to vectors [n, width], one for each text, of any float type and on any device."""


def encode_all(encode: Encode, texts: list[str], batch_size: int, words: str | None = None) -> Array:
    """Encode texts in batches.

    Args:
        encode: The encoder; it runs without gradients.
        texts: At least one.
        batch_size: Texts for each call of `encode`.
        words: Text before the progress bar; None shows no bar.

    Returns:
        Float32 [n, width] in main memory.

    Raises:
        ValueError: Vectors are not [n, width], differ in width, or are not finite.
    """
    vectors: Array = np.empty((0, 0), np.float32)
    for start in track(range(0, len(texts), batch_size), words or "", transient=True, disable=words is None):
        asked = texts[start : start + batch_size]
        with torch.no_grad():
            part = as_float32(encode(asked), "encode")
        if len(part) != len(asked):
            raise ValueError(
                f"encode must return one vector for each text, got {len(part)} vectors for {len(asked)} texts: check"
                " the encoder."
            )
        if start == 0:
            vectors = np.empty((len(texts), part.shape[1]), np.float32)
        elif part.shape[1] != vectors.shape[1]:
            raise ValueError(
                f"encode must return vectors of one width, got {vectors.shape[1]} and {part.shape[1]}: check the"
                " encoder."
            )
        vectors[start : start + len(part)] = part
    return vectors


def unit_length(vectors: Array) -> Array:
    """Scale vectors [n, width] to length 1; a vector of zeros is left as it is."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, np.where(lengths > 0, lengths, 1), dtype=np.float32)


def as_float32(vectors: Tensor | np.ndarray[Any, Any], name: str) -> Array:
    """Convert vectors to the format of FAISS.

    Args:
        vectors: Float of any precision, on any device, [n, width].
        name: Name of the vectors, for the message.

    Returns:
        Contiguous float32 [n, width] in main memory.

    Raises:
        ValueError: The vectors are not [n, width] with a width of at least 1, or contain NaN or infinity.
    """
    # float() first, because numpy has no bfloat16
    plain = vectors.detach().float().cpu().numpy() if isinstance(vectors, Tensor) else np.asarray(vectors)
    if plain.ndim != 2 or plain.shape[1] < 1:
        raise ValueError(f"{name} must be vectors [n, width], got shape {list(plain.shape)}: give a row for each text.")
    rows: Array = np.ascontiguousarray(plain, np.float32)
    finite = np.isfinite(rows).all(1)
    if not finite.all():
        raise ValueError(
            f"{name} must be finite vectors, got NaN or infinity in {int((~finite).sum())} of {len(rows)}, first in row"
            f" {int((~finite).argmax())}: check the model's weights."
        )
    return rows
