from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
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
from saccade.callbacks.trait.search import Select, search, search_steps
from tests.callbacks.trait.cases import (
    PLAIN,
    PRESET,
    SELECTORS,
    TRACES,
    lowest,
    noise,
    short,
    state_of,
    trace,
    trials,
)


def test_golden_trace_a() -> None:
    assert short(trace("A")) == [
        ("best", 0, (0, 0, 0), 0.50),
        (0, 0, 0, 0.55, True),
        ("best", 1, (1, 0, 0), 0.55),
        (1, 0, 1, 0.60, True),
        ("best", 2, (2, 0, 0), 0.60),
        (2, 0, 2, 0.60, False),
        (2, 1, 0, 0.58, False),
        (2, 2, 0, 0.61, True),
        ("best", 5, (2, 0, 1), 0.61),
        (5, 1, 1, 0.59, False),
        ("back", 5, 2),
        ("back", 2, 1),
        ("back", 1, 0),
        ("back", 0, None),
    ]


def test_golden_trace_b() -> None:
    assert short(trace("B")) == [
        ("best", 0, (0,) * 8, 0.40),
        *[(0, source, 0, round(0.399 - 0.001 * source, 6), False) for source in range(8)],
        ("prune", 0, 7, 6),
        ("back", 0, None),
    ]


def test_golden_trace_b_shows_what_a_root_of_zero_does() -> None:
    events = trace("B", replace(PLAIN, root="zero"))
    assert trials(events)[0].accepted
    assert [event for event in events if isinstance(event, Best)][-1].node == 1


def test_golden_trace_c() -> None:
    assert short(trace("C")) == [
        ("best", 0, (0, 0, 0), 0.50),
        (0, 0, 0, 0.52, True),
        ("best", 1, (1, 0, 0), 0.52),
        (1, 1, 0, 0.51, False),
        (1, 2, 0, 0.50, False),
        ("back", 1, 0),
        (0, 1, 1, 0.515, True),
        (4, 2, 1, 0.53, True),
        ("best", 5, (0, 1, 1), 0.53),
        ("back", 5, 4),
        ("back", 4, 0),
        ("back", 0, None),
    ]


@pytest.mark.parametrize("budget", [None, 3])
def test_released_accepts_the_first_trial_and_corrected_returns_the_base_model(budget: int | None) -> None:
    released, corrected = (trace("B", preset, budget) for preset in ("released", "corrected"))
    assert trials(released)[0].accepted
    assert [event.node for event in corrected if isinstance(event, Best)] == [0]


@settings(max_examples=150, deadline=None)
@example([2] * 9, 0, None, PRESETS["corrected"], SELECTORS[0])
@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=9),
    st.integers(0, 10**6),
    st.none() | st.integers(1, 12),
    PRESET,
    st.sampled_from(SELECTORS),
)
def test_any_search_keeps_the_rules(
    chunks: list[int], seed: int, budget: int | None, preset: Preset, select: Select
) -> None:
    requests: list[TrainingRequest] = []

    def evaluate(request: TrainingRequest) -> float:
        requests.append(request)
        return noise(seed)(request)

    sources, floor = len(chunks), max(1, len(chunks) // 4)
    stack, scores, states = [0], {}, {0: (0,) * sources}
    best, pruned, children = 0, {0: set()}, {0: []}
    alive = {0}
    for event in search(chunks, evaluate, select, budget, preset):
        live = sources - len(set().union(*(pruned[node] for node in stack)))
        match event:
            case Warmup():
                alive.add(event.node)
            case Trial():
                assert event.parent == stack[-1]
                assert all(event.source not in pruned[node] for node in stack)
                assert event.parent_score == scores[event.parent]
                assert event.accepted == (event.score > event.parent_score + preset.margin)
                expected = list(states[event.parent])
                expected[event.source] += 1
                assert event.state == tuple(expected)
                first = event.parent == 0 and event.chunk == 0
                assert event.reused == (first and preset.warmup and preset.reuse_warmup)
                assert event.weights == (-1 - event.source if event.reused else event.node)
                states[event.node], scores[event.node] = event.state, event.score
                children[event.parent].append(event)
                alive.add(event.weights)
                if event.accepted:
                    stack.append(event.node)
                    pruned[event.node], children[event.node] = set(), []
            case Best():
                assert event.score == max(scores.values(), default=event.score)
                scores[event.node], best = event.score, event.node
            case Prune():
                count = sources * preset.initial_pruning if event.node is None else len(children[stack[-1]]) // 4
                assert len(event.sources) == int(count) or preset.strict_floor
                assert len(event.sources) <= int(count)
                if event.node is not None:
                    assert live > sources // 4
                    worst = sorted(children[event.node], key=lambda trial: trial.score)
                    assert set(event.sources) <= {trial.source for trial in worst[: len(worst) // 4]}
                at = stack[max(len(stack) - 2, 0)] if preset.prune_scope == "subtree" else 0
                pruned[at if event.node is not None else 0].update(event.sources)
                left = sources - len(set().union(*(pruned[node] for node in stack)))
                assert left >= min(live, floor) or not preset.strict_floor
            case Backtrack():
                assert stack.pop() == event.node
                assert event.to == (stack[-1] if stack else None)
        assert [scores[node] for node in stack] == sorted({scores[node] for node in stack})
        # what is dropped is there, and what is kept suffices to go on and to return the best
        assert set(event.drop) <= alive
        alive -= set(event.drop)
    found = [states[node] for node in states if node]
    assert scores[best] == max(scores.values())
    assert len(found) == len(states) - 1 == len(set(found)) <= (budget or sum(chunks))
    assert 0 in alive
    warmups = sum(request.node < 0 for request in requests)
    assert warmups == (sources if preset.warmup else 0)
    assert len({request.node for request in requests}) == len(requests)


def test_pruning_stops_at_the_floor_where_the_released_one_overshoots() -> None:
    preset = Preset(initial_pruning=0.99)
    for strict, left in ((True, 2), (False, 1)):
        events = list(
            search(
                [2] * 8,
                lambda r: TRACES["B"][1](state_of(r)),
                lowest,
                1,
                replace(preset, strict_floor=strict),
            )
        )
        assert [8 - len(event.sources) for event in events if isinstance(event, Prune)] == [left]


def test_nothing_is_pruned_where_a_quarter_of_the_sources_is_live() -> None:
    def events(initial: float) -> list[Event]:
        preset = Preset(initial_pruning=initial, strict_floor=False)
        return list(search([1] * 16, lambda r: -float(np.dot(state_of(r), range(1, 17))), lowest, None, preset))

    assert [len(event.sources) for event in events(0.75) if isinstance(event, Prune)] == [12]
    assert [len(event.sources) for event in events(0.5) if isinstance(event, Prune)] == [8, 2]


def test_a_subtree_gets_pruned_sources_back_when_its_parent_is_left() -> None:
    # 1 helps, then from {1}: all hurt, 4 sources tried, so that one is pruned below the root's child only
    def evaluate(request: TrainingRequest) -> float:
        state = state_of(request)
        return {0: 0.5, 1: 0.6 + 0.01 * state[0]}.get(sum(state), 0.4 - 0.01 * state[3])

    def sources_tried(scope: Any) -> list[tuple[int, int]]:
        preset = replace(PLAIN, prune_scope=scope)
        events = search([4, 4, 4, 4], evaluate, lowest, None, preset)
        return [(trial.parent, trial.source) for trial in trials(list(events))]

    assert (0, 3) not in sources_tried("global")
    assert (0, 3) not in sources_tried("subtree")  # the root is the parent of the exhausted node, and is never left

    def deeper(request: TrainingRequest) -> float:
        state = state_of(request)
        if sum(state) <= 2:
            return 0.1 * sum(state) - (0.001 * state[3])
        return -float(state[3])

    preset = replace(PLAIN, prune_scope="subtree")
    events = list(search([9, 9, 9, 9], deeper, lowest, 40, preset))
    first = next(event for event in events if isinstance(event, Prune))
    later = trials(events[events.index(first) :])
    assert first.sources == (3,)
    assert first.node == 2
    assert any(trial.source == 3 and trial.parent not in (1, 2) for trial in later)
    assert all(trial.source != 3 for trial in trials(list(search([9] * 4, deeper, lowest, 40, PLAIN)))[6:])


def test_always_accepting_trains_on_whatever_is_selected() -> None:
    events = trace("B", replace(PLAIN, accept="always"), budget=5)
    assert [trial.parent for trial in trials(events)] == [0, 1, 2, 3, 4]


def test_without_backtracking_the_first_exhausted_parent_ends_the_search() -> None:
    assert short(trace("C", replace(PLAIN, backtrack=False)))[-1] == (1, 2, 0, 0.50, False)


def test_a_margin_keeps_small_gains_out_of_the_path_but_not_out_of_the_best() -> None:
    events = trace("A", replace(PLAIN, margin=0.02))
    assert [trial.accepted for trial in trials(events)[:5]] == [True, True, False, False, False]
    assert [event.node for event in events if isinstance(event, Best)][-1] == 5
    assert all(5 not in event.drop for event in events)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"chunks_per_source": []}, "chunks_per_source must have an entry for each source, got none"),
        ({"chunks_per_source": [2, 0]}, "got 0 for source 1"),
        ({"budget": 0}, "budget must be at least 1"),
        ({"preset": "best"}, "preset must be corrected or released, got 'best'"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_evaluated(settings: dict[str, Any], words: str) -> None:
    chosen = {"chunks_per_source": [1], "budget": 1, "preset": PLAIN} | settings
    with pytest.raises(ValueError, match=words):
        search(evaluate=lambda _: 0.0, select=lowest, **chosen)


def test_what_evaluate_select_and_journal_get_wrong_is_said_in_one_line() -> None:
    def message(**changes: Any) -> str:
        arguments = {"evaluate": lambda r: TRACES["A"][1](state_of(r)), "select": lowest, "journal": ()}
        with pytest.raises(ValueError) as caught:
            list(search([3, 2, 1], budget=4, preset=PLAIN, **(arguments | changes)))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "node 0 must be finite, got nan" in message(evaluate=lambda _: float("nan"))
    assert "one of [0, 1, 2] or None, got 7" in message(select=lambda *_: 7)
    assert "journal event 1 (best)" in message(journal=trace("B"))
    assert "journal event 2 (backtrack)" in message(journal=[trace("A")[0], Backtrack((), 4, 2)])
    assert "raise budget (now 4)" in message(journal=trace("A"))
    entry = trace("A")[1].to_dict()
    for broken in ({}, {"kind": "trail"}, {**entry, "more": 1}, {"kind": "trial"}):
        with pytest.raises(ValueError, match="is not an event of a Trait search"):
            Event.from_dict(broken)


def test_golden_traces_spend_what_they_should() -> None:
    used = [sum(trial.source == source for trial in trials(trace("A"))) for source in range(3)]
    assert used == [3, 2, 1]
    assert [trial.node for trial in trials(trace("B"))] == list(range(1, 9))
    assert all(a.node < b.node for a, b in pairwise(trials(trace("C"))))


def reason(chunks: list[int], budget: int | None, preset: Preset, select: Select, seed: int = 0) -> str:
    """Why a search ends."""
    evaluate = noise(seed)
    steps, answer = search_steps(chunks, select, budget, preset), None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as end:
            return str(end.value)
        answer = evaluate(step) if isinstance(step, TrainingRequest) else None


def test_a_search_that_ends_before_its_budget_says_why() -> None:
    always = replace(PLAIN, accept="always")
    assert reason([5, 5], 4, always, lowest) == ""
    assert reason([2, 3], 5, always, lowest) == "", "the budget is spent with the last chunk"
    assert reason([2, 3], 6, always, lowest) == "all 5 chunks were tried"
    assert reason([2, 3], None, always, lowest) == "all 5 chunks were tried"
    assert (
        reason([4, 4], 9, always, lambda candidates, *_: None)
        == "the selection wants none of the 8 chunks that are left"
    )
    assert "the rules forbid to go back" in reason([4, 4], 9, replace(always, backtrack=False), lambda *_: None)
    # no child is better than the base model: each source is tried once from it
    never = replace(PLAIN, margin=100.0)
    said = reason([3] * 8, 50, replace(never, prune=True), lowest)
    assert said.endswith("each source was tried or is pruned (chunks left: 16, in pruned sources: 4)")
