"""The search of Trait: depth-first hill climbing over chunks of training data, independent of models and files.

Source: "Transfer-Aware Data Selection for Domain Adaptation in Text Retrieval" (Trait, Findings of EMNLP 2025), of
which only the abstract is public. Preset ``released`` follows the first author's public predecessor code; ``corrected``
(ours) fixes its known errors: the root is evaluated, results of the warm-up are reused, and pruning always leaves a
quarter of the sources.

The events that a search yields, and the ids of weights, are described in :mod:`saccade.callbacks.trait.events`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

from saccade.callbacks.trait.events import (
    PRESETS,
    Backtrack,
    Best,
    Event,
    Preset,
    Prune,
    TrainingRequest,
    Trial,
    Warmup,
)
from saccade.callbacks.trait.selectors import Candidate, ScoredState, State
from saccade.common.checks import check_choice

Select = Callable[[Sequence[Candidate], Sequence[ScoredState], Sequence[int]], int | None]
Steps = Generator[TrainingRequest | Event, float | None, str]
_Part = Generator[TrainingRequest | Event, float | None, None]


def search(
    chunks_per_source: Sequence[int],
    evaluate: Callable[[TrainingRequest], float],
    select: Select,
    budget: int | None,
    preset: str | Preset = "corrected",
    *,
    journal: Iterable[Event] = (),
) -> Iterator[Event]:
    """Search the chunks that are worth training on, event by event.

    Args:
        chunks_per_source: Number of chunks of each source.
        evaluate: Trains the parent's weights on the requested chunk and returns the score; larger is better.
        select: Chooses a source, see :mod:`saccade.callbacks.trait.selectors`.
        budget: Largest number of trials; ``None`` continues until nothing is left.
        preset: ``corrected``, ``released`` or your own rules.
        journal: Events of an interrupted search with the same arguments (the budget may be larger). They are replayed
            without calling ``evaluate`` or ``select``, and they are not yielded again: the journal and the yielded
            events together are those of an uninterrupted search.

    Returns:
        An iterator of events. Nothing is evaluated before the next event is requested.

    Raises:
        ValueError: A setting is outside its range; during the search, a score is not finite, a selected source is not
            a candidate, or the journal belongs to another search.
    """
    return _driven(search_steps(chunks_per_source, select, budget, preset, journal=journal), evaluate)


def _driven(steps: Steps, evaluate: Callable[[TrainingRequest], float]) -> Iterator[Event]:
    answer: float | None = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration:
            return
        answer = evaluate(step) if isinstance(step, TrainingRequest) else None
        if isinstance(step, Event):
            yield step


def search_steps(
    chunks_per_source: Sequence[int],
    select: Select,
    budget: int | None,
    preset: str | Preset = "corrected",
    *,
    journal: Iterable[Event] = (),
) -> Steps:
    """The same search for a caller with its own loop: it yields a request where :func:`search` calls ``evaluate``.

    Args:
        chunks_per_source: Number of chunks of each source.
        select: Chooses a source.
        budget: Largest number of trials; ``None`` continues until nothing is left.
        preset: ``corrected``, ``released`` or your own rules.
        journal: Events of an interrupted search.

    Returns:
        A generator of events and requests. The caller sends the score of a request with ``send``. It returns why the
        search ended before its budget was spent; an empty text if it was spent.

    Raises:
        ValueError: A setting is outside its range; during the search, the same errors as in :func:`search`.
    """
    chunks = list(chunks_per_source)
    if not chunks:
        raise ValueError("chunks_per_source must have an entry for each source, got none: give at least one source.")
    for source, count in enumerate(chunks):
        if count < 1:
            raise ValueError(
                f"chunks_per_source must be at least 1 for every source, got {count} for source {source}: leave it out."
            )
    if budget is not None and budget < 1:
        raise ValueError(f"budget must be at least 1, got {budget}: give a number of trials, or null for no limit.")
    if isinstance(preset, str):
        check_choice("preset", preset, PRESETS)
        preset = PRESETS[preset]
    return _Search(chunks, select, math.inf if budget is None else budget, preset, journal).run()


class _Search:
    """The state of one search: its tree, its stack, and the events of the journal that are not replayed yet."""

    def __init__(
        self, chunks: list[int], select: Select, budget: float, rules: Preset, journal: Iterable[Event]
    ) -> None:
        self.chunks, self.select, self.budget, self.rules = chunks, select, budget, rules
        self.recorded, self.replayed = deque(journal), 0
        self.stack, self.best = [0], 0
        # by node
        self.states: dict[int, State] = {0: (0,) * len(chunks)}
        self.scores: dict[int, float] = {}
        self.weights = {0: 0}
        self.children: dict[int, list[Trial]] = {0: []}
        # by node on the stack: the sources that are pruned while it is there
        self.pruned: dict[int, set[int]] = {0: set()}
        self.used = [0] * len(chunks)
        self.ever_pruned: set[int] = set()
        self.declined = False  # whether the selector last chose none of the candidates
        self.seen: set[State] = set()
        self.observations: list[ScoredState] = []
        self.history: list[int] = []
        # scores of the warm-up that a trial may reuse
        self.warm: dict[int, float] = {}

    def run(self) -> Steps:
        """Run the whole search."""
        root = self.states[0]
        if self.rules.root == "measured":
            self.scores[0] = yield from self._score(TrainingRequest(0, None, root))
            self.observations.append(ScoredState(root, self.scores[0]))
        else:
            self.scores[0] = 0.0
        yield from self._emit(Best((), 0, root, self.scores[0], 0))
        if self.rules.warmup:
            yield from self._warm_up()
        while self.stack and len(self.history) < self.budget:
            candidates = self._candidates()
            source = self._choose(candidates) if candidates else None
            self.declined = bool(candidates) and source is None
            if source is not None:
                yield from self._try(next(item for item in candidates if item.source == source))
            elif self.rules.backtrack:
                yield from self._leave()
            else:
                break
        if self.recorded:
            raise ValueError(
                f"journal has {len(self.recorded)} events after the end of this search: raise budget (now "
                f"{self.budget}), or start with an empty journal."
            )
        return "" if len(self.history) >= self.budget else self._reason()

    def _reason(self) -> str:
        """Why nothing is left to try."""
        left = [count - used for count, used in zip(self.chunks, self.used, strict=True)]
        if not sum(left):
            return f"all {sum(self.chunks)} chunks were tried"
        if not self.rules.backtrack:
            return "nothing is left to try from the last accepted trial, and the rules forbid to go back"
        if self.declined:
            return f"the selection wants none of the {sum(left)} chunks that are left"
        pruned = sum(left[source] for source in self.ever_pruned)
        return (
            "from every accepted trial and the base model, each source was tried or is pruned (chunks left:"
            f" {sum(left)}, in pruned sources: {pruned})"
        )

    def _warm_up(self) -> _Part:
        root, scores = self.states[0], []
        for source in range(len(self.chunks)):
            node = -1 - source
            score = yield from self._score(TrainingRequest(node, 0, root, source, 0, 0))
            scores.append(score)
            self.observations.append(ScoredState(_plus(root, source), score, warmup=True))
            if self.rules.reuse_warmup:
                self.warm[source] = score
            yield from self._emit(Warmup(() if self.rules.reuse_warmup else (node,), node, source, score))
        worst = sorted(range(len(self.chunks)), key=scores.__getitem__)
        worst = worst[: math.floor(len(self.chunks) * self.rules.initial_pruning)]
        yield from self._prune(None, worst, 0)

    def _candidates(self) -> list[Candidate]:
        state, pruned = self.states[self.stack[-1]], self._now_pruned()
        return [
            Candidate(source, used, count - used, _plus(state, source))
            for source, (used, count) in enumerate(zip(self.used, self.chunks, strict=True))
            if used < count and source not in pruned and _plus(state, source) not in self.seen
        ]

    def _choose(self, candidates: list[Candidate]) -> int | None:
        admissible = [item.source for item in candidates]
        if self.recorded:
            # if the next event is not a trial, the selector chose none
            source = self.recorded[0].source if isinstance(self.recorded[0], Trial) else None
        else:
            source = self.select(candidates, tuple(self.observations), tuple(self.history))
        if source is None:
            return None
        if source not in admissible:
            raise (
                self._foreign()
                if self.recorded
                else ValueError(
                    f"select must return one of {admissible} or None, got {source}: return a candidate's source."
                )
            )
        return int(source)

    def _try(self, candidate: Candidate) -> _Part:
        parent, source, chunk = self.stack[-1], candidate.source, candidate.chunk
        node, spare = len(self.history) + 1, -1 - source
        reused = parent == 0 and chunk == 0 and source in self.warm
        if reused:
            score, weights = self.warm[source], spare
        else:
            origin, state = self.weights[parent], self.states[parent]
            score = yield from self._score(TrainingRequest(node, origin, state, source, chunk, parent))
            weights = node
            # a result of the warm-up is already in the observations
            self.observations.append(ScoredState(candidate.state, score))
        above = self.scores[parent]
        accepted = self.rules.accept == "always" or score > above + self.rules.margin
        better = score > self.scores[self.best]
        drop = [] if accepted or better else [weights]
        # the first chunk of the source is spent, and with it the use of its warm-up
        if self.warm.pop(source, None) is not None and not reused:
            drop.append(spare)
        trial = Trial(
            tuple(drop), node, parent, source, chunk, candidate.state, score, above, accepted, reused, weights
        )
        self.used[source] += 1
        self.history.append(source)
        self.seen.add(candidate.state)
        self.children[parent].append(trial)
        self.states[node], self.scores[node], self.weights[node] = candidate.state, score, weights
        if accepted:
            self.stack.append(node)
            self.children[node], self.pruned[node] = [], set()
        yield from self._emit(trial)
        if better:
            old, self.best = self.best, node
            gone = () if old in self.stack or old == 0 else (self.weights[old],)
            yield from self._emit(Best(gone, node, candidate.state, score, weights))

    def _leave(self) -> _Part:
        """Prune by the children of the exhausted parent and return to the one before it."""
        node = self.stack[-1]
        floor = len(self.chunks) // 4
        if self.rules.prune and len(self.chunks) - len(self._now_pruned()) > floor:
            children = sorted(self.children[node], key=lambda trial: trial.score)
            worst = [trial.source for trial in children[: len(children) // 4]]
            keeper = 0 if self.rules.prune_scope == "global" else self.stack[max(len(self.stack) - 2, 0)]
            yield from self._prune(node, worst, keeper)
        self.stack.pop()
        del self.pruned[node]
        drop = () if node in (0, self.best) else (self.weights[node],)
        yield from self._emit(Backtrack(drop, node, self.stack[-1] if self.stack else None))

    def _prune(self, node: int | None, worst: list[int], keeper: int) -> _Part:
        floor = max(1, len(self.chunks) // 4)
        before, sources = self._now_pruned(), []
        live = len(self.chunks) - len(before)
        for source in worst:
            if source not in before:
                if self.rules.strict_floor and live <= floor:
                    continue
                live -= 1
            sources.append(source)
        if not sources:
            return
        self.pruned[keeper].update(sources)
        self.ever_pruned.update(sources)
        drop = []
        if keeper == 0:  # for the rest of the search, because the root is left last
            drop = [-1 - source for source in sources if self.warm.pop(source, None) is not None]
        yield from self._emit(Prune(tuple(drop), node, tuple(sources)))

    def _now_pruned(self) -> set[int]:
        return set().union(*(self.pruned[node] for node in self.stack))

    def _score(self, request: TrainingRequest) -> Generator[TrainingRequest | Event, float | None, float]:
        if self.recorded:
            recorded = self.recorded[0]
            if not isinstance(recorded, Warmup | Trial | Best):
                raise self._foreign()
            return recorded.score
        score = yield request
        if score is None or not math.isfinite(score):
            raise ValueError(f"the score of node {request.node} must be finite, got {score}: lower the learning rate.")
        return float(score)

    def _emit(self, event: Event) -> _Part:
        if not self.recorded:
            yield event
            return
        if self.recorded[0] != event:
            raise self._foreign()
        self.recorded.popleft()
        self.replayed += 1

    def _foreign(self) -> ValueError:
        return ValueError(
            f"journal event {self.replayed + 1} ({self.recorded[0].kind}) does not belong to this search: resume with "
            "the same sources, preset and journal, or start with an empty journal."
        )


def _plus(state: State, source: int) -> State:
    return (*state[:source], state[source] + 1, *state[source + 1 :])
