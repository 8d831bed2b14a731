"""Relaxed rules: which tokens are accepted and why, that looser settings accept no less, and published lengths."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from saccade.inference.trees import TokenTree
from saccade.inference.verification.draft import Draft
from saccade.inference.verification.own_choice import verify_choices
from saccade.inference.verification.relaxed import (
    FLy,
    FLyPlus,
    Judged,
    RandomRelaxation,
    RelaxedRule,
    RowState,
    Ruling,
    Strict,
    VisualRelaxation,
    ranks_and_ratios,
    top_entropy,
)

K = 10
PLAIN = VisualRelaxation(pst_window=0)
RULES: list[RelaxedRule] = [
    Strict(),
    RandomRelaxation(0.5),
    FLy(),
    FLyPlus(),
    VisualRelaxation(),
    VisualRelaxation(selection="running", pst="both", loose="top_m", top_m=2, max_loose_run=3),
    VisualRelaxation(selection="threshold", loose="ratio"),
]


@st.composite
def rounds(draw: st.DrawFn, vocabulary: int = 6, least: int = 0) -> Judged:
    """A round over so few tokens that matches, mismatches and shifts are all frequent."""
    count = draw(st.integers(least, 12))
    tokens = st.integers(0, vocabulary - 1)
    shares = st.integers(0, 20).map(lambda twentieths: twentieths / 20)

    def column(values: st.SearchStrategy) -> list:
        return draw(st.lists(values, min_size=count, max_size=count))

    drafted, choices = column(tokens), column(tokens)
    ranks = [0 if token == choice else draw(st.integers(1, 5)) for token, choice in zip(drafted, choices, strict=True)]
    return Judged(
        drafted,
        [*choices, draw(tokens)],
        relevance=column(shares),
        entropies=column(shares),
        ranks=ranks,
        ratios=[1.0 if rank == 0 else 0.5**rank for rank in ranks],
        recent=draw(st.lists(tokens, max_size=8)),
    )


def matches(judged: Judged) -> list[bool]:
    return [token == choice for token, choice in zip(judged.drafted, judged.choices, strict=False)]


def chain(drafted: str, choices: str, **more: object) -> Judged:
    """A round of words: ``drafted`` has one word less than ``choices``."""
    words = {word: index for index, word in enumerate(sorted({*drafted.split(), *choices.split()}))}
    judged = Judged([words[word] for word in drafted.split()], [words[word] for word in choices.split()])
    return replace(judged, **{"relevance": [0.5] * len(judged.drafted), **more})


def reasons(ruling: Ruling) -> list[str]:
    return [entry.reason for entry in ruling.log]


@settings(max_examples=300, deadline=None)
@given(rounds(), st.sampled_from(RULES), st.frozensets(st.integers(0, 5), max_size=2))
def test_the_log_accounts_for_every_token(judged: Judged, rule: RelaxedRule, guarded: frozenset[int]) -> None:
    ruling = rule.judge(judged, rule.begin(guarded=guarded))
    assert 0 <= ruling.accepted <= len(judged.drafted)
    assert len(ruling.log) == min(ruling.accepted + 1, len(judged.drafted))
    for place, entry in enumerate(ruling.log):
        assert (entry.position, entry.drafted, entry.choice) == (
            place + 1,
            judged.drafted[place],
            judged.choices[place],
        )
        assert (entry.reason == "match") == (entry.drafted == entry.choice)
        accepted = entry.reason in ("match", "loose", "pst")
        assert accepted == (place < ruling.accepted)
        if entry.reason in ("loose", "pst"):
            assert not {entry.drafted, entry.choice} & guarded
        if entry.reason == "guard":
            assert {entry.drafted, entry.choice} & guarded
    different = sum(not match for match in matches(judged)[: ruling.accepted])
    assert sum(entry.relaxed for entry in ruling.log) == different
    if rule.lossless:
        assert different == 0
    # a looser rule never accepts less than strict verification
    assert ruling.accepted >= Strict().judge(judged, Strict().begin()).accepted


@settings(max_examples=200, deadline=None)
@given(rounds(), st.sampled_from([Strict(), RandomRelaxation(0.0), replace(PLAIN, relaxation=0.0)]))
def test_with_nothing_relaxed_a_rule_is_greedy_verification(judged: Judged, rule: RelaxedRule) -> None:
    count = len(judged.drafted)
    draft = Draft(
        torch.tensor([judged.drafted], dtype=torch.long).reshape(1, count), [count], None, TokenTree.chain(count)
    )
    (verdict,) = verify_choices(draft, lambda rows, nodes: [judged.choices[node] for node in nodes])
    ruling = rule.judge(judged, rule.begin())
    assert verdict.path == list(range(ruling.accepted + 1))
    assert verdict.token == judged.choices[ruling.accepted]


@settings(max_examples=100, deadline=None)
@given(rounds())
def test_with_everything_relaxed_every_draft_is_accepted(judged: Judged) -> None:
    for rule in (RandomRelaxation(1.0), replace(PLAIN, relaxation=1.0), FLyPlus(threshold=0.0)):
        ruling = rule.judge(judged, rule.begin())
        assert ruling.accepted == len(judged.drafted)
        assert set(reasons(ruling)) <= {"match", "loose"}


@settings(max_examples=300, deadline=None)
@given(
    rounds(),
    st.lists(rounds(), max_size=3),
    st.sampled_from([rule for rule in RULES if isinstance(rule, VisualRelaxation)]),
    st.tuples(st.integers(0, 20), st.integers(0, 20)),
)
def test_more_relaxation_accepts_no_less(
    judged: Judged, before: list[Judged], rule: VisualRelaxation, twentieths: tuple[int, int]
) -> None:
    low, high = (replace(rule, relaxation=share / 20, max_loose_run=None) for share in sorted(twentieths))
    state = low.begin()
    for earlier in before:
        low.judge(earlier, state)
    assert high.judge(judged, copy.deepcopy(state)).accepted >= low.judge(judged, copy.deepcopy(state)).accepted
    # and tolerance of shifts accepts no less than none
    none = replace(low, pst_window=0)
    assert low.judge(judged, copy.deepcopy(state)).accepted >= none.judge(judged, copy.deepcopy(state)).accepted
    # a strict place accepts a mismatch only as a shift
    strict = low.strict_places(judged.relevance or [], state)
    for entry in low.judge(judged, copy.deepcopy(state)).log:
        if entry.position - 1 in strict:
            assert entry.reason != "loose"


@settings(max_examples=100, deadline=None)
@given(rounds(), st.tuples(st.integers(0, 20), st.integers(0, 20)))
def test_other_rules_are_monotone_too(judged: Judged, twentieths: tuple[int, int]) -> None:
    low, high = (share / 20 for share in sorted(twentieths))

    def accepted(rule: RelaxedRule) -> int:
        return rule.judge(judged, rule.begin(row=3)).accepted

    assert accepted(RandomRelaxation(low, seed=5)) <= accepted(RandomRelaxation(high, seed=5))
    assert accepted(FLyPlus(high)) <= accepted(FLyPlus(low))
    assert accepted(FLy(low, window=3)) <= accepted(FLyPlus(low))


def bernoulli_length(rule: RelaxedRule, mismatch: float, count: int, length: int = K, relevance: bool = True) -> float:
    """Mean accepted tokens over rounds of independent mismatches and independent scores."""
    stream, state = random.Random(7), rule.begin()
    total = 0
    for _ in range(count):
        choices = [0] * (length + 1)
        drafted = [1 if stream.random() < mismatch else 0 for _ in range(length)]
        scores = [stream.random() for _ in range(length)] if relevance else None
        total += rule.judge(Judged(drafted, choices, scores), state).accepted
    return total / count


@pytest.mark.parametrize(
    ("relaxation", "strict", "length"),
    [(0.0, 10, 3.41), (0.5, 5, 5.61), (0.7, 3, 7.00), (0.9, 1, 8.85), (1.0, 0, 10.0)],
)
def test_a_strict_set_of_fixed_size_has_its_known_length(relaxation: float, strict: int, length: float) -> None:
    rule = replace(PLAIN, relaxation=relaxation)
    assert len(rule.strict_places([0.1] * K, rule.begin())) == strict
    assert bernoulli_length(rule, 0.21, 20_000) == pytest.approx(length, abs=0.05)


def expected_accepted(mismatch: float, relaxation: float) -> float:
    """Mean accepted tokens of a chain of independent mismatches, of which a share is accepted independently."""
    keep = 1 - (1 - relaxation) * mismatch
    return sum(keep**place for place in range(1, K + 1))


@pytest.mark.parametrize("relaxation", [0.5, 0.7, 0.9])
def test_a_running_quantile_is_independent_relaxation(relaxation: float) -> None:
    length = bernoulli_length(replace(PLAIN, relaxation=relaxation, selection="running"), 0.21, 20_000)
    assert length == pytest.approx(expected_accepted(0.21, relaxation), abs=0.05)


@pytest.mark.parametrize("rate", [0.5, 0.75])
def test_random_relaxation_has_its_expected_length(rate: float) -> None:
    length = bernoulli_length(RandomRelaxation(rate), 0.21, 20_000, relevance=False)
    assert length == pytest.approx(expected_accepted(0.21, rate), abs=0.05)


def test_the_most_relevant_places_are_strict_and_ties_go_to_the_earlier() -> None:
    state = PLAIN.begin()
    assert PLAIN.strict_places([0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.0, 0.0, 0.0, 0.0], state) == {1, 3, 5}
    assert PLAIN.strict_places([0.5] * 10, state) == {0, 1, 2}
    assert PLAIN.strict_places([0.5], state) == {0}
    assert replace(PLAIN, relaxation=0.29).strict_places([0.5] * 100, state) == set(range(71))
    absolute = replace(PLAIN, selection="threshold", threshold=0.5)
    assert absolute.strict_places([0.1, 0.5, 0.6], state) == {1, 2}


def test_a_running_quantile_remembers_what_was_judged() -> None:
    rule = replace(PLAIN, selection="running", relaxation=0.5, history=4)
    state = rule.begin()
    assert rule.strict_places([0.1, 0.2, 0.3, 0.4], state) == {2, 3}
    rule.judge(Judged([1, 1, 0, 0], [1, 1, 1, 1, 1], [0.8, 0.9, 0.99, 0.7]), state)
    assert list(state.scores) == [0.8, 0.9, 0.99]  # the last place was not reached
    assert rule.strict_places([0.1, 0.2, 0.3, 0.85], state) == {3}
    rule.judge(Judged([1, 1], [1, 1, 1], [0.1, 0.2]), state)
    assert list(state.scores) == [0.9, 0.99, 0.1, 0.2]


SAILS = ("wooden deck and multiple sails", "multiple deck and wooden sails ,")


def test_a_shifted_word_is_excused() -> None:
    judged = chain(*SAILS)
    rule = VisualRelaxation(relaxation=0.0)
    ruling = rule.judge(judged, rule.begin())
    # "multiple" comes three words later in the draft; "wooden" has come three words earlier
    assert reasons(ruling) == ["pst", "match", "match", "pst", "match"]
    assert sum(entry.relaxed for entry in ruling.log) == 2
    assert reasons(PLAIN.judge(chain(*SAILS, relevance=[1, 0, 0, 0.5, 0.4]), PLAIN.begin())) == ["reject"]
    # a shorter window does not reach
    near = replace(rule, pst_window=2)
    assert near.judge(judged, near.begin()).accepted == 0
    far = replace(rule, pst_window=3)
    assert far.judge(judged, far.begin()).accepted == 5


def test_an_occurrence_excuses_once() -> None:
    rule = VisualRelaxation(relaxation=0.0)
    # the target wants "a" three times; the draft says it once, two places later
    assert reasons(rule.judge(chain("x y a z", "a a a b c"), rule.begin())) == ["pst", "reject"]
    assert reasons(rule.judge(chain("x y a a", "a a a a c"), rule.begin())) == ["pst", "pst", "match", "match"]


def test_an_occurrence_excuses_once_over_rounds() -> None:
    rule = VisualRelaxation(relaxation=0.0, pst_window=3)
    state = rule.begin()
    # "7" was emitted just before: it excuses the first mismatch and no second one, not in the next round either
    assert reasons(rule.judge(Judged([1, 2], [7, 2, 3], [1.0, 1.0], recent=[5, 7]), state)) == ["pst", "match"]
    fresh = rule.begin()
    following = Judged([4], [7, 0], [1.0], recent=[5, 7, 1, 2, 3])
    assert reasons(rule.judge(following, state)) == ["reject"]
    assert rule.judge(following, fresh).accepted == 0  # out of the window
    wide = replace(rule, pst_window=4)
    state, fresh = wide.begin(), wide.begin()
    wide.judge(Judged([1, 2], [7, 2, 3], [1.0, 1.0], recent=[5, 7]), state)
    assert wide.judge(Judged([4], [7, 0], [1.0], recent=[5, 7, 1, 2, 3]), state).accepted == 0
    assert wide.judge(Judged([4], [7, 0], [1.0], recent=[5, 7, 1, 2, 3]), fresh).accepted == 1


def test_a_rejected_occurrence_is_forgotten() -> None:
    rule = VisualRelaxation(relaxation=0.0)
    state = rule.begin()
    # the draft's 7 excuses the first mismatch, the 7 itself is rejected and never enters the text ...
    assert rule.judge(Judged([1, 7], [7, 3, 0], [1.0] * 2, recent=[0]), state).accepted == 1
    # ... and the 7 that the next round drafts at the same place of the text is another one
    assert state.used == set()
    assert rule.judge(Judged([8, 7], [7, 7, 0], [1.0] * 2, recent=[0, 1, 3]), state).accepted == 2


def test_both_sides_of_a_shift() -> None:
    one, both = VisualRelaxation(relaxation=0.0), VisualRelaxation(relaxation=0.0, pst="both")
    judged = chain("b x y", "q b r .")  # the target says the drafted "b" one place later; its "q" and "r" are nowhere
    assert one.judge(judged, one.begin()).accepted == 0
    assert reasons(both.judge(judged, both.begin())) == ["pst", "pst", "reject"]
    # the target's choices are those of the round: the next one has others
    state = both.begin()
    assert [both.judge(judged, state).accepted for _ in range(3)] == [2, 2, 2]
    # what the target says once excuses once
    assert reasons(both.judge(chain("b x b", "q b q ."), both.begin())) == ["pst", "pst", "reject"]
    narrow = replace(both, pst_window=1)
    assert narrow.judge(chain("b x y", "q r b ."), narrow.begin()).accepted == 0
    assert reasons(narrow.judge(chain("b x y", "q b r ."), narrow.begin())) == ["pst", "pst", "reject"]
    assert narrow.judge(chain("x b y", "b q y ."), narrow.begin()).accepted == 3


@pytest.mark.parametrize(
    "guarded",
    [{"state": [9]}, {"special_ids": [9]}, {"negation_ids": [9]}, {"option_ids": [9]}],
    ids=lambda guarded: next(iter(guarded)),
)
@pytest.mark.parametrize("side", ["drafted", "chosen"])
def test_guards_hold_against_relaxation_and_shift(guarded: dict[str, list[int]], side: str) -> None:
    ids = dict(guarded)
    rule = VisualRelaxation(relaxation=1.0, **{name: ids[name] for name in ids if name != "state"})
    token, choice = (9, 1) if side == "drafted" else (1, 9)
    judged = Judged([token, 9, 1], [choice, 9, 1, 0], [0.0] * 3, recent=[9, 1])  # both tokens occur nearby
    assert reasons(rule.judge(judged, rule.begin(guarded=ids.get("state", [])))) == ["guard"]
    # a guarded token that the target chose itself is a match like any other
    assert rule.judge(Judged([9], [9, 0], [0.0]), rule.begin(guarded=[9])).accepted == 1


def test_what_a_loose_position_accepts() -> None:
    judged = Judged([1, 1], [0, 0, 0], [0.0, 0.0], ranks=[2, 20], ratios=[0.3, 0.01])
    for rule in (replace(PLAIN, relaxation=1.0, loose="top_m"), replace(PLAIN, relaxation=1.0, loose="ratio")):
        assert rule.needs_ranks_and_ratios
        assert reasons(rule.judge(judged, rule.begin())) == ["loose", "reject"]
    exact = replace(PLAIN, relaxation=1.0, loose="ratio", ratio=0.3)
    assert exact.judge(judged, exact.begin()).accepted == 1
    # what a loose position does not accept may still be a shift
    shifted = VisualRelaxation(relaxation=1.0, loose="top_m", top_m=1)
    assert reasons(shifted.judge(replace(judged, recent=[0, 0]), shifted.begin())) == ["pst", "pst"]


def test_runs_of_relaxed_tokens_are_limited() -> None:
    rule = replace(PLAIN, relaxation=1.0, max_loose_run=2)
    state = rule.begin()
    judged = Judged([1, 1, 0, 1, 1, 1], [0] * 7, [0.0] * 6)
    assert reasons(rule.judge(judged, state)) == ["loose", "loose", "match", "loose", "loose", "reject"]
    # the round ended with a token of the target, which ends the run
    assert rule.judge(Judged([1, 1], [0, 0, 0], [0.0] * 2), state).accepted == 2


def test_fly_waits_for_a_window_of_matches() -> None:
    rule = FLy(window=2)

    def accepted(pattern: str, unsure: str) -> int:
        drafted = [0 if sign == "=" else 1 for sign in pattern]
        entropies = [0.3 if sign == "?" else 0.29 for sign in unsure]
        return rule.judge(Judged(drafted, [0] * (len(drafted) + 1), entropies=entropies), rule.begin()).accepted

    assert accepted("=x==", "????") == 4
    assert accepted("=x==", "?.??") == 1  # the target was sure
    assert accepted("=x=x==", "??????") == 1  # the window holds a second mismatch
    assert accepted("==x=", "????") == 2  # the window does not fit into the draft
    assert accepted("x==x==", "??????") == 6
    assert accepted("x", "?") == 0
    short = FLy()  # a window of 6 becomes K - 1
    judged = Judged([1, 0, 0, 0], [0] * 5, entropies=[1.0] * 4)
    assert short.judge(judged, short.begin()).accepted == 4
    assert short.judge(replace(judged, drafted=[0, 1, 0, 0]), short.begin()).accepted == 1
    gate = FLyPlus()
    assert gate.judge(replace(judged, drafted=[1, 1, 1, 1]), gate.begin()).accepted == 4


def test_entropy_of_the_top_is_brute_force() -> None:
    logits = 3 * torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probabilities = logits.softmax(-1).sort(descending=True).values[..., :3]
    expected = -(probabilities * probabilities.log()).sum(-1)
    torch.testing.assert_close(top_entropy(logits), expected.float(), rtol=1e-5, atol=1e-6)
    masked = torch.tensor([[0.0, -torch.inf, -torch.inf], [0.0, 0.0, 0.0], [1000.0, 0.0, -1000.0]])
    torch.testing.assert_close(top_entropy(masked), torch.tensor([0.0, 1.0986123, 0.0]))
    assert top_entropy(torch.zeros(1, 2)).item() == pytest.approx(0.6931472)
    assert top_entropy(masked.bfloat16()).dtype == torch.float32


def test_ranks_and_ratios_of_drafted_tokens() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 3.0], [0.0, 0.0, -torch.inf, 1.0]])
    ranks, ratios = ranks_and_ratios(logits, torch.tensor([2, 2]))
    assert ranks.tolist() == [2, 3]
    torch.testing.assert_close(ratios, torch.tensor([torch.e**-1, 0.0]))
    ranks, ratios = ranks_and_ratios(logits, torch.tensor([3, 3]))
    assert ranks.tolist() == [0, 0]
    assert ratios.tolist() == [1.0, 1.0]


def test_random_streams_differ_by_row_and_seed_and_repeat() -> None:
    judged = Judged([1] * 40, [0] * 41)

    def accepted(seed: int, row: int) -> list[int]:
        rule = RandomRelaxation(0.8, seed)
        state = rule.begin(row)
        return [rule.judge(judged, state).accepted for _ in range(20)]

    assert accepted(0, 0) == accepted(0, 0)
    assert accepted(0, 0) != accepted(0, 1)
    assert accepted(0, 0) != accepted(1, 0)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_rule_says_what_it_needs(rule: RelaxedRule) -> None:
    full = {"relevance": [0.0], "entropies": [1.0], "ranks": [1], "ratios": [0.5]}
    needs = {
        "relevance": rule.needs_relevance,
        "entropies": rule.needs_entropies,
        "ranks": rule.needs_ranks_and_ratios,
        "ratios": rule.needs_ranks_and_ratios,
    }
    needed = {name: value for name, value in full.items() if needs[name]}
    if isinstance(rule, VisualRelaxation):
        rule = replace(rule, relaxation=1.0)
    rule.judge(Judged([1], [0, 0], **needed), rule.begin())  # type: ignore[arg-type]
    if rule.needs_relevance or rule.needs_entropies:
        with pytest.raises(ValueError, match="must hold one value for every drafted token"):
            rule.judge(Judged([1], [0, 0]), rule.begin())


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: RandomRelaxation(1.1), "rate"),
        (lambda: FLyPlus(-0.1), "threshold"),
        (lambda: FLyPlus(top=0), "top"),
        (lambda: FLy(window=0), "window"),
        (lambda: VisualRelaxation(relaxation=-0.1), "relaxation"),
        (lambda: VisualRelaxation(ratio=2.0), "ratio"),
        (lambda: VisualRelaxation(selection="best"), "selection"),  # type: ignore[arg-type]
        (lambda: VisualRelaxation(loose="never"), "loose"),  # type: ignore[arg-type]
        (lambda: VisualRelaxation(pst="none"), "pst"),  # type: ignore[arg-type]
        (lambda: VisualRelaxation(history=0), "history"),
        (lambda: VisualRelaxation(pst_window=-1), "pst_window"),
        (lambda: VisualRelaxation(max_loose_run=-1), "max_loose_run"),
        (lambda: VisualRelaxation(threshold=float("nan")), "threshold"),
        (lambda: PLAIN.strict_places([float("nan")], PLAIN.begin()), "relevance"),
        (lambda: Judged([1], [1]), "choices"),
        (lambda: Judged([1], [1, 1], [0.0, 0.0]), "relevance"),
        (lambda: Judged([1], [1, 1], entropies=[]), "entropies"),
        (lambda: top_entropy(torch.zeros(3), 0), "top"),
    ],
)
def test_wrong_settings_are_refused_by_name(make: Callable[[], object], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must"):
        make()


def test_rules_are_reached_from_settings() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--rule", type=RelaxedRule)
    settings = {
        "class_path": "saccade.inference.verification.relaxed.VisualRelaxation",
        "init_args": {"option_ids": [3, 4]},
    }
    assert parser.instantiate(parser.parse_object({"rule": settings})).rule == VisualRelaxation(option_ids=[3, 4])


def test_states_are_of_one_row() -> None:
    rule = VisualRelaxation(relaxation=0.0)
    first, second = rule.begin(0), rule.begin(1)
    rule.judge(Judged([1, 7], [7, 7, 0], [1.0, 1.0]), first)
    assert first != second
    assert second == RowState(second.stream, frozenset())
