"""The open loop: runs that are driven step by step, that continue on a session, and that are closed in the middle."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from transformers import GenerationConfig

from saccade.inference import (
    AssistedDecoding,
    Autoregressive,
    Decoder,
    GenerationRun,
    PromptLookup,
    Sampling,
    SelfSpeculative,
)
from saccade.inference.engine.session import Session
from tests.support.models import copy_layers, prompts, tiny_model

MODEL = tiny_model("qwen3", residual=0.3)
BATCH = prompts(MODEL, [9, 3, 14])
NEW = 24
RIGHT = Autoregressive().generate(MODEL, **BATCH, max_new_tokens=NEW)
DECODERS = {
    "autoregressive": lambda: Autoregressive(),
    "prompt_lookup": lambda: PromptLookup(max_ngram=2),
    "assisted": lambda: AssistedDecoding(copy_layers(MODEL, 1), draft_length=4, confidence_threshold=0.0),
    "self_speculative": lambda: SelfSpeculative(skip={"attention": [1], "mlp": [2]}, draft_length=4),
}


def steps(run: GenerationRun) -> list[list[int]]:
    """Drives a run to its end, and returns the tokens that its steps gave."""
    told = run.prefill()
    while not run.finished:
        for row, new in zip(told, run.step(), strict=True):
            row.extend(new)
    return told


def ids(text: list[int]) -> torch.Tensor:
    return torch.tensor([text])


@pytest.mark.parametrize("name", DECODERS)
def test_steps_give_what_generate_gives(name: str) -> None:
    with DECODERS[name]().start(MODEL, **BATCH, max_new_tokens=NEW) as run:
        told = steps(run)
    out = run.output()
    assert told == out.tokens == RIGHT.tokens
    assert torch.equal(out.sequences, RIGHT.sequences)
    assert out.stats.new_tokens == 3 * NEW
    assert out.stats.seconds > 0


@pytest.mark.parametrize("pair", [("prompt_lookup", "self_speculative"), ("assisted", "autoregressive")])
def test_two_runs_take_turns_on_one_model(pair: tuple[str, str]) -> None:
    kind = MODEL.config._attn_implementation
    first, second = (DECODERS[name]().start(MODEL, **BATCH, max_new_tokens=NEW) for name in pair)
    with first, second:
        told = [first.prefill(), second.prefill()]
        while not (first.finished and second.finished):
            for run, texts in zip((first, second), told, strict=True):
                if not run.finished:
                    for row, new in zip(texts, run.step(), strict=True):
                        row.extend(new)
                    assert MODEL.config._attn_implementation == kind  # the model is the user's own between the steps
    assert told == [RIGHT.tokens, RIGHT.tokens]


@pytest.mark.parametrize("second", DECODERS)
def test_a_second_turn_reads_only_what_is_new(second: str) -> None:
    decoder = DECODERS[second]()
    prompt = BATCH["input_ids"][2].tolist()
    with decoder.session(MODEL, 120) as session:
        with decoder.start(MODEL, ids(prompt), max_new_tokens=NEW, session=session) as run:
            answer = steps(run)[0]
        conversation = [*prompt, *answer, 5, 7, 11]
        read = count_tokens(session)
        with decoder.start(MODEL, ids(conversation), max_new_tokens=NEW, session=session) as run:
            run.prefill()
            # the first turn's last token has never been read; behind it stands the second question
            assert sum(read) == 4
            while not run.finished:
                run.step()
        continued = run.output()
    fresh = Autoregressive().generate(MODEL, ids(conversation), max_new_tokens=NEW)
    assert continued.tokens == fresh.tokens
    assert continued.stats.prompt_tokens == len(conversation)
    assert continued.stats.target_forwards <= fresh.stats.target_forwards


def count_tokens(session: Session) -> list[int]:
    """Notes how many tokens each later call of the session's model reads."""
    read: list[int] = []
    call = session._call

    def counted(given: dict[str, torch.Tensor], *arguments: object) -> torch.Tensor:
        read.append(next(iter(given.values())).shape[1])
        return call(given, *arguments)  # type: ignore[arg-type]

    session._call = counted  # type: ignore[method-assign, assignment]
    return read


def test_a_turn_that_rewrites_the_past_is_read_from_where_it_differs() -> None:
    decoder = PromptLookup()
    prompt = BATCH["input_ids"][2].tolist()
    with decoder.session(MODEL, 120) as session:
        with decoder.start(MODEL, ids(prompt), max_new_tokens=NEW, session=session) as run:
            answer = steps(run)[0]
        for changed in ([*prompt[:6], 1, 2, 3], prompt, [*prompt, *answer[:3], 9], [2, 2]):
            read = count_tokens(session)
            with Autoregressive().start(MODEL, ids(changed), max_new_tokens=NEW, session=session) as run:
                assert steps(run) == Autoregressive().generate(MODEL, ids(changed), max_new_tokens=NEW).tokens
            assert read[0] < len(changed) or changed[0] != prompt[0]


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=0.8, seed=3)])
def test_a_batch_continues(sampling: Sampling | None) -> None:
    decoder = Autoregressive()
    batch = [row[mask.bool()].tolist() for row, mask in zip(*BATCH.values(), strict=True)]
    longer = prompts(MODEL, [20, 12, 26], seed=4)
    texts = [[*text, *row[-4:].tolist()] for text, row in zip(batch, longer["input_ids"], strict=True)]
    width = max(len(text) for text in texts)
    padded = torch.tensor([[0] * (width - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
    with decoder.session(MODEL, 80) as session:
        with decoder.start(MODEL, **BATCH, max_new_tokens=2, session=session) as run:
            steps(run)
        with decoder.start(MODEL, padded, mask, max_new_tokens=9, session=session, sampling=sampling) as run:
            assert steps(run) == decoder.generate(MODEL, padded, mask, max_new_tokens=9, sampling=sampling).tokens


@pytest.mark.parametrize("name", DECODERS)
def test_a_run_closed_in_the_middle_leaves_nothing(name: str) -> None:
    model = tiny_model("qwen3", residual=0.3)
    decoder: Decoder = DECODERS[name]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kind, hooks = model.config._attn_implementation, attached(model)
    run = decoder.start(model, **BATCH, max_new_tokens=NEW)
    with run:
        run.prefill()
        run.step()
        session = run.state.session
    assert run.finished
    assert run.output().stats.new_tokens == sum(len(tokens) for tokens in run.output().tokens) > 0
    assert session.storage.bytes == 0
    assert (model.config._attn_implementation, attached(model)) == (kind, hooks)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    with pytest.raises(ValueError, match="while it is not finished"):
        run.step()
    with pytest.raises(ValueError, match="start another one"):
        run.prefill()
    assert decoder.generate(model, **BATCH, max_new_tokens=NEW).tokens == RIGHT.tokens
    gone = weakref.ref(model)
    decoder.release()
    del run, session, model, before
    gc.collect()
    assert gone() is None


def attached(model: nn.Module) -> list[int]:
    return [
        len(part._forward_hooks) + len(part._forward_pre_hooks) + ("forward" in vars(part)) for part in model.modules()
    ]


def test_a_session_serves_one_run_at_a_time_and_only_runs_that_it_fits() -> None:
    decoder, skipping = Autoregressive(), DECODERS["self_speculative"]()
    prompt = ids([1, 2, 3])
    with decoder.session(MODEL, 12) as session:
        with decoder.start(MODEL, prompt, max_new_tokens=4, session=session) as run:
            run.prefill()
            with pytest.raises(ValueError, match="in use by another generation"):
                decoder.start(MODEL, prompt, max_new_tokens=4, session=session)
        for call, message in (
            (lambda: decoder.start(MODEL, prompt, max_new_tokens=40, session=session), "at least 43 tokens, got 12"),
            (lambda: decoder.start(tiny_model("llama"), prompt, session=session), "is of another model"),
            (lambda: skipping.start(MODEL, prompt, max_new_tokens=2, session=session), "skips other sub-layers"),
        ):
            with pytest.raises(ValueError, match=message):
                call()
        with decoder.start(MODEL, prompt, max_new_tokens=4, session=session) as run:  # none of them holds it
            assert steps(run) == decoder.generate(MODEL, prompt, max_new_tokens=4).tokens
    with pytest.raises(ValueError, match="the session is closed"):
        decoder.start(MODEL, prompt, max_new_tokens=4, session=session)


def test_an_error_in_a_step_closes_the_run_and_keeps_the_session() -> None:
    decoder = PromptLookup()
    with decoder.session(MODEL, 80) as session:
        session.forward = broken  # type: ignore[method-assign, assignment]
        run = decoder.start(MODEL, ids([1, 2, 3]), max_new_tokens=8, session=session)
        with pytest.raises(RuntimeError, match="planted"), run:
            steps(run)
        del session.forward
        with decoder.start(MODEL, ids([1, 2, 3, 4]), max_new_tokens=8, session=session) as run:
            assert steps(run) == decoder.generate(MODEL, ids([1, 2, 3, 4]), max_new_tokens=8).tokens


@pytest.mark.parametrize("drafted", [1, 2, 3])
def test_a_draft_that_breaks_off_leaves_no_keys_of_its_own(drafted: int) -> None:
    decoder = SelfSpeculative(skip={"attention": [0, 1, 2], "mlp": [1]}, draft_length=4, gamma=0.0, adaptive=False)
    prompt, calls = [1, 2, 3, 9, 4], []
    with decoder.session(MODEL, 80) as session:
        run = decoder.start(MODEL, ids(prompt), max_new_tokens=8, session=session)
        forward = session.forward

        def failing(*given: object, skipped: bool = False, **more: object) -> torch.Tensor:
            calls.append(skipped)
            if sum(calls) > drafted:
                raise RuntimeError("planted")
            return forward(*given, skipped=skipped, **more)  # type: ignore[arg-type]

        session.forward = failing  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="planted"), run:
            steps(run)
        del session.forward
        longer = [*run.state.texts[0], 6, 7]
        with Autoregressive().start(MODEL, ids(longer), max_new_tokens=1, session=session) as again:
            steps(again)
            continued = session.forward(session.token_column([again.state.texts[0][-1]]))
    with Autoregressive().session(MODEL, 80) as fresh:
        fresh.prefill([longer])
        assert torch.allclose(continued, fresh.forward(fresh.token_column([again.state.texts[0][-1]])), atol=1e-9)


def broken(*_: object, **__: object) -> None:
    raise RuntimeError("planted")


def test_independent_copies_and_release() -> None:
    decoder = SelfSpeculative(skip={"attention": [1], "mlp": [2]}, draft_length=4)
    decoder.generate(MODEL, **BATCH, max_new_tokens=NEW)
    assert decoder._carried
    twin = decoder.independent()
    twin.generate(MODEL, **BATCH, max_new_tokens=NEW)
    assert (twin.carry, twin._carried, twin.pool is decoder.pool) == (False, [], False)
    drafting = DECODERS["assisted"]()
    drafting._loaded["somewhere"] = MODEL
    assert drafting.independent()._loaded == {}
    drafting.release()
    assert drafting._loaded == {}


def test_check_needs_no_prompt() -> None:
    Autoregressive().check()
    AssistedDecoding("hub/name").check()
    with pytest.raises(ValueError, match=r"draft_model must .*/nowhere/at/all"):
        AssistedDecoding("/nowhere/at/all").check()
    with pytest.raises(ValueError, match=r"skip must .*/nowhere/at/all"):
        SelfSpeculative(skip="/nowhere/at/all").check()
    with pytest.raises(ValueError, match=r"skip.attention names layer 99"):
        SelfSpeculative(skip={"attention": [99], "mlp": []}).check(MODEL)
    with pytest.raises(ValueError, match="is not a Hugging Face model"):
        Autoregressive().check(nn.Linear(2, 2))


@pytest.mark.parametrize("name", DECODERS)
def test_prompts_may_be_lists(name: str) -> None:
    lists = [row[mask.bool()].tolist() for row, mask in zip(*BATCH.values(), strict=True)]
    out = DECODERS[name]().generate(MODEL, lists, max_new_tokens=NEW, pad_token_id=7)
    assert out.tokens == RIGHT.tokens
    width = max(len(text) for text in lists)
    assert out.sequences.tolist() == [
        [7] * (width - len(text)) + text + new for text, new in zip(lists, RIGHT.tokens, strict=True)
    ]
    assert out.sequences.device == RIGHT.sequences.device


def test_max_length_counts_the_longest_list() -> None:
    out = Autoregressive().generate(MODEL, [[1, 2], [3, 4, 5]], max_length=8)
    assert [len(tokens) for tokens in out.tokens] == [5, 5]


def test_copies_and_pickles_carry_no_engine() -> None:
    for decoder in (PromptLookup(), DECODERS["self_speculative"]()):
        decoder.generate(MODEL, [[1, 2, 3]], max_new_tokens=4)
        for made in (copy.deepcopy(decoder), pickle.loads(pickle.dumps(decoder))):  # noqa: S301 -- written above
            assert made == decoder
            assert made.pool is not decoder.pool


def test_another_generation_config_is_followed() -> None:
    model = tiny_model("qwen3", residual=0.3)
    model.generation_config.repetition_penalty = 1.2
    with pytest.raises(ValueError, match=r"repetition_penalty=1\.2"):
        Autoregressive().generate(model, [[1, 2]])
    right = Autoregressive().generate(MODEL, [[1, 2]], max_new_tokens=12).tokens[0]
    config = GenerationConfig(max_new_tokens=12, eos_token_id=right[6])
    out = Autoregressive().generate(model, [[1, 2]], generation_config=config)
    assert out.tokens[0] == right[: right.index(right[6]) + 1]
