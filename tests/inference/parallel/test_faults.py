"""Whatever is looked up or drafted, the text is the target's own: only slower."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence

import pytest
import torch

from saccade.inference import Autoregressive, Double, Pearl, Sampling
from saccade.inference.drafting.draft_session import DraftSession
from saccade.inference.drafting.retrieval_store.retrieval_store import RetrievalStore
from saccade.inference.engine.session import Session
from saccade.inference.parallel.decoder import ParallelDecoder
from saccade.inference.verification.draft import Draft
from tests.support.models import copy_layers, tiny_model

MODEL = tiny_model(sharpness=2.0, residual=0.4)
DRAFT = copy_layers(MODEL, 2)
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7] * 5, [8, 2, 8], [1, 2, 3, 1, 2, 3, 1, 2]]
NEW = 24
RIGHT = Autoregressive().generate(MODEL, PROMPTS, max_new_tokens=NEW)


def finds_garbage(self: RetrievalStore, count: int, tail: Sequence[int] = ()) -> list[int]:
    noise = random.Random(str((self.text.tokens, tail)))
    return [noise.randrange(40) for _ in range(noise.randint(0, count))]


def finds_too_much(self: RetrievalStore, count: int, tail: Sequence[int] = ()) -> list[int]:
    return [100, 10**9, 39][:count]


def finds_nothing(self: RetrievalStore, count: int, tail: Sequence[int] = ()) -> list[int]:
    return []


def finds_the_wrong_place(self: RetrievalStore, count: int, tail: Sequence[int] = ()) -> list[int]:
    return self.text.tokens[-count - 3 : -3]


@pytest.mark.parametrize("found", [finds_garbage, finds_too_much, finds_nothing, finds_the_wrong_place])
@pytest.mark.parametrize("sampling", [None, Sampling(seed=2)], ids=["greedy", "drawn"])
def test_wrong_candidates(found: object, sampling: Sampling | None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = (
        RIGHT if sampling is None else Autoregressive().generate(MODEL, PROMPTS, max_new_tokens=NEW, sampling=sampling)
    )
    monkeypatch.setattr(RetrievalStore, "find", found)
    out = Double(DRAFT, gamma=2, candidate_length=5).generate(MODEL, PROMPTS, max_new_tokens=NEW, sampling=sampling)
    assert out.tokens == right.tokens
    assert out.stats.target_forwards <= right.stats.target_forwards


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
    for decoder in (Pearl(draft, gamma=3), Double(draft, gamma=3)):
        assert decoder.generate(MODEL, PROMPTS, max_new_tokens=NEW).tokens == RIGHT.tokens


@pytest.mark.parametrize("error", [RuntimeError("broken"), torch.OutOfMemoryError("no room"), ValueError("no")])
@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize("kind", [Pearl, Double])
def test_a_draft_that_dies(
    kind: type[ParallelDecoder], after: int, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards = 0

    def dies(self: Session, tokens: torch.Tensor, *rest: object, **more: object) -> torch.Tensor:
        nonlocal forwards
        if self.model is DRAFT:
            forwards += 1
            if forwards > after:
                raise error
        return original(self, tokens, *rest, **more)  # type: ignore[arg-type]

    original = Session.forward
    monkeypatch.setattr(Session, "forward", dies)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        out = kind(DRAFT, gamma=3).generate(MODEL, PROMPTS, max_new_tokens=NEW)
    assert out.tokens == RIGHT.tokens
    (line,) = [str(item.message) for item in said if "draft model failed" in str(item.message)]  # once
    assert line == (
        f"{kind.__name__}: the draft model failed ({type(error).__name__}: {error}), so decoding goes on with the "
        "target alone; the text is not affected."
    )


def test_a_draft_that_cannot_read_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: DraftSession, state: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(DraftSession, "catch_up", full)
    with pytest.warns(UserWarning, match="the draft model failed"):
        out = Double(DRAFT).generate(MODEL, PROMPTS, max_new_tokens=NEW)
    assert out.tokens == RIGHT.tokens


def test_what_the_caller_breaks_off_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(self: DraftSession, state: object) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(DraftSession, "catch_up", stops)
    with pytest.raises(KeyboardInterrupt):
        Pearl(DRAFT).generate(MODEL, PROMPTS, max_new_tokens=NEW)


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^the draft's vocabulary has 39 ids, the target's 40: use a draft with the same"
    ):
        Double(tiny_model(vocabulary=39)).generate(MODEL, PROMPTS, max_new_tokens=NEW)


def test_a_wrong_verdict_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparisons above can fail: here what the draft has written is taken as verified."""

    def trusts(self: Draft, row: int, verdict: object) -> list[int]:
        tokens = original(self, row, verdict)  # type: ignore[arg-type]
        return [*tokens[:-1], (tokens[-1] + (len(tokens) > 1)) % 40]

    original = Draft.verified
    monkeypatch.setattr(Draft, "verified", trusts)
    assert Pearl(DRAFT, gamma=3).generate(MODEL, PROMPTS, max_new_tokens=NEW).tokens != RIGHT.tokens
