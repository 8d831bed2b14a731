"""How a round ends: the table of decisions, and the law of texts that are drawn by rejection sampling."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from saccade.inference import Double, Pearl, Sampling
from saccade.inference.drafting.draft_session import DraftSession
from saccade.inference.parallel import burst, walk
from saccade.inference.parallel.burst import Block
from saccade.inference.parallel.overlap import Overlap
from saccade.inference.parallel.rounds import LookUp, ParallelDrafter
from saccade.inference.state import GenerationState
from saccade.inference.verification.draft import Draft
from tests.inference.sampling_law import VOCABULARY, measured
from tests.support.models import tiny_model

WORDS = 10
CPU = torch.device("cpu")


def block_of(tokens: Sequence[int]) -> Block:
    return Block(list(tokens), [None] * len(tokens))


def judged(
    pending: Sequence[int], candidate: Sequence[int], block: Sequence[int], says: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The tokens that a round adds and what stays pending, where ``says`` are the target's choices at all places.

    The greedy rule and the walk with a target that is sure of its choices must agree.
    """
    read = [*pending, *candidate]
    logits = torch.full((1, len(read) + 1, WORDS), -100.0, dtype=torch.float64)
    for place, token in enumerate(says[: len(read) + 1]):
        logits[0, place, token] = 100.0
    drafter = ParallelDrafter(DraftSession(tiny_model(), 1, [[0]]), 1, 1, LookUp(), Overlap(CPU, CPU), 99, "Double")
    drafter._rows = [row := drafter._row()]
    row.pending, row.candidate, row.block = block_of(pending), list(candidate), block_of(block)
    state = GenerationState(None, [[0]])  # type: ignore[arg-type] -- greedy decoding asks the session for nothing
    draft = Draft(torch.tensor([read], dtype=torch.long).reshape(1, len(read)), [len(read)])
    (verdict,) = drafter.judge(logits, draft, state)
    found = draft.verified(0, verdict), row.pending.tokens
    outcome = walk.walk(logits[0].softmax(-1), block_of(pending), list(candidate), block_of(block), random.Random(0))
    assert (outcome.tokens, outcome.pending.tokens) == found
    return found


@pytest.mark.parametrize(
    ("pending", "candidate", "block", "says", "added", "left"),
    [
        # a pending token is wrong: what was looked up behind it is of no use
        ([1, 2, 3], [4, 5], [4, 5, 6], [1, 7, 3, 4, 5, 6], [1, 7], []),
        ([1, 2, 3], [4], [4, 5], [7, 2, 3, 4, 5], [7], []),
        # the block begins with all that the target says
        ([1, 2], [3], [3, 4, 5, 6], [1, 2, 3, 4], [1, 2, 3, 4], [5, 6]),
        ([], [3], [3, 4, 5, 6], [3, 4], [3, 4], [5, 6]),
        ([], [], [3, 4, 5], [3], [3], [4, 5]),
        ([1], [9], [3, 4], [1, 3, 0], [1, 3], [4]),
        # as many looked-up tokens as the block has, the same or others
        ([1], [3, 4], [3, 4, 5], [1, 3, 4, 5], [1, 3, 4, 5], []),
        ([1], [3, 4, 5], [3, 4], [1, 3, 4, 5, 6], [1, 3, 4, 5, 6], []),
        ([1], [3, 4, 5], [8], [1, 3, 4, 5, 6], [1, 3, 4, 5, 6], []),
        # the block is wrong at its first token, and at the last one that the target says
        ([1], [3, 4], [9, 4, 5, 6], [1, 3, 4, 5], [1, 3, 4, 5], []),
        ([1], [3, 4], [3, 4, 9, 6], [1, 3, 4, 5], [1, 3, 4, 5], []),
        ([], [], [9, 4], [3], [3], []),
        # no block: the draft has failed, or the row ends
        ([1, 2], [3], [], [1, 2, 3, 4], [1, 2, 3, 4], []),
        ([], [], [], [3], [3], []),
    ],
)
def test_the_table_of_decisions(
    pending: list[int], candidate: list[int], block: list[int], says: list[int], added: list[int], left: list[int]
) -> None:
    assert judged(pending, candidate, block, says) == (added, left)


LISTS = st.lists(st.integers(0, 2), max_size=4)


@settings(max_examples=150, deadline=None)
@given(LISTS, LISTS, LISTS, st.lists(st.integers(0, 2), min_size=9, max_size=9))
def test_what_is_added_is_what_the_target_says(
    pending: list[int], candidate: list[int], block: list[int], says: list[int]
) -> None:
    added, left = judged(pending, candidate, block, says)
    assert added == says[: len(added)]
    assert left == [] or [*pending, *block] == [*added, *left]


@cache
def toy(seed: int = 0) -> PreTrainedModel:
    return tiny_model(layers=3, vocabulary=VOCABULARY, hidden=8, seed=seed)


REJECTING = Sampling(coupling="rejection")
WARPED = Sampling(temperature=0.7, top_k=2, top_p=0.8, coupling="rejection")
CASES = {
    "pearl": (Pearl(toy(1), gamma=2), REJECTING),
    "both sides": (Double(toy(1), gamma=2, candidate_length=3), WARPED),
    "draft": (Double(toy(1), gamma=2, candidate_length=2, retrieval="draft"), REJECTING),
    "target": (Double(toy(1), gamma=1, candidate_length=2, retrieval="target"), REJECTING),
}


@pytest.mark.parametrize("case", CASES)
def test_the_law_of_rejection_sampling(case: str) -> None:
    decoder, sampling = CASES[case]
    assert abs(measured(decoder, sampling, toy(), runs=3000)) < 4


def test_committing_what_the_target_would_pick_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published code adds the target's most likely token behind what it has confirmed."""
    monkeypatch.setattr(walk, "draw", lambda rows, uniforms: rows.argmax(-1).tolist())
    assert measured(CASES["target"][0], REJECTING, toy(), runs=3000) > 4


def test_a_distribution_that_a_token_was_not_drawn_from_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published code adds the draft's most likely token and says that it was drawn."""
    monkeypatch.setattr(burst, "draw", lambda rows, uniforms: rows.argmax(-1).tolist())
    assert measured(CASES["pearl"][0], REJECTING, toy(), runs=3000) > 4


def test_a_candidate_that_is_accepted_on_another_path_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was looked up behind a rejected token belongs to another text."""

    def blind(rows: torch.Tensor, pending: Block, candidate: list[int], block: Block, stream: random.Random):
        outcome = original(rows, pending, candidate, block, stream)
        confirmed = len(outcome.tokens) - 1 - len(pending.tokens)
        return (
            walk.Outcome(
                [*outcome.tokens[:-1], *candidate[confirmed : confirmed + 1]]
                if candidate[confirmed:]
                else outcome.tokens,
                Block(),
            )
            if confirmed >= 0
            else outcome
        )

    original = walk.walk
    monkeypatch.setattr("saccade.inference.parallel.rounds.walk", blind)
    assert measured(CASES["target"][0], REJECTING, toy(), runs=3000) > 4
