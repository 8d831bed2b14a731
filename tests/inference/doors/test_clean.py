"""A model is as it was after decoding, after an error in the middle, and beside an unfinished stream."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from saccade.inference import AssistedDecoding, Autoregressive, SelfSpeculative
from saccade.inference.huggingface.sublayer_skip import skipped_sublayers
from tests.support.decoders import DECODERS, Proposing
from tests.support.models import prompts, tiny_model

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def portrait(model: PreTrainedModel) -> dict[str, Any]:
    """Everything that attaching could leave behind."""
    return {
        "modules": [(name, type(part), part.training) for name, part in model.named_modules()],
        "attributes": {name: sorted(vars(part)) for name, part in model.named_modules()},
        "hooks": {
            name: [len(getattr(part, kind)) for kind in vars(part) if kind.endswith("_hooks")]
            for name, part in model.named_modules()
        },
        "config": copy.deepcopy(model.config.to_dict()),
        "generation_config": model.generation_config.to_dict(),
        "attention": [part.config._attn_implementation for part in model.modules() if hasattr(part, "config")],
        "weights": {name: weight.clone() for name, weight in model.state_dict().items()},
        "gradients": [weight.requires_grad for weight in model.parameters()],
    }


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    weights = [before.pop("weights"), after.pop("weights")]
    equal = all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    return before == after and equal and len(weights[0]) == len(weights[1])


@pytest.fixture(params=["eval", "train", "mixed"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    model = tiny_model(attn_implementation="eager" if request.param == "eval" else "sdpa", seed=2)
    model.train(request.param == "train")
    if request.param == "mixed":
        model.model.layers[1].mlp.train()
    return model


@pytest.mark.parametrize("name", DECODERS)
def test_a_model_is_as_it_was_after_decoding(model: PreTrainedModel, name: str) -> None:
    decoder = DECODERS[name](model)
    before, logits = portrait(model), model(IDS).logits
    decoder.generate(model, IDS, max_new_tokens=12)
    assert torch.equal(model(IDS).logits, logits)
    assert same(before, portrait(model))


@pytest.mark.parametrize("name", DECODERS)
def test_a_model_is_as_it_was_after_an_error_in_a_round(
    model: PreTrainedModel, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = DECODERS[name](model)
    before, logits = portrait(model), model(IDS).logits
    forward, calls = type(model.lm_head).forward, []

    def failing(self: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
        if self is model.lm_head:
            calls.append(1)
            if len(calls) == 4:
                raise KeyError("planted")
        return forward(self, hidden)

    monkeypatch.setattr(type(model.lm_head), "forward", failing)
    with pytest.raises(KeyError, match="planted"):
        decoder.generate(model, IDS, max_new_tokens=12)
    monkeypatch.undo()
    assert torch.equal(model(IDS).logits, logits)
    assert same(before, portrait(model))


def test_the_draft_model_is_as_it_was_too() -> None:
    model, draft = tiny_model(), tiny_model(layers=1, seed=1).train()
    before = portrait(draft)
    AssistedDecoding(draft, confidence_threshold=0.0).generate(model, IDS, max_new_tokens=12)
    assert same(before, portrait(draft))

    def broken(text: list[int], limit: int) -> list[int]:
        raise KeyError("planted")

    before = portrait(model)
    with pytest.raises(KeyError):
        Proposing(broken).generate(model, IDS, max_new_tokens=12)
    assert same(before, portrait(model))


def test_a_model_may_be_its_own_draft() -> None:
    model = tiny_model()
    before = portrait(model)
    out = AssistedDecoding(model, draft_length=3, confidence_threshold=0.0).generate(model, IDS, max_new_tokens=12)
    assert out.tokens == Autoregressive().generate(model, IDS, max_new_tokens=12).tokens
    assert out.stats.draft_acceptance_rate == 1.0
    assert same(before, portrait(model))


def test_target_and_draft_may_share_a_config_object() -> None:
    model = tiny_model()
    draft = type(model)(model.config).double().eval()
    before = portrait(model)
    AssistedDecoding(draft).generate(model, IDS, max_new_tokens=12)
    assert same(before, portrait(model))


@pytest.mark.parametrize("name", DECODERS)
def test_a_stream_that_is_given_up_leaves_nothing_behind(name: str) -> None:
    model = tiny_model().train()
    decoder = DECODERS[name](model)
    before = portrait(model)
    stream = decoder.stream(model, IDS, max_new_tokens=12)
    next(stream)
    next(stream)
    stream.close()
    assert same(before, portrait(model))


@pytest.mark.parametrize("name", DECODERS)
def test_between_the_rounds_of_a_stream_the_model_is_the_users_own(name: str) -> None:
    model = tiny_model(residual=0.3)
    batch = prompts(model, [8, 5])
    expected = DECODERS[name](model).generate(model, **batch, max_new_tokens=12).tokens
    logits = model(**batch).logits
    before = portrait(model)
    tokens: list[list[int]] = [[], []]
    for new in DECODERS[name](model).stream(model, **batch, max_new_tokens=12):
        for row, added in zip(tokens, new, strict=True):
            row += added
        assert torch.equal(model(**batch).logits, logits)
    assert tokens == expected
    assert same(before, portrait(model))


def test_streams_on_one_model_may_be_interleaved() -> None:
    model = tiny_model(residual=0.3)
    expected = Autoregressive().generate(model, IDS, max_new_tokens=12).tokens[0]
    before = portrait(model)

    def stream(skip: dict[str, list[int]]) -> Iterator[list[list[int]]]:
        return SelfSpeculative(skip=skip, draft_length=2, gamma=0.0).stream(model, IDS, max_new_tokens=12)

    streams = [stream({"attention": [1]}), stream({"attention": [0, 1], "mlp": [2]})]
    tokens: list[list[int]] = [[], []]
    open_streams = [0, 1]
    while open_streams:
        for index in list(open_streams):
            new = next(streams[index], None)
            if new is None:
                open_streams.remove(index)
            else:
                tokens[index] += new[0]
    assert tokens == [expected, expected]
    assert same(before, portrait(model))


def test_skipped_sublayers_leave_nothing_behind() -> None:
    model = tiny_model()
    before, logits = portrait(model), model(IDS).logits
    with skipped_sublayers(model, attention=[0, 2], mlp=[1]):
        assert not torch.equal(model(IDS).logits, logits)
    assert torch.equal(model(IDS).logits, logits)
    with pytest.raises(KeyError), skipped_sublayers(model, attention=[0], mlp=[]):
        raise KeyError
    assert torch.equal(model(IDS).logits, logits)
    assert same(before, portrait(model))


def test_skipped_sublayers_compute_what_zeroed_sublayers_compute() -> None:
    model = tiny_model("qwen3")
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        zeroed.model.layers[0].self_attn.o_proj.weight.zero_()
        zeroed.model.layers[2].self_attn.o_proj.weight.zero_()
        zeroed.model.layers[2].mlp.down_proj.weight.zero_()
    with skipped_sublayers(model, attention=[0, 2], mlp=[2]):
        assert torch.equal(model(IDS).logits, zeroed(IDS).logits)
