"""Static heads on probation: for some steps what was deleted is kept on the host, to see whether it would be missed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Probation:
    """How long, and when a static head becomes a dynamic one (ours).

    Args:
        steps: Tokens behind the prompt whose attention is looked at.
        most_lost: A head whose deleted keys would have more than this share of their attention fetches from then on.
        pins: ``[pins]`` int64, ascending, whole chunks: what such a head always holds; the rest of its share are slots.
    """

    steps: int
    most_lost: float
    pins: Tensor
