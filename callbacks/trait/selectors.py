"""Selectors choose the source of the next chunk: the rule of Trait and the rules it is compared with.

All have the same call signature, so that loop, budget and journal are the same for each. None keeps state between
calls: random choices depend on the seed and the number of trials only, so that a resumed search continues as if it had
not stopped.
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
from saccade.common.checks import check_choice

State = tuple[int, ...]


@dataclass(frozen=True)
class Candidate:
    """A possible next trial: one more chunk after the parent.

    Args:
        source: Index of the source of the chunk, from 0.
        chunk: Index of the chunk in its source.
        left: Number of unused chunks of that source, including this one.
        state: The parent's state with one more chunk of the source.
    """

    source: int
    chunk: int
    left: int
    state: State


@dataclass(frozen=True)
class ScoredState:
    """The score of a trained model.

    Args:
        state: Number of chunks of each source that the model was trained on.
        score: Score of the model on the target's dev queries.
        warmup: Whether the model is part of the warm-up, trained on one chunk of one source.
    """

    state: State
    score: float
    warmup: bool = False


class Selector(ABC):
    """Base of the rules that choose a source. Any function with the same signature can be used instead."""

    @abstractmethod
    def __call__(
        self, candidates: Sequence[Candidate], observations: Sequence[ScoredState], history: Sequence[int]
    ) -> int | None:
        """Choose the source of the next chunk.

        Args:
            candidates: Possible next trials, at least one, ordered by source.
            observations: Scores so far: of the root if it was evaluated, of the warm-up and of the trials.
            history: Sources of the trials so far, oldest first.

        Returns:
            The source of one of the candidates, or ``None`` to try none of them; the search then returns to the
            parent's parent.
        """


@dataclass
class TraitSelector(Selector):
    """Chooses the largest expected improvement under a Gaussian process over states (Trait; defaults ours).

    Args:
        surrogate: ``corrected`` is a process with amplitude and noise on normalised scores, ``released`` that of the
            predecessor, without either.
        acquisition: ``ei`` is expected improvement, ``ei_released`` the formula of the predecessor, which prefers a
            small improvement to a large one; for comparison only.
        xi: Smallest improvement over the best observation that counts, in units of the score.
        seed: Seed of the restarts of the fit.

    Raises:
        ValueError: A setting is outside its range.
    """

    surrogate: Literal["corrected", "released"] = "corrected"
    acquisition: Literal["ei", "ei_released"] = "ei"
    xi: float = 0.001
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("surrogate", self.surrogate, ("corrected", "released"))
        check_choice("acquisition", self.acquisition, ("ei", "ei_released"))
        if not self.xi >= 0:
            raise ValueError(f"xi must be at least 0, got {self.xi}: give an improvement, for example 0.001.")

    def __call__(
        self, candidates: Sequence[Candidate], observations: Sequence[ScoredState], history: Sequence[int]
    ) -> int | None:
        """Choose the candidate with the largest acquisition, the first of equal ones; the first if nothing is known."""
        if not observations or len(candidates) == 1:
            return candidates[0].source
        scores = [item.score for item in observations]
        model = fit_surrogate([item.state for item in observations], scores, self.surrogate, self.seed)
        mean, std = posterior(model, [item.state for item in candidates])
        formula = expected_improvement if self.acquisition == "ei" else released_improvement
        return candidates[int(np.argmax(formula(mean, std, max(scores), self.xi)))].source


@dataclass
class RandomSelector(Selector):
    """Chooses sources in random order, each once in a round (baseline of the paper).

    Args:
        seed: Seed of the permutations of sources, one for each round.
    """

    seed: int = 0

    def __call__(
        self, candidates: Sequence[Candidate], observations: Sequence[ScoredState], history: Sequence[int]
    ) -> int | None:
        """Choose the first candidate from the current position of the permutation on."""
        sources = len(candidates[0].state)
        lap, place = divmod(len(history), sources)
        order = np.random.default_rng([self.seed, lap]).permutation(sources)
        return _first(candidates, np.roll(order, -place).tolist())


@dataclass
class PollingSelector(Selector):
    """Chooses the sources in turn, round robin (baseline of the predecessor)."""

    def __call__(
        self, candidates: Sequence[Candidate], observations: Sequence[ScoredState], history: Sequence[int]
    ) -> int | None:
        """Choose the first candidate after the source of the last trial."""
        sources = len(candidates[0].state)
        start = history[-1] + 1 if history else 0
        return _first(candidates, [(start + step) % sources for step in range(sources)])


@dataclass
class SimilaritySelector(Selector):
    """Chooses the chunk that is most similar to the target's corpus (baseline, ours).

    Args:
        similarities: One number for each source, or for each source a list with one number for each of its chunks.
    """

    similarities: Sequence[float] | Sequence[Sequence[float]] = field(default_factory=list)

    def __call__(
        self, candidates: Sequence[Candidate], observations: Sequence[ScoredState], history: Sequence[int]
    ) -> int | None:
        """Choose the candidate with the largest similarity; the lowest source if several are equal.

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
    """Chooses only the source that was best in the warm-up (baseline, ours); it needs the warm-up."""

    def __call__(
        self, candidates: Sequence[Candidate], observations: Sequence[ScoredState], history: Sequence[int]
    ) -> int | None:
        """Choose the best source while it is a candidate, then none.

        Raises:
            ValueError: There was no warm-up.
        """
        first = [item for item in observations if item.warmup]
        if not first:
            raise ValueError("BestSourceSelector needs the scores of a warm-up, got none: set warmup to true.")
        best = max(first, key=lambda item: item.score).state.index(1)
        return best if any(item.source == best for item in candidates) else None


@dataclass
class AllSourcesSelector(Selector):
    """Chooses a random source, each with probability proportional to its unused chunks (baseline of the paper).

    With ``Preset(accept="always")`` this is training on everything, without selection.

    Args:
        seed: Seed of the draws.
    """

    seed: int = 0

    def __call__(
        self, candidates: Sequence[Candidate], observations: Sequence[ScoredState], history: Sequence[int]
    ) -> int | None:
        """Draw a source in proportion to its unused chunks."""
        edges = np.cumsum([item.left for item in candidates])
        drawn = np.random.default_rng([self.seed, len(history)]).integers(edges[-1])
        return candidates[int(np.searchsorted(edges, drawn, side="right"))].source


def _first(candidates: Sequence[Candidate], order: Sequence[int]) -> int:
    admissible = {item.source for item in candidates}
    return next(source for source in order if source in admissible)
