"""Whatever a draft proposes, the output is the target's: only slower."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saccade.inference import AssistedDecoding, Autoregressive, PromptLookup, Sampling, SelfSpeculative, TokenTree
from saccade.inference.drafting.retrieval_store.text_index import TextIndex
from saccade.inference.state import GenerationState
from saccade.inference.verification.draft import Draft
from tests.support.decoders import Proposing, ProposingTrees
from tests.support.models import copy_layers, prompts, tiny_model

MODEL = tiny_model("qwen3", residual=0.3)
BATCH = prompts(MODEL, [9, 3, 14])
NEW = 40
RIGHT = Autoregressive().generate(MODEL, **BATCH, max_new_tokens=NEW)
TEXTS = [i[m.bool()].tolist() + new for i, m, new in zip(*BATCH.values(), RIGHT.tokens, strict=True)]


def continuation(text: list[int]) -> list[int]:
    return next(whole for whole in TEXTS if whole[: len(text)] == text)[len(text) :]


@pytest.mark.parametrize(
    "propose",
    [
        lambda text, limit: [random.Random(len(text)).randrange(40) for _ in range(6)],
        lambda text, limit: [0] * 6,
        lambda text, limit: [39] * (len(text) % 7),
        lambda text, limit: [],
        lambda text, limit: continuation(text),
        lambda text, limit: [*continuation(text)[: len(text) % 4], 0, 0, 0],
        lambda text, limit: [(token + 1) % 40 for token in continuation(text)],
    ],
    ids=["random", "zeros", "ragged", "none", "right", "right-then-wrong", "off-by-one"],
)
def test_any_proposal_leaves_the_output_alone(propose: object) -> None:
    out = Proposing(propose).generate(MODEL, **BATCH, max_new_tokens=NEW)  # type: ignore[arg-type]
    assert out.tokens == RIGHT.tokens
    assert out.stats.target_forwards <= RIGHT.stats.target_forwards


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_tree_leaves_the_output_alone(data: st.DataObject) -> None:
    parents = [-1] + [data.draw(st.integers(0, node)) for node in range(data.draw(st.integers(1, 7)))]
    noise = random.Random(data.draw(st.integers(0, 99)))
    tree = TokenTree(tuple(parents))

    def propose(text: list[int]) -> list[int]:
        known = [*continuation(text), *[0] * 9]
        return [known[d - 1] if noise.random() < 0.7 else noise.randrange(40) for d in tree.depths[1:]]

    out = ProposingTrees(tree, propose).generate(MODEL, **BATCH, max_new_tokens=NEW)
    assert out.tokens == RIGHT.tokens


def test_wrong_ngrams(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: TextIndex, end: int, count: int, tail: Sequence[int] = ()) -> list[int]:
        return [(self.tokens[-1] + step) % 40 for step in range(count)]

    monkeypatch.setattr(TextIndex, "followers", wrong)
    out = PromptLookup(draft_length=6).generate(MODEL, **BATCH, max_new_tokens=NEW)
    assert out.tokens == RIGHT.tokens


@pytest.mark.parametrize("damage", ["random", "zero", "nan", "inf"])
def test_a_corrupted_draft_model(damage: str) -> None:
    draft = copy_layers(MODEL, 2)
    with torch.no_grad():
        for weight in draft.parameters():
            {
                "random": weight.normal_,
                "zero": weight.zero_,
                "nan": lambda w=weight: w.fill_(torch.nan),
                "inf": lambda w=weight: w.fill_(torch.inf),
            }[damage]()
    for threshold in (0.0, 0.5):
        decoder = AssistedDecoding(draft, draft_length=4, confidence_threshold=threshold)
        assert decoder.generate(MODEL, **BATCH, max_new_tokens=NEW).tokens == RIGHT.tokens


def test_draft_states_that_overwrite_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    # whatever the draft forward leaves in the slots behind the text, verification overwrites it
    decoder = SelfSpeculative(skip={"attention": [1], "mlp": [0, 2]}, draft_length=5, gamma=0.0)
    original = decoder.drafter

    def drafter(model: object, request: object) -> object:
        made = original(model, request)  # type: ignore[arg-type]
        draft = made.draft

        def poisoned(state: GenerationState, limits: list[int]) -> Draft:
            out = draft(state, limits)
            with torch.inference_mode():
                for buffer in (*state.session.storage.keys, *state.session.storage.values):
                    for row, length in enumerate(state.session.lengths):
                        # all but what the widest verification leaves untouched
                        buffer[row, :, length : length + 1 + out.tokens.shape[1]] = torch.nan  # type: ignore[index]
            return out

        made.draft = poisoned  # type: ignore[method-assign, assignment]
        return made

    monkeypatch.setattr(decoder, "drafter", drafter)
    assert decoder.generate(MODEL, **BATCH, max_new_tokens=NEW).tokens == RIGHT.tokens


def test_a_draft_that_the_target_can_never_sample() -> None:
    # top-k 1 makes sampling greedy: proposals outside it have probability 0
    sampling = Sampling(top_k=1, seed=0)
    for propose in (lambda text, limit: [0] * 6, lambda text, limit: continuation(text)):
        out = Proposing(propose).generate(MODEL, **BATCH, max_new_tokens=NEW, sampling=sampling)
        assert out.tokens == RIGHT.tokens
