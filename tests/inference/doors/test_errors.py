"""Must show 6: every wrong input ends with one clear line that names the value, before anything is decoded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BloomConfig,
    BloomForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from saccade.inference import (
    AssistedDecoding,
    Autoregressive,
    PromptLookup,
    Sampling,
    SelfSpeculative,
    Session,
    TokenTree,
)
from saccade.inference.drafting.skip_sets import write_skip_file
from tests.support.decoders import DECODERS, LOSSLESS
from tests.support.errors import one_line
from tests.support.models import prompts, tiny_model

IDS = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model(context=64)


@pytest.mark.parametrize(
    ("given", "needles"),
    [
        ({"eos_token_id": -1}, ("eos_token_id", "-1", "from 0 to")),
        ({"eos_token_id": 2.0}, ("eos_token_id", "2.0")),
        ({"eos_token_id": "2"}, ("eos_token_id", "'2'")),
        ({"eos_token_id": [[2]]}, ("eos_token_id", "[2]")),
        ({"eos_token_id": 99999}, ("eos_token_id", "99999")),
        ({"pad_token_id": 99999}, ("pad_token_id", "99999")),
        ({"pad_token_id": 1.5}, ("pad_token_id", "1.5")),
        ({"max_new_tokens": 3.0}, ("max_new_tokens", "3.0")),
        ({"max_new_tokens": 4, "max_length": 9}, ("max_new_tokens is 4", "max_length is 9", "one of them")),
        ({"attention_mask": [[1] * 5]}, ("attention_mask", "list")),
        ({"sampling": 0.7}, ("sampling", "0.7")),
        ({"temperature": 0.5}, ("temperature", "sampling=Sampling")),
        ({"num_beams": 3}, ("num_beams", "leave it out")),
        ({"no_such_thing": 3}, ("no_such_thing", "of images and videos")),
        ({"do_sample": "yes"}, ("do_sample", "'yes'", "true or false")),
    ],
)
def test_arguments_of_a_call(model: PreTrainedModel, given: dict[str, Any], needles: tuple[str, ...]) -> None:
    one_line(lambda: Autoregressive().generate(model, IDS, **given), *needles)


@pytest.mark.parametrize("kind", [list, torch.tensor, lambda ids: torch.tensor(ids[0]), lambda ids: ids[0]])
def test_an_end_of_text_in_any_form_ends_it(model: PreTrainedModel, kind: Callable[[list[int]], Any]) -> None:
    end = Autoregressive().generate(model, IDS, max_new_tokens=8, eos_token_id=()).tokens[0][2]
    found = Autoregressive().generate(model, IDS, max_new_tokens=8, eos_token_id=kind([end])).tokens[0]
    assert found[-1] == end
    assert len(found) <= 3


def test_positions_of_ones_own(model: PreTrainedModel) -> None:
    counted = torch.arange(5)[None]
    model.generate(IDS, position_ids=counted, custom_generate=PromptLookup(), max_new_tokens=2)
    one_line(
        lambda: model.generate(IDS, position_ids=counted + 20, custom_generate=PromptLookup(), max_new_tokens=2),
        "position_ids",
    )


def test_a_skip_file_replaces_no_other_file(model: PreTrainedModel, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    one_line(lambda: write_skip_file(tmp_path / "config.json", model, [1], []), "config.json", "not a skip file")
    assert (tmp_path / "config.json").read_text() == '{"model_type": "llama"}'
    for attention in ([1], [2]):
        write_skip_file(tmp_path / "skip.json", model, attention, [])
    assert json.loads((tmp_path / "skip.json").read_text())["attention"] == [2]


@pytest.mark.parametrize(
    ("make", "needles"),
    [
        (lambda: PromptLookup(max_ngram=0), ("max_ngram", "0")),
        (lambda: PromptLookup(draft_length=-1), ("draft_length", "-1")),
        (lambda: PromptLookup(draft_length=2.5), ("draft_length", "whole number", "2.5")),  # type: ignore[arg-type]
        (lambda: Autoregressive(compressor="HybridKV"), ("compressor", "'HybridKV'")),  # type: ignore[arg-type]
        (lambda: SelfSpeculative(draft_length="8"), ("draft_length", "'8'")),  # type: ignore[arg-type]
        (lambda: AssistedDecoding("x", draft_length=True), ("draft_length", "True")),
        (lambda: Sampling(temperature="0.7"), ("temperature", "a number", "'0.7'")),  # type: ignore[arg-type]
        (lambda: Sampling(top_k=1.5), ("top_k", "whole number", "1.5")),  # type: ignore[arg-type]
        (lambda: Sampling(top_p=None), ("top_p", "None")),  # type: ignore[arg-type]
        (lambda: Sampling(seed="x"), ("seed", "'x'")),  # type: ignore[arg-type]
        (lambda: AssistedDecoding("x", draft_length=0), ("draft_length", "0")),
        (lambda: AssistedDecoding("x", confidence_threshold=1.5), ("confidence_threshold", "1.5")),
        (lambda: SelfSpeculative(draft_length=0), ("draft_length", "0")),
        (lambda: SelfSpeculative(gamma=1.2), ("gamma", "1.2")),
        (lambda: SelfSpeculative(alpha=-0.1), ("alpha", "-0.1")),
        (lambda: SelfSpeculative(beta1=2.0), ("beta1", "2.0")),
        (lambda: SelfSpeculative(beta2=-1.0), ("beta2", "-1.0")),
        (lambda: SelfSpeculative(epsilon=float("nan")), ("epsilon", "nan")),
        (lambda: SelfSpeculative(gamma="0.6"), ("gamma", "a number", "'0.6'")),  # type: ignore[arg-type]
        (lambda: SelfSpeculative(adaptive="yes"), ("adaptive", "true or false", "'yes'")),  # type: ignore[arg-type]
        (lambda: SelfSpeculative(skip={"attn": [1]}), ("skip", "attn")),
        (lambda: SelfSpeculative(skip=5), ("skip", "search-layers", "5")),  # type: ignore[arg-type]
        (lambda: SelfSpeculative(skip={"mlp": ["a"]}), ("skip.mlp", "'a'")),  # type: ignore[list-item]
        (lambda: SelfSpeculative(skip={"mlp": 3}), ("skip.mlp", "a list of layer indices")),  # type: ignore[dict-item]
        (lambda: SelfSpeculative(skip={"attention": [-1]}), ("skip.attention", "-1")),
        (lambda: AssistedDecoding(None), ("draft_model", "None")),  # type: ignore[arg-type]
        (lambda: Sampling(temperature=0.0), ("temperature", "0.0")),
        (lambda: Sampling(temperature=-1.0), ("temperature", "-1.0")),
        (lambda: Sampling(temperature=float("nan")), ("temperature", "nan")),
        (lambda: Sampling(temperature=float("inf")), ("temperature", "inf")),
        (lambda: Sampling(top_k=-1), ("top_k", "-1")),
        (lambda: Sampling(top_p=0.0), ("top_p", "0.0")),
        (lambda: Sampling(top_p=1.1), ("top_p", "1.1")),
        (lambda: TokenTree(()), ("parents",)),
        (lambda: TokenTree((0,)), ("parents",)),
        (lambda: TokenTree((-1, 1)), ("parents", "1")),
        (lambda: TokenTree((-1, -1)), ("parents", "-1")),
    ],
)
def test_impossible_settings(make: Callable[[], Any], needles: tuple[str, ...]) -> None:
    one_line(make, *needles)


@pytest.mark.parametrize(
    ("arguments", "needles"),
    [
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, ("empty", "row 0")),
        ({"input_ids": torch.zeros(0, 4, dtype=torch.long)}, ("input_ids", "(0, 4)")),
        ({"input_ids": torch.tensor([1, 2, 3])}, ("input_ids", "(3,)")),
        ({"input_ids": torch.rand(1, 4)}, ("input_ids",)),
        ({"input_ids": torch.ones(1, 4, dtype=torch.bool)}, ("input_ids",)),
        ({"input_ids": [1, 2]}, ("input_ids", "list")),
        ({"input_ids": []}, ("input_ids", "list")),
        ({"input_ids": "text"}, ("input_ids", "'text'")),
        ({"input_ids": [[1, 2.0]]}, ("input_ids", "2.0")),
        ({"input_ids": [[1, 2], []]}, ("empty", "row 1")),
        ({"input_ids": [[1, 2]], "attention_mask": torch.ones(1, 2)}, ("attention_mask", "lists")),
        ({"input_ids": torch.tensor([[1, 40]])}, ("40", "vocabulary")),
        ({"input_ids": torch.tensor([[1, 2], [-1, 2]])}, ("-1", "row 1", "vocabulary")),
        ({"input_ids": IDS, "attention_mask": torch.zeros(1, 5)}, ("empty", "row 0")),
        ({"input_ids": IDS, "attention_mask": torch.ones(1, 4)}, ("attention_mask", "(1, 4)")),
        ({"input_ids": IDS, "attention_mask": torch.tensor([[1, 0, 1, 1, 1]])}, ("attention_mask", "hole", "row 0")),
        ({"input_ids": IDS.repeat(1, 20), "max_new_tokens": 1}, ("100", "64")),
        ({"input_ids": IDS, "max_new_tokens": 61}, ("65", "64")),
        ({"input_ids": IDS, "max_new_tokens": 0}, ("max_new_tokens", "0")),
        ({"input_ids": IDS, "max_length": 5}, ("max_length", "5")),
        ({"input_ids": IDS.repeat(2, 1), "streamer": Mock(spec=["put", "end"])}, ("streamer", "2")),
    ],
)
@pytest.mark.parametrize("name", ["autoregressive", "self_speculative"])
def test_wrong_input(model: PreTrainedModel, name: str, arguments: dict[str, Any], needles: tuple[str, ...]) -> None:
    one_line(lambda: DECODERS[name](model).generate(model, **arguments), *needles)


def test_the_whole_context_can_be_used(model: PreTrainedModel) -> None:
    batch = prompts(model, [14, 3, 8])
    expected = Autoregressive().generate(model, **batch, max_new_tokens=50).tokens
    for case in LOSSLESS.values():
        assert case(model).generate(model, **batch, max_new_tokens=50).tokens == expected


@pytest.mark.parametrize("sampling", [None, Sampling()], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", DECODERS)
def test_nan_logits(name: str, sampling: Sampling | None) -> None:
    model = tiny_model()
    decoder = DECODERS[name](model)
    with torch.no_grad():
        model.lm_head.weight[7, 3] = torch.nan
    one_line(lambda: decoder.generate(model, IDS, sampling=sampling), "NaN")


def test_nan_in_the_middle_of_a_text() -> None:
    # the token 7 poisons what follows it, as an overflow in half precision does
    model = tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = torch.nan
        model.lm_head.weight[7] = 100 * model.lm_head.weight[7]
    for sampling in (None, Sampling(temperature=2.0)):
        one_line(lambda s=sampling: Autoregressive().generate(model, IDS, max_new_tokens=99, sampling=s), "NaN")


def test_vocabularies_that_differ(model: PreTrainedModel) -> None:
    draft = tiny_model(vocabulary=41)
    one_line(lambda: AssistedDecoding(draft).generate(model, IDS), "vocabulary", "41", "40")


def test_a_draft_with_a_shorter_context(model: PreTrainedModel) -> None:
    draft = tiny_model(context=16)
    decoder = AssistedDecoding(draft)
    decoder.generate(model, IDS, max_new_tokens=12)
    one_line(lambda: decoder.generate(model, IDS, max_new_tokens=13), "draft", "17", "16")


def test_a_draft_that_cannot_be_loaded(model: PreTrainedModel, tmp_path: Path) -> None:
    missing = str(tmp_path / "no-model")
    one_line(lambda: AssistedDecoding(missing).generate(model, IDS), "draft_model", "no-model")
    (tmp_path / "config.json").write_text("{}")
    one_line(lambda: AssistedDecoding(str(tmp_path)).generate(model, IDS), "draft_model", str(tmp_path))


@pytest.mark.parametrize(
    ("skip", "needles"),
    [
        ({"attention": [3]}, ("skip.attention", "3", "0 to 2")),
        ({"mlp": [0, -1]}, ("skip.mlp", "-1")),
    ],
)
def test_a_skip_set_of_layers_that_the_model_lacks(
    model: PreTrainedModel, skip: dict[str, list[int]], needles: tuple[str, ...]
) -> None:
    one_line(lambda: SelfSpeculative(skip=skip).generate(model, IDS), *needles)


def test_skip_files(model: PreTrainedModel, tmp_path: Path) -> None:
    path = tmp_path / "skip_layers.json"

    def decode(target: PreTrainedModel = model) -> list[list[int]]:
        return SelfSpeculative(skip=str(path)).generate(target, IDS, max_new_tokens=8).tokens

    one_line(decode, str(path), "does not exist")
    write_skip_file(path, model, [2, 1], [1], {"trials": 3})
    assert decode() == Autoregressive().generate(model, IDS, max_new_tokens=8).tokens
    assert SelfSpeculative(skip=str(path)).skip_set(model) == {"attention": [1, 2], "mlp": [1]}
    assert decode(model.float()) is not None  # the same model in another precision
    model.double()
    good = path.read_text()

    one_line(lambda: decode(tiny_model(seed=1, context=64)), str(path), "another model")  # other weights
    one_line(lambda: decode(tiny_model(layers=4, context=64)), str(path), "another model", "3 layers", "4 layers")
    for broken in (good[:-20], "[]", "{}", "null", "\x00", json.dumps({"attention": [1], "mlp": []})):
        path.write_text(broken)
        one_line(decode, str(path))
    for entry, value in (
        ("fingerprint", None),
        ("fingerprint", "x"),
        ("attention", None),
        ("attention", ["1"]),
        ("attention", [99]),
        ("mlp", 3),
        ("layers", None),
    ):
        content = json.loads(good)
        content[entry] = value
        if value is None:
            del content[entry]
        path.write_text(json.dumps(content))
        if (entry, value) == ("layers", None):  # only said, not needed
            decode()
        else:
            one_line(decode)
    path.unlink()
    path.mkdir()
    one_line(decode, str(path))


def test_models_that_cannot_be_driven() -> None:
    small = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    narrow = MistralForCausalLM(MistralConfig(**small, intermediate_size=16, num_key_value_heads=2, sliding_window=0))
    one_line(lambda: Autoregressive().generate(narrow, IDS), "sliding_window", "MistralForCausalLM", "at least 1", "0")
    bart = BartForConditionalGeneration(
        BartConfig(
            vocab_size=30,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
        )
    )
    one_line(lambda: Autoregressive().generate(bart, IDS), "encoder-decoder")
    bloom = BloomForCausalLM(BloomConfig(vocab_size=30, hidden_size=16, n_layer=1, n_head=2))
    one_line(lambda: Autoregressive().generate(bloom, IDS), "BloomForCausalLM", "attention")
    one_line(lambda: Autoregressive().generate(torch.nn.Linear(2, 2), IDS), "Linear", "Hugging Face")
    one_line(lambda: Session(torch.nn.Linear(2, 2), 8), "Linear")


def test_a_window_larger_than_the_context_is_no_problem() -> None:
    small = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    wide = MistralForCausalLM(
        MistralConfig(
            **small, intermediate_size=16, num_key_value_heads=2, sliding_window=4096, max_position_embeddings=32,
            bos_token_id=None, eos_token_id=None, pad_token_id=0,
        )
    ).eval()  # fmt: skip
    right = wide.generate(IDS, max_new_tokens=8, do_sample=False)
    assert torch.equal(PromptLookup().generate(wide, IDS, max_new_tokens=8).sequences, right)


def test_a_session_says_when_its_cache_is_full(model: PreTrainedModel) -> None:
    with Session(model, 6) as session:
        session.prefill(IDS.tolist())
        session.forward(IDS[:, :1])
        one_line(lambda: session.forward(IDS[:, :2]), "6", "7")


def test_a_session_and_what_it_was_not_given(model: PreTrainedModel) -> None:
    with Session(model, 20) as session:
        one_line(lambda: session.prefill([[], [1]]), "row 0", "empty")
        session.prefill([[1, 2], [3, 4, 5]])
        one_line(lambda: session.forward(torch.tensor([[1]])), "2 rows", "got 1")
        one_line(lambda: session.truncate([-5, 3]), "lengths", "-5")
    one_line(lambda: session.forward(torch.tensor([[1], [1]])), "closed")
