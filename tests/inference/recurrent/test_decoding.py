"""Models with recurrent layers: every decoder writes what `model.generate` writes, whatever was drafted."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from transformers import Lfm2Config, Lfm2ForCausalLM, PreTrainedModel

from benchmarks.decoding.classes import first_layer, tiny_model
from saccade.inference import (
    AssistedDecoding,
    Autoregressive,
    Decoder,
    EngineConfig,
    PromptLookup,
    Sampling,
    SelfSpeculative,
    TokenTree,
)
from saccade.inference.engine.session import Session
from saccade.inference.model_check import TESTED, check_model
from saccade.inference.recurrent.states import RecurrentStates
from saccade.inference.request import Request
from tests.inference.engine.test_graphs import stepwise
from tests.inference.sampling_law import VOCABULARY, measured
from tests.support.decoders import Proposing, ProposingTrees
from tests.support.errors import one_line
from tests.support.models import prompts

KINDS = ["lfm2", "qwen3_next"]
NEW, RUNS = 24, 2_500
LENGTHS = [20, 1, 9]  # a window of a short convolution is 3 or 4 tokens
SKIP = {"attention": [0], "mlp": [1]}
"""Of the two layers the recurrent part of one, and the MLP of the other."""


@cache
def model_of(kind: str) -> PreTrainedModel:
    return tiny_model(kind)


@cache
def batch_of(kind: str) -> dict[str, torch.Tensor]:
    batch = prompts(model_of(kind), LENGTHS, seed=10)
    batch["input_ids"][0, 10:] = batch["input_ids"][0, :10]  # something to look up
    return batch


@cache
def right(kind: str) -> list[list[int]]:
    """What transformers writes behind every prompt of the padded batch."""
    made = model_of(kind).generate(**batch_of(kind), max_new_tokens=NEW, do_sample=False)
    return made[:, -NEW:].tolist()


def decoders(kind: str) -> dict[str, Callable[[], Decoder]]:
    draft = first_layer(kind, model_of(kind))
    return {
        "autoregressive": Autoregressive,
        "prompt lookup": lambda: PromptLookup(draft_length=5),
        "assisted": lambda: AssistedDecoding(draft, draft_length=4, confidence_threshold=0.0),
        "self speculative": lambda: SelfSpeculative(SKIP, draft_length=4, gamma=0.0, adaptive=False),
    }


def half_right(kind: str) -> Proposing:
    """Drafts of which, by turns, none, some or all tokens are right."""
    rows = [row[mask.bool()].tolist() for row, mask in zip(*batch_of(kind).values(), strict=True)]
    texts = [prompt + new for prompt, new in zip(rows, right(kind), strict=True)]

    def propose(text: list[int], limit: int) -> list[int]:
        ahead = next((item for item in texts if item[: len(text)] == text), text)[len(text) :][:5]
        wrong = len(text) * 7 % 6
        return [token if place != wrong else (token + 1) % 48 for place, token in enumerate(ahead)]

    return Proposing(propose)


@pytest.mark.parametrize("name", ["autoregressive", "prompt lookup", "assisted", "self speculative"])
@pytest.mark.parametrize("kind", KINDS)
def test_both_doors_write_what_generate_writes(kind: str, name: str) -> None:
    model, batch, decoder = model_of(kind), batch_of(kind), decoders(kind)[name]()
    out = decoder.generate(model, **batch, max_new_tokens=NEW)
    assert out.tokens == right(kind)
    if name == "prompt lookup":  # the others at this door: test_classes.py
        other = model.generate(**batch, max_new_tokens=NEW, do_sample=False, custom_generate=decoder)
        assert torch.equal(other, out.sequences)
    if name != "autoregressive":
        assert 0 < out.stats.accepted < out.stats.drafted, "nothing was rejected: the test says nothing"
        assert out.stats.kv_cache_bytes > 0


@pytest.mark.parametrize("kind", KINDS)
def test_rows_accept_different_numbers_of_tokens(kind: str) -> None:
    out = half_right(kind).generate(model_of(kind), **batch_of(kind), max_new_tokens=NEW)
    assert out.tokens == right(kind)
    assert 2 < out.stats.mean_acceptance_length < 5
    assert out.stats.accepted < out.stats.drafted


def keep_everything(self: RecurrentStates, counts: list[int]) -> None:
    taken_back(self, counts if self.reading else [self._tokens] * len(counts))


taken_back = RecurrentStates.commit


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_that_is_not_rolled_back_is_found(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right(kind)
    monkeypatch.setattr(RecurrentStates, "commit", keep_everything)
    assert Autoregressive().generate(model_of(kind), **batch_of(kind), max_new_tokens=NEW).tokens == right(kind)
    for decoder in (half_right(kind), PromptLookup(draft_length=5)):
        assert decoder.generate(model_of(kind), **batch_of(kind), max_new_tokens=NEW).tokens != right(kind)
    # nor does the check before the first use of an untested class let it pass
    request = Request.read(model_of(kind), batch_of(kind)["input_ids"][:1], None, 4, None, (), None)
    monkeypatch.setattr("saccade.inference.model_check.TESTED", TESTED - {type(model_of(kind)).__name__})
    one_line(
        lambda: check_model(model_of(kind), request, EngineConfig()), "behind a rejected draft", "standard deviation"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_depends_on_nothing_beside_it(kind: str) -> None:
    model, batch = model_of(kind), batch_of(kind)
    rows = [row[mask.bool()] for row, mask in zip(*batch.values(), strict=True)]
    padded = {name: torch.zeros_like(value) for name, value in batch.items()}
    for index, row in enumerate(rows):  # padded on the right
        padded["input_ids"][index, : len(row)] = row
        padded["attention_mask"][index, : len(row)] = 1
    decoder = PromptLookup(draft_length=5)
    assert decoder.generate(model, **padded, max_new_tokens=NEW).tokens == right(kind)
    for row, new in zip(rows, right(kind), strict=True):
        assert decoder.generate(model, row[None], max_new_tokens=NEW).tokens == [new]


@pytest.mark.parametrize(("kind", "chunk"), [("lfm2", 1), ("lfm2", 3), ("qwen3_next", 3), ("mamba", 7)])
def test_prompts_read_in_pieces_are_the_same_prompts(kind: str, chunk: int) -> None:
    pieces = Autoregressive(engine=EngineConfig(prefill_chunk=chunk))
    assert pieces.generate(model_of(kind), **batch_of(kind), max_new_tokens=NEW).tokens == right(kind)


@pytest.mark.parametrize("coupling", ["gumbel", "rejection"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_draws_one_text(kind: str, coupling: Any) -> None:
    model, batch = model_of(kind), batch_of(kind)
    sampling = Sampling(temperature=0.9, top_p=0.95, seed=3, coupling=coupling)
    made = decoders(kind)
    names = ["autoregressive", "prompt lookup", "assisted", "self speculative"]
    if coupling == "rejection":  # where a text depends on the drafts, it is the same again, and in other company
        names = ["prompt lookup", "prompt lookup"]
    first, *others = (made[name]().generate(model, **batch, max_new_tokens=16, sampling=sampling) for name in names)
    assert all(out.tokens == first.tokens for out in others)
    alone = batch["input_ids"][:1]  # the longest prompt, which has no padding
    assert made[names[-1]]().generate(model, alone, max_new_tokens=16, sampling=sampling).tokens == first.tokens[:1]
    assert others[-1].stats.accepted < others[-1].stats.drafted


@cache
def toy() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, layer_types=["conv", "full_attention"], initializer_range=0.5,
        max_position_embeddings=32, bos_token_id=None, eos_token_id=None, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    return Lfm2ForCausalLM(config).double().eval()


def test_the_law_of_rejection_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Sampling(coupling="rejection")
    drafts = SelfSpeculative({"attention": [0], "mlp": [1]}, draft_length=3, gamma=0.0, adaptive=False)
    for decoder in (PromptLookup(), drafts):
        assert abs(measured(decoder, settings, toy(), RUNS)) < 4
    monkeypatch.setattr(RecurrentStates, "commit", keep_everything)
    assert measured(PromptLookup(), settings, toy(), RUNS) > 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_goes_on_where_it_ended(kind: str) -> None:
    model, decoder = model_of(kind), PromptLookup(draft_length=5)
    text = batch_of(kind)["input_ids"][0].tolist()
    forwards: list[int] = []

    def noted(module: Any, given: Any, named: dict[str, Any], out: Any) -> None:
        forwards.append(named["input_ids"].shape[1])

    handle = model.register_forward_hook(noted, with_kwargs=True)
    with decoder.session(model, 120) as session:
        expected = len(text)
        for more in ([7, 7, 9], [3], [11, 2, 4, 5]):
            fresh = decoder.generate(model, [text], max_new_tokens=12, eos_token_id=()).tokens[0]
            forwards.clear()
            with decoder.start(model, [text], max_new_tokens=12, eos_token_id=(), session=session) as run:
                for _ in run:
                    pass
            assert run.output().tokens == [fresh]
            assert forwards[0] == expected, "only what is new is read"
            text, expected = text + fresh + more, 1 + len(more)
        # another text: the state that is kept is not that of its beginning
        other = [*text[:9], 1, 2, 3]
        fresh = decoder.generate(model, [other], max_new_tokens=6, eos_token_id=()).tokens
        with decoder.start(model, [other], max_new_tokens=6, eos_token_id=(), session=session) as run:
            for _ in run:
                pass
        assert run.output().tokens == fresh
    handle.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_runs_take_turns_and_may_be_broken_off(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = model_of(kind), batch_of(kind)
    decoder = SelfSpeculative(SKIP, draft_length=4, gamma=0.0, adaptive=False)
    with decoder.session(model, 80) as session:
        with (
            decoder.start(model, **batch, max_new_tokens=NEW, session=session) as first,
            half_right(kind).start(model, **batch, max_new_tokens=NEW) as second,
        ):
            for _ in zip(first, second, strict=False):
                pass
            assert [row[: len(mine)] for row, mine in zip(right(kind), first.output().tokens, strict=True)] == (
                first.output().tokens
            )
            for _ in range(100):
                if not second.finished:
                    second.step()
        assert second.output().tokens == right(kind)
        # a draft that fails has committed tokens; they are gone when the session is used again
        text = batch["input_ids"][0].tolist()
        with decoder.start(model, [text], max_new_tokens=NEW, session=session) as broken:
            broken.prefill()
            broken.step()
            forward = Session.forward
            calls = iter([False, False, True])

            def failing(self: Session, *given: Any, **named: Any) -> torch.Tensor:
                if next(calls):
                    raise ZeroDivisionError
                return forward(self, *given, **named)

            monkeypatch.setattr(Session, "forward", failing)
            with pytest.raises(ZeroDivisionError):
                broken.step()
            monkeypatch.undo()
        seen = text + broken.output().tokens[0]
        with decoder.start(model, [[*seen, 5, 6]], max_new_tokens=8, session=session) as again:
            fresh = Autoregressive().generate(model, [[*seen, 5, 6]], max_new_tokens=8).tokens
            for _ in again:
                pass
        assert again.output().tokens == fresh


def test_steps_are_not_captured_and_it_is_said() -> None:
    model, batch = model_of("lfm2"), batch_of("lfm2")
    with pytest.warns(UserWarning, match="recurrent layers, .* so steps run eagerly"):
        assert stepwise(PromptLookup()).generate(model, **batch, max_new_tokens=NEW).tokens == right("lfm2")


def test_what_cannot_be_rolled_back_is_refused() -> None:
    model, batch = model_of("qwen3_next"), batch_of("qwen3_next")
    trees = ProposingTrees(TokenTree((-1, 0, 0)), lambda text: [1, 2])
    one_line(
        lambda: trees.generate(model, **batch, max_new_tokens=4),
        "Qwen3NextForCausalLM", "recurrent layers", "no trees", "PromptLookup",
    )  # fmt: skip
    short, long = (SelfSpeculative(SKIP, draft_length=length) for length in (2, 4))
    with short.session(model, 80) as session:
        one_line(
            lambda: long.start(model, **batch, max_new_tokens=4, session=session),
            "for 2 earlier tokens", "SelfSpeculative takes back up to 4", "decoder.session(model, capacity)",
        )  # fmt: skip
        session.prefill([[1, 2, 3]])
        one_line(lambda: session.truncate([2]), "row 0", "recurrent layers", "prefill again")
        assert session.lengths == [3]
