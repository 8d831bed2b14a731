import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.callbacks.trait import surrogate
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
    needed,
)
from saccade.callbacks.trait.search import search, search_steps
from saccade.callbacks.trait.selectors import (
    PollingSelector,
    RandomSelector,
    Selector,
    TraitSelector,
)
from tests.callbacks.trait.cases import PLAIN, PRESET, TRACES, lowest, noise, short, state_of, trace, trials


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=6), st.integers(0, 10**6), PRESET)
def test_every_chunk_is_spent_once_in_order_and_weights_exist_when_they_are_asked_for(
    chunks: list[int], seed: int, preset: Preset
) -> None:
    alive, spent = {0}, [0] * len(chunks)
    steps, answer, evaluated = search_steps(chunks, RandomSelector(seed), None, preset), None, 0
    events: list[Event] = []
    while True:
        try:
            step = steps.send(answer)
        except StopIteration:
            break
        answer = None
        if isinstance(step, TrainingRequest):
            assert step.parent is None or step.parent in alive
            answer = noise(seed)(step)
            evaluated += 1
            continue
        events.append(step)
        if isinstance(step, Trial):
            assert step.chunk == spent[step.source] < chunks[step.source]
            spent[step.source] += 1
            assert not step.reused or step.weights in alive
            alive.add(step.weights)
        elif isinstance(step, Warmup):
            alive.add(step.node)
        alive -= set(step.drop)
        assert alive == needed(events)
        # a warm-up waits for its source to be tried from the root, as long as that may happen
        gone = {trial.weights for trial in trials(events)}
        if preset.prune_scope == "global":
            gone |= {-1 - k for event in events if isinstance(event, Prune) for k in event.sources}
            waiting = {-1 - event.source for event in events if isinstance(event, Warmup) and not spent[event.source]}
            assert {node for node in alive if node < 0} - gone == (waiting - gone if preset.reuse_warmup else set())
        best = [event for event in events if isinstance(event, Best)][-1:]
        assert not best or best[0].weights in alive
    assert sum(spent) == len(trials(events)) <= sum(chunks)
    fresh = [trial for trial in trials(events) if not trial.reused]
    measured = preset.root == "measured"
    assert evaluated == measured + (len(chunks) if preset.warmup else 0) + len(fresh)


def test_the_first_chunk_tried_from_the_root_is_answered_by_the_warmup() -> None:
    asked: list[TrainingRequest] = []

    def evaluate(request: TrainingRequest) -> float:
        asked.append(request)
        return TRACES["B"][1](state_of(request))

    events = list(search([2] * 8, evaluate, lowest, None))
    assert len(asked) == 9
    assert all(trial.reused and trial.weights == -1 - trial.source for trial in trials(events))
    assert needed(events) == {0}
    assert sum(isinstance(event, Backtrack) for event in events) == 1
    asked.clear()
    events = list(search([2] * 8, evaluate, lowest, 3, "released"))
    assert len(asked) == 8 + 3
    assert not any(trial.reused for trial in trials(events))


def test_a_warmup_is_dropped_when_its_chunk_is_spent_below_the_root() -> None:
    events = list(search([2, 2, 2], lambda r: float(sum(state_of(r))), PollingSelector(), 3))
    assert [(trial.reused, trial.drop) for trial in trials(events)] == [(True, ()), (False, (-2,)), (False, (-3,))]
    assert needed(events) == {0, -1, 2, 3}


def test_a_child_of_a_reused_node_goes_on_from_the_weights_of_the_warmup() -> None:
    asked: list[TrainingRequest] = []

    def evaluate(request: TrainingRequest) -> float:
        asked.append(request)
        return float(sum(state_of(request)))

    list(search([2, 2], evaluate, lowest, 2))
    assert asked[-1] == TrainingRequest(node=2, parent=-1, parent_state=(1, 0), source=0, chunk=1, parent_node=1)


@pytest.fixture
def fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of points that were fitted before is taken again; test_surrogate fits equal points twice."""
    fit, kept = surrogate.fit_process, {}

    def fit_process(kernel: Any, points: Any, values: Any, **settings: Any) -> Any:
        key = (repr(kernel), points.tobytes(), values.tobytes(), repr(settings))
        if key not in kept:
            kept[key] = fit(kernel, points, values, **settings)
        return kept[key]

    monkeypatch.setattr(surrogate, "fit_process", fit_process)


@pytest.mark.usefixtures("fitted_once")
@pytest.mark.parametrize(
    "preset", [PRESETS["corrected"], PRESETS["released"], PLAIN], ids=["corrected", "released", "plain"]
)
@pytest.mark.parametrize(
    "select", [TraitSelector(), RandomSelector(5), PollingSelector()], ids=lambda s: type(s).__name__
)
def test_a_search_that_is_killed_at_any_event_ends_with_the_same_journal(preset: Preset, select: Selector) -> None:
    chunks, calls = [2, 3, 2, 2, 1], []
    whole = list(search(chunks, noise(11), select, 9, preset))
    assert len(whole) > 10
    for kept in range(len(whole) + 1):
        calls.clear()
        lines = [json.dumps(event.to_dict()) for event in whole[:kept]]
        journal = [Event.from_dict(json.loads(line)) for line in lines]
        assert journal == whole[:kept]

        def evaluate(request: TrainingRequest) -> float:
            calls.append(request)
            return noise(11)(request)

        rest = list(search(chunks, evaluate, select, 9, preset, journal=journal))
        assert [json.dumps(event.to_dict()) for event in rest] == [json.dumps(e.to_dict()) for e in whole[kept:]]
        known = {event.node for event in journal if isinstance(event, Trial | Warmup)}
        assert not known & {request.node for request in calls if request.node}


def test_replay_calls_neither_evaluate_nor_select() -> None:
    def never(*_: object) -> Any:
        raise AssertionError("called")

    whole = trace("C")
    assert list(search(TRACES["C"][0], never, never, None, PLAIN, journal=whole)) == []


def test_a_larger_budget_goes_on_from_the_end_of_a_search() -> None:
    first = trace("A", budget=4)
    rest = list(search([3, 2, 1], lambda r: TRACES["A"][1](state_of(r)), lowest, None, PLAIN, journal=first))
    assert first + rest == trace("A")


def test_a_selector_that_wants_nothing_leads_back_and_is_replayed() -> None:
    def picky(candidates: Sequence[Any], observations: Sequence[Any], history: Sequence[int]) -> int | None:
        return candidates[0].source if len(history) < 2 else None

    whole = list(search([4, 4], lambda r: float(sum(state_of(r))), picky, None, PLAIN))
    assert [row[:2] for row in short(whole)[-3:]] == [("back", 2), ("back", 1), ("back", 0)]
    for kept in range(len(whole)):
        rest = search([4, 4], lambda r: float(sum(state_of(r))), picky, None, PLAIN, journal=whole[:kept])
        assert whole[:kept] + list(rest) == whole


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"root": "one"}, "root must be measured or zero"),
        ({"prune_scope": "tree"}, "prune_scope must be"),
        ({"accept": "never"}, "accept must be"),
        ({"margin": -1.0}, "margin must be at least 0"),
        ({"margin": float("nan")}, "margin must be at least 0"),
        ({"initial_pruning": 1.0}, "initial_pruning must be"),
        ({"initial_pruning": 0.5, "warmup": False}, "initial_pruning must be 0 without a warm-up, got 0.5"),
    ],
)
def test_impossible_rules_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Preset(**settings)
