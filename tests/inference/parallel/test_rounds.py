"""Rounds: as many as PEARL has, caches that hold the texts, nothing unverified in what is shown or looked up."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import PreTrainedModel

from saccade.inference import Autoregressive, Double, Pearl, Sampling
from saccade.inference.parallel.decoder import ParallelDecoder
from saccade.inference.parallel.rounds import ParallelDrafter
from tests.support.models import copy_layers, plant_constant, tiny_model

PROMPTS = [[1, 2, 3, 1, 2, 3, 1, 2], [4, 4, 4, 5], [0], [2, 3]]


@cache
def target() -> PreTrainedModel:
    return tiny_model(vocabulary=6, sharpness=2.0, residual=0.5)


@cache
def draft() -> PreTrainedModel:
    return copy_layers(target(), 2)


class Written:
    """The greedy text of a model behind any text, token by token with its own forward."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.known: dict[tuple[int, ...], int] = {}

    def __call__(self, text: list[int]) -> int:
        if tuple(text) not in self.known:
            with torch.no_grad():
                self.known[tuple(text)] = int(self.model(torch.tensor([text])).logits[0, -1].argmax())
        return self.known[tuple(text)]


def pearl(says: Written, drafts: Written, prompt: list[int], gamma: int, new: int) -> tuple[list[int], int]:
    """PEARL as its paper tells it, in two modes, and the number of its rounds; written without the package."""
    text, pending, rounds = list(prompt), [], 0
    while len(text) - len(prompt) < new:
        rounds += 1
        block = []
        for _ in range(gamma):
            block.append(drafts([*text, *pending, *block]))
        if not pending:  # pre-verify: the first new token is judged
            own = says(text)
            text.append(own)
            pending = block[1:] if own == block[0] else []
            continue
        for place, token in enumerate([*pending, block[0]]):  # post-verify: what is pending, and the first new token
            own = says(text)
            text.append(own)
            if own != token:
                pending = []
                break
            if place == len(pending):
                pending = block[1:]
                break
    return text[len(prompt) :][:new], rounds


@pytest.mark.parametrize("gamma", [1, 2, 3, 5])
def test_without_look_up_output_and_rounds_are_those_of_pearl(gamma: int) -> None:
    says, drafts = Written(target()), Written(draft())
    accepted = 0
    for prompt in PROMPTS:
        text, rounds = pearl(says, drafts, prompt, gamma, 24)
        for decoder in (Pearl(draft(), gamma=gamma), Double(draft(), gamma=gamma, retrieval="none")):
            out = decoder.generate(target(), [prompt], max_new_tokens=24)
            assert out.tokens == [text]
            assert out.stats.target_forwards == rounds
            accepted += out.stats.accepted
    assert accepted or gamma == 1


DECODERS = {
    "pearl": lambda: Pearl(draft(), gamma=3),
    "double": lambda: Double(draft(), gamma=2, candidate_length=4),
    "draft": lambda: Double(draft(), gamma=3, retrieval="draft", index="ngram"),
    "target": lambda: Double(draft(), gamma=3, retrieval="target", candidate_length=3),
    "released": lambda: Double(draft(), gamma=1, index="released", candidate_length=2),
}


@pytest.mark.parametrize("sampling", [None, Sampling(seed=1)], ids=["greedy", "drawn"])
@pytest.mark.parametrize("name", DECODERS)
def test_caches_and_look_up_hold_the_texts(name: str, sampling: Sampling | None) -> None:
    """After every round, what the caches hold is what a model computes that reads the text anew."""
    decoder: ParallelDecoder = DECODERS[name]()
    with decoder.start(target(), PROMPTS, max_new_tokens=14, sampling=sampling) as run:
        run.prefill()
        while not run.finished:
            run.step()
            drafter = run._drafter
            assert isinstance(drafter, ParallelDrafter)
            assert drafter._burst is not None
            state = run.state
            if run.finished:
                break
            for row, text in enumerate(state.texts):
                assert drafter._rows[row].strict.text.tokens == text  # verified tokens only
                assert drafter._rows[row].broad.text is drafter._rows[row].strict.text
            assert state.session.lengths == [len(text) - 1 for text in state.texts]
            _audit(state.session, [text[:-1] for text in state.texts])
            held = drafter._burst._held or []
            assert drafter.draft_session.session.lengths == [len(tokens) for tokens in held]
            _audit(drafter.draft_session.session, held)
            for row, text in enumerate(state.texts):
                agreed = drafter._burst._agreed[row]
                assert held[row][:agreed] == text[:agreed]
                ahead = [*text, *drafter._rows[row].pending.tokens]
                if drafter._rows[row].pending.tokens:  # the draft has written them itself
                    assert held[row] == ahead[: len(held[row])]


def _audit(session, texts: list[list[int]]) -> None:
    """Compares the logits of one more token with those of a forward over the whole text."""
    logits = session.forward(torch.zeros(len(texts), 1, dtype=torch.long))
    for row, text in enumerate(texts):
        with torch.no_grad():
            fresh = session.model(torch.tensor([[*text, 0]])).logits[0, -1]
        assert (logits[row, 0] - fresh).abs().max() < 1e-4


@pytest.mark.parametrize("name", DECODERS)
def test_texts_end_at_their_limit_and_at_the_first_eos_that_the_target_says(name: str) -> None:
    wanted = Autoregressive().generate(target(), PROMPTS, max_new_tokens=20, eos_token_id=())
    for limit in (1, 2, 3, 7, 20):
        out = DECODERS[name]().generate(target(), PROMPTS, max_new_tokens=limit, eos_token_id=())
        assert out.tokens == [row[:limit] for row in wanted.tokens]
    for eos in range(6):
        ended = Autoregressive().generate(target(), PROMPTS, max_new_tokens=20, eos_token_id=eos)
        out = DECODERS[name]().generate(target(), PROMPTS, max_new_tokens=20, eos_token_id=eos)
        assert out.tokens == ended.tokens
        assert all(eos not in row[:-1] for row in out.tokens)


def test_an_eos_that_only_the_draft_says_ends_nothing() -> None:
    eos = 5
    hasty = tiny_model(vocabulary=6)
    plant_constant(hasty, eos)
    ended = Autoregressive().generate(target(), PROMPTS, max_new_tokens=12, eos_token_id=eos)
    for decoder in (Pearl(hasty, gamma=4), Double(hasty, gamma=4)):
        out = decoder.generate(target(), PROMPTS, max_new_tokens=12, eos_token_id=eos)
        assert out.tokens == ended.tokens


def test_rejection_sampling_does_not_depend_on_the_batch() -> None:
    sampling = Sampling(seed=3, coupling="rejection")
    decoder = Double(draft(), gamma=2, candidate_length=3)
    together = decoder.generate(target(), PROMPTS, max_new_tokens=12, sampling=sampling, eos_token_id=5).tokens
    for row, prompt in enumerate(PROMPTS):
        alone = Sampling(seed=3, coupling="rejection", rows=[row])
        assert decoder.generate(target(), [prompt], max_new_tokens=12, sampling=alone, eos_token_id=5).tokens == [
            together[row]
        ]


def test_a_draft_on_another_device_writes_the_same_text() -> None:
    wanted = Autoregressive().generate(target(), PROMPTS, max_new_tokens=12).tokens
    elsewhere = copy_layers(target(), 2).to("cpu:0")
    out = Double(elsewhere, gamma=2, devices="auto").generate(target(), PROMPTS, max_new_tokens=12)
    assert out.tokens == wanted


def test_graph_steps_write_the_same_text() -> None:
    wanted = Autoregressive().generate(target(), PROMPTS, max_new_tokens=16).tokens
    for name in ("pearl", "double"):
        decoder = DECODERS[name]()
        decoder.engine = "graph"
        decoder.pool.uncaptured = True
        for _ in range(2):  # the second call takes the engines of the first
            assert decoder.generate(target(), PROMPTS, max_new_tokens=16).tokens == wanted


def test_what_rounds_have_done_is_counted() -> None:
    model, same = tiny_model(), tiny_model()
    for each in (model, same):
        plant_constant(each, 7)
    out = Double(same, gamma=2, candidate_length=3).generate(model, [[7] * 9], max_new_tokens=30)
    found = out.details
    assert found["rounds"] == out.stats.target_forwards
    assert found["tokens"] >= 30
    assert found["pending_rejected"] == found["block_rejected"] == found["pending_rejection_rate"] == 0
    assert found["run_length"] == found["tokens"]
    assert found["target_kept"] == found["target_looked_up"] > 0
    assert found["draft_kept"] == found["draft_looked_up"] > 0
    wrong = tiny_model()
    plant_constant(wrong, 8)
    found = Pearl(wrong, gamma=2).generate(model, [[7] * 9], max_new_tokens=10).details
    # the last round needs no block
    assert (found["rounds"], found["block_rejected"], found["pending_rounds"]) == (10, 9, 0)
    assert (found["kept_by_target"], found["draft_hit_rate"], found["draft_forwards"]) == (0, 0, 18)
    found = Double(wrong, gamma=2, candidate_length=3, retrieval="target").generate(model, [[7] * 9], max_new_tokens=9)
    assert (found.details["rounds"], found.details["target_kept"], found.details["draft_hits"]) == (3, 6, 0)
