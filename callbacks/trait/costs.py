"""The cost of a search for training data: pairs that were trained on, as a share of all pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from saccade.callbacks.trait.events import Event, Trial, Warmup


@dataclass(frozen=True)
class Costs:
    """Number of pairs that a search trained on.

    Args:
        chunks: Number of chunks that a model was trained on; a chunk counts each time.
        evaluated: Number of pairs of those chunks; several passes over a chunk count once.
        pool: Number of pairs of all sources.
    """

    chunks: int
    evaluated: int
    pool: int

    @property
    def share(self) -> float:
        """Evaluated pairs divided by the pairs of the pool."""
        return self.evaluated / self.pool

    def __str__(self) -> str:
        return f"{self.evaluated:,} of {self.pool:,} pairs evaluated ({self.share:.1%})"


def costs(events: Iterable[Event], pairs: Callable[[int, int], int], pool: int) -> Costs:
    """Count the pairs that a search trained on.

    The warm-up trains on the first chunk of each source, and a trial on its chunk. A trial that reuses a result of the
    warm-up, the root and backtracking train on nothing.

    Args:
        events: Events of the search.
        pairs: Returns the number of pairs of a chunk, given source and chunk.
        pool: Number of pairs of all sources, at least 1.

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
