"""Settings of transformers' generation config: followed, off, or refused by name, at both doors alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList, MinLengthLogitsProcessor, PreTrainedModel

from saccade.inference import Autoregressive, PromptLookup, Sampling
from saccade.inference.huggingface.generation_config import read_generation_config
from tests.support.errors import one_line
from tests.support.models import tiny_model

IDS = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", 1.05),
        ("no_repeat_ngram_size", 2),
        ("num_beams", 3),
        ("min_new_tokens", 2),
        ("min_length", 9),
        ("suppress_tokens", [7]),
        ("bad_words_ids", [[7]]),
        ("forced_eos_token_id", 0),
        ("guidance_scale", 2.0),
        ("renormalize_logits", True),
        ("cache_implementation", "quantized"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(model: PreTrainedModel, name: str, value: Any) -> None:
    setattr(model.generation_config, name, value)
    mend = f"generation_config.{name}"
    one_line(lambda: PromptLookup().generate(model, IDS, max_new_tokens=5), name, mend)
    one_line(lambda: next(Autoregressive().stream(model, IDS, max_new_tokens=5)), name, mend)
    if name != "cache_implementation":  # transformers looks for its package first
        one_line(lambda: model.generate(IDS, max_new_tokens=5, custom_generate=PromptLookup()), name, mend)


@pytest.mark.parametrize(
    "settings",
    [
        {"min_new_tokens": 0, "min_length": 0},
        {"min_length": 5},
        {"guidance_scale": 1.0, "repetition_penalty": 1.0, "num_beams": 1, "no_repeat_ngram_size": 0},
        {"suppress_tokens": [], "bad_words_ids": None, "begin_suppress_tokens": []},
        {"typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "min_p": None},
        {"typical_p": 0.5, "min_p": 0.1, "temperature": 0.3},  # of sampling, and nothing is drawn
        {"penalty_alpha": 0.0, "diversity_penalty": 0.0, "num_return_sequences": 1},
        {"output_scores": False, "remove_invalid_values": False, "renormalize_logits": False},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_values_that_mean_off_are_taken(model: PreTrainedModel, settings: dict[str, Any]) -> None:
    right = model.generate(IDS, max_new_tokens=6, do_sample=False)
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    assert torch.equal(Autoregressive().generate(model, IDS, max_new_tokens=6).sequences, right)
    second = model.generate(IDS, max_new_tokens=6, custom_generate=Autoregressive())
    assert torch.equal(second, right)


def test_a_shortest_length_that_the_prompt_has(model: PreTrainedModel) -> None:
    right = model.generate(IDS, max_new_tokens=6, do_sample=False)
    for length in (4, 9):
        call = lambda length=length: model.generate(  # noqa: E731
            IDS,
            max_new_tokens=6,
            do_sample=False,
            logits_processor=LogitsProcessorList([MinLengthLogitsProcessor(length, 3)]),
            custom_generate=Autoregressive(),
        )
        if length == 4:
            assert torch.equal(call(), right)
        else:
            one_line(call, "MinLengthLogitsProcessor", "leave it out")


def test_settings_of_sampling_count_where_tokens_are_drawn(model: PreTrainedModel) -> None:
    model.generation_config.min_p = 0.1
    one_line(lambda: Autoregressive().generate(model, IDS, do_sample=True), "min_p=0.1")
    Autoregressive().generate(model, IDS, sampling=Sampling(), max_new_tokens=2)  # says all by itself


def test_the_call_decides_then_the_configuration(model: PreTrainedModel) -> None:
    config = model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.5, top_p=0.8, eos_token_id=[7, 9], pad_token_id=3, max_new_tokens=11
    )
    found = read_generation_config(model)
    assert found.sampling == Sampling(0.5, 50, 0.8)  # transformers' own default of top_k
    assert (found.eos, found.pad, found.max_new_tokens, found.max_length) == ((7, 9), 3, 11, None)
    assert read_generation_config(model, do_sample=False).sampling is None
    own = Sampling(0.1, seed=3)
    assert read_generation_config(model, sampling=own).sampling is own
    assert read_generation_config(model, do_sample=False, sampling=own).sampling is own
    config.top_k, config.do_sample = 0, None
    assert read_generation_config(model).sampling is None
    assert read_generation_config(model, do_sample=True).sampling == Sampling(0.5, 0, 0.8)
    config.temperature = 0.0
    one_line(lambda: Autoregressive().generate(model, IDS, do_sample=True), "temperature", "0.0")
    one_line(lambda: Autoregressive().generate(model, IDS, do_sample=1), "do_sample", "1")  # type: ignore[arg-type]


def test_no_limit_is_twenty_tokens_or_the_end_of_the_context() -> None:
    for context in (64, 12):
        model = tiny_model(context=context)
        right = model.generate(IDS, do_sample=False)
        assert right.shape[1] == min(25, context)
        assert torch.equal(Autoregressive().generate(model, IDS).sequences, right)
        assert torch.equal(model.generate(IDS, custom_generate=Autoregressive()), right)
