"""The budget of a search: which chunks are charged, and the share of the pool that the paper's setting comes to."""

from hypothesis import given
from hypothesis import strategies as st

from saccade.callbacks.trait.costs import costs
from saccade.callbacks.trait.events import Event, Trial, Warmup
from saccade.callbacks.trait.search import search
from saccade.callbacks.trait.selectors import RandomSelector
from tests.callbacks.trait.cases import noise, state_of, trials

CHUNK, SOURCES, TRIALS, POOL = 640, 28, 150, 2_848_000  # those of Trait's predecessor


def pool(sizes: list[int], chunk: int) -> tuple[list[int], dict[tuple[int, int], int]]:
    """Chunks of each source, and the pairs of each chunk, of which only a source's last may be short."""
    counts = [-(-size // chunk) for size in sizes]
    return counts, {
        (source, place): min(chunk, size - place * chunk)
        for source, size in enumerate(sizes)
        for place in range(counts[source])
    }


def played(sizes: list[int], chunk: int, budget: int, preset: str, seed: int = 0) -> list[Event]:
    return list(search(pool(sizes, chunk)[0], noise(seed), RandomSelector(seed), budget, preset))


def test_the_papers_setting_evaluates_four_percent_of_the_pool() -> None:
    sizes = [POOL // SOURCES] * (SOURCES - 1)
    sizes.append(POOL - sum(sizes))
    events = played(sizes, CHUNK, TRIALS, "released")
    found = costs(events, lambda source, chunk: pool(sizes, CHUNK)[1][source, chunk], POOL)
    assert (found.chunks, found.evaluated) == (178, 113_920)
    assert str(found) == "113,920 of 2,848,000 pairs evaluated (4.0%)"


def test_a_trial_that_the_warm_up_answers_costs_nothing() -> None:
    # every child is better than its parent, so that the search leaves the root
    events = list(search([5, 5, 5], lambda request: 0.01 * sum(state_of(request)), RandomSelector(0), 9))
    reused = [trial.reused for trial in trials(events)]
    assert True in reused
    assert False in reused
    found = costs(events, lambda source, chunk: 4, 60)
    assert found.chunks == 3 + reused.count(False)
    assert found.evaluated == 4 * found.chunks


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.integers(1, 12),
    st.integers(1, 30),
    st.sampled_from(["corrected", "released"]),
    st.integers(0, 5),
)
def test_nothing_is_charged_but_warm_up_and_trials(
    sizes: list[int], chunk: int, budget: int, preset: str, seed: int
) -> None:
    counts, pairs = pool(sizes, chunk)
    events = list(search(counts, noise(seed), RandomSelector(seed), budget, preset))
    found = costs(events, lambda source, number: pairs[source, number], sum(sizes))
    first = sum(isinstance(event, Warmup) for event in events)
    spent = sum(isinstance(event, Trial) for event in events)
    assert found.chunks <= first + min(budget, sum(counts))
    assert found.chunks == first + spent - sum(trial.reused for trial in trials(events))
    # the warm-up aside, a pair is charged once at most, so that a short last chunk counts as what it is
    assert found.evaluated <= sum(sizes) + sum(pairs[source, 0] for source in range(len(sizes)))
    assert found.evaluated <= chunk * found.chunks
