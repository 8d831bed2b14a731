"""What a search for training data has cost: the pairs that were trained on, against all that could have been."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from saccade.callbacks.trait.events import Event, Trial, Warmup


@dataclass(frozen=True)
class Costs:
    """Pairs of a search.

    Args:
        chunks: Chunks that a model was trained on, each counted as often as that happened.
        evaluated: Pairs of those chunks; passes over a chunk do not count.
        pool: Pairs of all sources.
    """

    chunks: int
    evaluated: int
    pool: int

    @property
    def share(self) -> float:
        """Evaluated pairs over those of the pool."""
        return self.evaluated / self.pool

    def __str__(self) -> str:
        return f"{self.evaluated:,} of {self.pool:,} pairs evaluated ({self.share:.1%})"


def costs(events: Iterable[Event], pairs: Callable[[int, int], int], pool: int) -> Costs:
    """Counts what a search was charged.

    The warm-up trains on the first chunk of each source, a trial on its chunk; a trial that the warm-up answered
    trained on nothing, and the root and backtracking cost nothing.

    Args:
        events: Of the search.
        pairs: Number of pairs of a chunk, by source and chunk.
        pool: Pairs of all sources, at least 1.

    Returns:
        The costs.
    """
    trained = []
    for event in events:
        if isinstance(event, Warmup):
            trained.append((event.source, 0))
        elif isinstance(event, Trial) and not event.reused:
            trained.append((event.source, event.chunk))
    return Costs(len(trained), sum(pairs(*chunk) for chunk in trained), pool)
