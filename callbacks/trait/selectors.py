"""Which source the next chunk is taken from: the rule of Trait and the rules it is compared with.

All share one call, so that loop, budget and journal are the same for each. None keeps a state between calls: what is
random follows from the seed and the number of trials, so that a search that was resumed goes on as if it had never
stopped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from saccade.callbacks.trait.surrogate import (
    expected_improvement,
    fit_surrogate,
    posterior,
    released_improvement,
)

State = tuple[int, ...]


@dataclass(frozen=True)
class Candidate:
    """A successor of the parent that may be tried.

    Args:
        source: The source that its chunk would come from, from 0.
        chunk: Index of that chunk in its source.
        left: Chunks of that source that nothing was trained on, this one included.
        state: The parent's state with one more chunk of the source.
    """

    source: int
    chunk: int
    left: int
    state: State


@dataclass(frozen=True)
class Observation:
    """A measured model.

    Args:
        state: Chunks of each source that it was trained on.
        score: Its score on the target's dev queries.
        warmup: Whether it is one of the first models, trained on one chunk of one source.
    """

    state: State
    score: float
    warmup: bool = False


class Selector(ABC):
    """Chooses a source. A rule writes :meth:`__call__`; any function with that signature serves as well."""

    @abstractmethod
    def __call__(
        self, candidates: Sequence[Candidate], observations: Sequence[Observation], history: Sequence[int]
    ) -> int | None:
        """The source of the next chunk.

        Args:
            candidates: Admissible successors of the parent, at least one, by ascending source.
            observations: Every measurement so far: the root if it was measured, the warm-up, the trials.
            history: Sources of the trials so far, oldest first.

        Returns:
            The source of one of the candidates, or ``None`` when the rule wants none of them; the search then goes
            back to the parent's parent.
        """


@dataclass
class TraitSelector(Selector):
    """Largest expected improvement under a Gaussian process over states (the predecessor of Trait; defaults ours).

    Args:
        surrogate: ``corrected`` is a process with amplitude and noise on normalised scores, ``released`` that of the
            predecessor, without either.
        acquisition: ``ei`` is expected improvement, ``ei_released`` the formula of the predecessor, which prefers a
            slight improvement to a large one and serves comparison only.
        xi: Improvement over the best observation that does not count, in units of the score.
        seed: Of the restarts of the fit.
    """

    surrogate: Literal["corrected", "released"] = "corrected"
    acquisition: Literal["ei", "ei_released"] = "ei"
    xi: float = 0.001
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("surrogate", self.surrogate, ("corrected", "released")),
            ("acquisition", self.acquisition, ("ei", "ei_released")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
        if not self.xi >= 0:
            raise ValueError(f"xi must be at least 0, got {self.xi}.")

    def __call__(
        self, candidates: Sequence[Candidate], observations: Sequence[Observation], history: Sequence[int]
    ) -> int | None:
        """The candidate of the largest acquisition; of equal ones the lowest source, and without data the first."""
        if not observations or len(candidates) == 1:
            return candidates[0].source
        scores = [item.score for item in observations]
        model = fit_surrogate([item.state for item in observations], scores, self.surrogate, self.seed)
        mean, std = posterior(model, [item.state for item in candidates])
        formula = expected_improvement if self.acquisition == "ei" else released_improvement
        return candidates[int(np.argmax(formula(mean, std, max(scores), self.xi)))].source


@dataclass
class RandomSelector(Selector):
    """A random source: the permutation for this number of trials, what is exhausted left out (baseline of the paper).

    Args:
        seed: Of the permutations; each covers as many trials as there are sources.
    """

    seed: int = 0

    def __call__(
        self, candidates: Sequence[Candidate], observations: Sequence[Observation], history: Sequence[int]
    ) -> int | None:
        """The first admissible source from the present place of the permutation on."""
        sources = len(candidates[0].state)
        lap, place = divmod(len(history), sources)
        order = np.random.default_rng([self.seed, lap]).permutation(sources)
        return _first(candidates, np.roll(order, -place).tolist())


@dataclass
class PollingSelector(Selector):
    """Each source in its turn, round robin (baseline of the predecessor)."""

    def __call__(
        self, candidates: Sequence[Candidate], observations: Sequence[Observation], history: Sequence[int]
    ) -> int | None:
        """The first admissible source behind that of the last trial."""
        sources = len(candidates[0].state)
        start = history[-1] + 1 if history else 0
        return _first(candidates, [(start + step) % sources for step in range(sources)])


@dataclass
class SimilaritySelector(Selector):
    """The chunk that is most similar to the target's corpus, greedily (baseline, ours).

    Args:
        similarities: One number for each source, or a list of numbers for each source, one for each of its chunks.
    """

    similarities: Sequence[float] | Sequence[Sequence[float]] = field(default_factory=list)

    def __call__(
        self, candidates: Sequence[Candidate], observations: Sequence[Observation], history: Sequence[int]
    ) -> int | None:
        """The candidate of the largest similarity; of equal ones the lowest source.

        Raises:
            ValueError: A source or one of its chunks has no similarity.
        """
        return max(candidates, key=self._similarity).source

    def _similarity(self, candidate: Candidate) -> float:
        try:
            entry = self.similarities[candidate.source]
            return float(entry[candidate.chunk] if isinstance(entry, Sequence) else entry)
        except IndexError:
            raise ValueError(
                f"similarities has no entry for chunk {candidate.chunk} of source {candidate.source}: give one number "
                "for each source, or one for each chunk of each source."
            ) from None


@dataclass
class BestSourceSelector(Selector):
    """Only the source that was best in the warm-up (baseline, ours); it needs the warm-up."""

    def __call__(
        self, candidates: Sequence[Candidate], observations: Sequence[Observation], history: Sequence[int]
    ) -> int | None:
        """The best source while it is admissible, then nothing.

        Raises:
            ValueError: There was no warm-up.
        """
        first = [item for item in observations if item.warmup]
        if not first:
            raise ValueError("BestSourceSelector needs the warm-up's scores, got none: use a preset with warmup=True.")
        best = max(first, key=lambda item: item.score).state.index(1)
        return best if any(item.source == best for item in candidates) else None


@dataclass
class AllSourcesSelector(Selector):
    """A random mixture of all sources, each as probable as it has chunks left (baseline of the paper's motivation).

    With ``Preset(accept="always")`` it is training on everything, without selection.

    Args:
        seed: Of the draws.
    """

    seed: int = 0

    def __call__(
        self, candidates: Sequence[Candidate], observations: Sequence[Observation], history: Sequence[int]
    ) -> int | None:
        """A source drawn in proportion to what is left of it."""
        edges = np.cumsum([item.left for item in candidates])
        drawn = np.random.default_rng([self.seed, len(history)]).integers(edges[-1])
        return candidates[int(np.searchsorted(edges, drawn, side="right"))].source


def _first(candidates: Sequence[Candidate], order: Sequence[int]) -> int:
    admissible = {item.source for item in candidates}
    return next(source for source in order if source in admissible)
