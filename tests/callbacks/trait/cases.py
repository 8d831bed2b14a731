"""Golden traces, arbitrary scores and rules for the tests of the search of Trait."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

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
from saccade.callbacks.trait.search import Select, search
from saccade.callbacks.trait.selectors import Candidate, PollingSelector, RandomSelector, ScoredState

PLAIN = replace(PRESETS["corrected"], warmup=False)
TABLE = {"000": 0.50, "100": 0.52, "110": 0.51, "101": 0.50, "010": 0.515, "011": 0.53}
TRACES: dict[str, tuple[list[int], Callable[[Sequence[int]], float]]] = {
    "A": ([3, 2, 1], lambda v: round(0.50 + 0.05 * min(v[0], 2) - 0.02 * v[1] + 0.01 * v[2], 6)),
    "B": ([2] * 8, lambda v: round(0.40 - 0.001 * sum((i + 1) * n for i, n in enumerate(v)), 6)),
    "C": ([1, 2, 2], lambda v: TABLE["".join(map(str, v))]),
}


def lowest(candidates: Sequence[Candidate], observations: Sequence[ScoredState], history: Sequence[int]) -> int:
    """A selector that takes the lowest admissible source."""
    return candidates[0].source


def state_of(request: TrainingRequest) -> tuple[int, ...]:
    state = list(request.parent_state)
    if request.source is not None:
        state[request.source] += 1
    return tuple(state)


def trace(name: str, preset: str | Preset = PLAIN, budget: int | None = None) -> list[Event]:
    chunks, score = TRACES[name]
    return list(search(chunks, lambda request: score(state_of(request)), lowest, budget, preset))


def trials(events: Sequence[Event]) -> list[Trial]:
    return [event for event in events if isinstance(event, Trial)]


def short(events: Sequence[Event]) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for event in events:
        match event:
            case Trial():
                rows.append((event.parent, event.source, event.chunk, event.score, event.accepted))
            case Backtrack():
                rows.append(("back", event.node, event.to))
            case Prune():
                rows.append(("prune", event.node, *event.sources))
            case Best():
                rows.append(("best", event.node, event.state, event.score))
            case Warmup():
                rows.append(("warmup", event.source, event.score))
    return rows


def noise(seed: int) -> Callable[[TrainingRequest], float]:
    """An arbitrary evaluator: any score for any chunk, some of them equal."""

    def evaluate(request: TrainingRequest) -> float:
        key = [seed, request.node + 1000, *request.parent_state]
        return float(np.random.default_rng(key).integers(12)) / 12

    return evaluate


SELECTORS: list[Select] = [lowest, RandomSelector(3), PollingSelector()]
PRESET = st.builds(
    Preset,
    root=st.sampled_from(["measured", "zero"]),
    warmup=st.just(True),
    reuse_warmup=st.booleans(),
    initial_pruning=st.sampled_from([0.0, 0.25, 0.5]),
    prune=st.booleans(),
    strict_floor=st.booleans(),
    prune_scope=st.sampled_from(["global", "subtree"]),
    margin=st.sampled_from([0.0, 0.1]),
    backtrack=st.booleans(),
) | st.sampled_from([PLAIN, *PRESETS.values()])
