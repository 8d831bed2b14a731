from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from saccade.callbacks.trait import selectors as trait_selectors
from saccade.callbacks.trait.events import Trial
from saccade.callbacks.trait.search import search
from saccade.callbacks.trait.selectors import (
    AllSourcesSelector,
    BestSourceSelector,
    Candidate,
    PollingSelector,
    RandomSelector,
    ScoredState,
    Selector,
    SimilaritySelector,
    TraitSelector,
)

EVERY: list[Selector] = [
    TraitSelector(),
    TraitSelector("released", "ei_released"),
    RandomSelector(1),
    PollingSelector(),
    SimilaritySelector([0.1, 0.3, 0.2, 0.0]),
    BestSourceSelector(),
    AllSourcesSelector(1),
]
SOURCES = 4


def successors(sources: Sequence[int], parent: Sequence[int] = (0,) * SOURCES, left: int = 3) -> list[Candidate]:
    return [Candidate(k, parent[k], left, tuple(n + (place == k) for place, n in enumerate(parent))) for k in sources]


WARM = [
    ScoredState((0, 0, 0, 0), 0.40),
    *[
        ScoredState(tuple(int(k == place) for place in range(SOURCES)), score, warmup=True)
        for k, score in enumerate((0.41, 0.45, 0.38, 0.42))
    ],
]


@pytest.mark.parametrize("select", EVERY, ids=lambda item: f"{type(item).__name__}-{getattr(item, 'surrogate', '')}")
def test_every_rule_chooses_a_candidate_and_the_same_one_again(select: Selector) -> None:
    for sources in ([0, 1, 2, 3], [1, 2], [1]):
        for trials in range(9):
            history = [trials % SOURCES] * trials
            chosen = select(successors(sources), WARM, history)
            assert chosen in sources
            assert select(successors(sources), WARM, history) == chosen


def test_trait_goes_on_with_what_has_helped() -> None:
    observations = [*WARM, ScoredState((0, 2, 0, 0), 0.48), ScoredState((0, 1, 1, 0), 0.43)]
    assert TraitSelector()(successors([0, 1, 2], (0, 2, 0, 0)), observations, [1, 2]) in (0, 1)
    assert TraitSelector()(successors([0, 2], (0, 2, 0, 0)), observations, [1, 2]) == 0


def test_trait_takes_the_lowest_of_equal_candidates() -> None:
    root = [ScoredState((0, 0, 0, 0), 0.4)]
    assert TraitSelector()(successors([1, 2, 3]), root, []) == 1
    assert TraitSelector()(successors([2, 3]), [], []) == 2


def test_the_released_formula_chooses_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    # a large improvement, a slight one and none, above the best observation of 0.45
    predicted = np.array([0.47, 0.456, 0.45]), np.full(3, 0.01)
    monkeypatch.setattr(trait_selectors, "posterior", lambda *_: predicted)
    assert TraitSelector()(successors([0, 2, 3]), WARM, []) == 0
    assert TraitSelector(acquisition="ei_released")(successors([0, 2, 3]), WARM, []) == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"surrogate": "forest"}, "surrogate must be corrected or released, got 'forest'"),
        ({"acquisition": "ucb"}, "acquisition must be ei or ei_released, got 'ucb'"),
        ({"xi": -0.1}, "xi must be at least 0, got -0.1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TraitSelector(**settings)  # type: ignore[arg-type]


def test_random_takes_every_source_once_in_a_lap_and_follows_its_seed() -> None:
    def lap(seed: int, start: int) -> list[int | None]:
        return [
            RandomSelector(seed)(successors(range(SOURCES)), WARM, [0] * trial) for trial in range(start, start + 4)
        ]

    assert sorted(lap(0, 0)) == sorted(lap(0, 4)) == [0, 1, 2, 3]
    assert len({tuple(lap(seed, 0)) for seed in range(10)}) > 3
    assert len({tuple(lap(0, start)) for start in range(0, 40, 4)}) > 3


def test_polling_goes_round_and_skips_what_is_not_there() -> None:
    history: list[int] = []
    for _ in range(5):
        history.append(PollingSelector()(successors([0, 2, 3]), WARM, history))  # type: ignore[arg-type]
    assert history == [0, 2, 3, 0, 2]


def test_similarity_is_of_the_source_or_of_the_chunk() -> None:
    assert SimilaritySelector([0.1, 0.3, 0.3, 0.0])(successors([0, 1, 2, 3]), WARM, []) == 1
    by_chunk = SimilaritySelector([[0.1, 0.9], [0.3, 0.0], [0.2, 0.2], [0.0, 0.0]])
    assert by_chunk(successors([0, 1, 2]), WARM, []) == 1
    assert by_chunk(successors([0, 1, 2], (1, 1, 1, 0)), WARM, []) == 0
    for similarities in ([0.1], [[0.1, 0.2], [], [0.1], [0.1]]):
        with pytest.raises(ValueError, match="similarities has no entry for chunk 0 of source 1"):
            SimilaritySelector(similarities)(successors([0, 1]), WARM, [])  # type: ignore[arg-type]


def test_the_best_source_is_that_of_the_warmup_and_nothing_else() -> None:
    later = [*WARM, ScoredState((1, 0, 1, 0), 0.9)]
    assert BestSourceSelector()(successors([0, 1, 2, 3]), later, [0, 2]) == 1
    assert BestSourceSelector()(successors([0, 2]), later, [0, 2]) is None
    with pytest.raises(ValueError, match="needs the scores of a warm-up, got none"):
        BestSourceSelector()(successors([0, 1]), WARM[:1], [])


def test_all_sources_are_drawn_in_proportion_to_what_is_left() -> None:
    candidates = [Candidate(0, 0, 1, (1, 0, 0, 0)), Candidate(3, 0, 9, (0, 0, 0, 1))]
    drawn = Counter(AllSourcesSelector(0)(candidates, WARM, [0] * trial) for trial in range(2000))
    assert set(drawn) == {0, 3}
    assert 150 < drawn[0] < 250


def test_a_search_with_each_rule_spends_its_budget() -> None:
    def score(request: object) -> float:
        return float(np.random.default_rng(getattr(request, "node", 0) + 100).normal())

    for select in EVERY:
        tried = [event for event in search([3] * SOURCES, score, select, 8) if isinstance(event, Trial)]
        assert len(tried) <= 8
        assert {event.source for event in tried} <= (
            {1, 0, 2, 3}
            if not isinstance(select, BestSourceSelector)
            else {max(range(SOURCES), key=lambda k: np.random.default_rng(99 - k).normal())}
        )
