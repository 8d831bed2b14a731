"""Three doors to every decoder: import, model.generate(custom_generate=...), YAML; and what the doors refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedModel,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
)

from saccade.inference import (
    AssistedDecoding,
    Autoregressive,
    Decoder,
    GenerationOutput,
    PromptLookup,
    Sampling,
)
from tests.support.decoders import CASES, DECODERS, LOSSLESS
from tests.support.models import copy_layers, prompts, tiny_model


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("qwen2", residual=0.3)


def parse(text: str) -> dict[str, Decoder]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--decoders", type=dict[str, Decoder])
    # called instantiate_classes before jsonargparse 4.49
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    return dict(instantiate(parser.parse_string(text)).decoders)


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_through_model_generate(model: PreTrainedModel, name: str) -> None:
    batch = prompts(model, [6, 11, 3])
    decoder = DECODERS[name](model)
    ours = decoder.generate(model, **batch, max_new_tokens=20).sequences
    theirs = model.generate(**batch, max_new_tokens=20, do_sample=False)
    # what is not lossless is still the same through every door
    right = theirs if decoder.lossless else ours
    assert torch.equal(ours, right)
    assert torch.equal(model.generate(**batch, max_new_tokens=20, do_sample=False, custom_generate=decoder), right)
    full = model.generate(**batch, max_length=31, custom_generate=decoder, return_dict_in_generate=True)
    assert isinstance(full, GenerationOutput)
    assert torch.equal(full.sequences, right)
    assert full.stats.new_tokens == 60


@pytest.mark.parametrize("name", LOSSLESS)
def test_eos_and_padding_as_model_generate_has_them(model: PreTrainedModel, name: str) -> None:
    batch = prompts(model, [6, 11, 3])
    # wider than any prompt, with ids of its own in the padding
    wide = {
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (2, 0), value=7),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (2, 0)),
    }
    free = model.generate(**wide, max_new_tokens=24, do_sample=False)[:, 13:]
    eos = [int(free[0, 5]), int(free[2, 9])]
    for settings in ({"pad_token_id": 9}, {}):
        theirs = model.generate(**wide, max_new_tokens=24, do_sample=False, eos_token_id=eos, **settings)
        ours = model.generate(
            **wide,
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=eos,
            custom_generate=DECODERS[name](model),
            **settings,
        )
        assert torch.equal(ours, theirs)


def test_right_padding_is_moved_to_the_left(model: PreTrainedModel) -> None:
    right, left = (prompts(model, [6, 11, 3], side=side) for side in ("right", "left"))
    outs = [Autoregressive().generate(model, **batch, max_new_tokens=5).sequences for batch in (right, left)]
    assert torch.equal(outs[0], outs[1])


@pytest.mark.parametrize("name", DECODERS)
def test_sampling_through_model_generate(model: PreTrainedModel, name: str) -> None:
    batch = prompts(model, [6, 11])
    settings: dict[str, Any] = {"max_new_tokens": 20, "do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9}
    outs = []
    for seed in (1, 1, 2):
        decoder = DECODERS[name](model)
        torch.manual_seed(seed)
        outs.append(model.generate(**batch, **settings, custom_generate=decoder))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    torch.manual_seed(1)
    sampling = Sampling(0.7, 20, 0.9, seed=int(torch.randint(2**62, ())))
    ours = DECODERS[name](model).generate(model, **batch, max_new_tokens=20, sampling=sampling)
    assert torch.equal(outs[0], ours.sequences)


@pytest.mark.parametrize(
    ("settings", "needle"),
    [
        ({"num_beams": 2}, "num_beams=2"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size=3"),
        ({"min_new_tokens": 4}, "min_new_tokens=4"),
        ({"min_length": 9}, "min_length=9"),
        ({"min_p": 0.1, "do_sample": True}, "min_p=0.1"),
        ({"typical_p": 0.5, "do_sample": True}, "typical_p=0.5"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences=2"),
        ({"bad_words_ids": [[3]]}, "bad_words_ids"),
        ({"suppress_tokens": [3]}, "suppress_tokens"),
        ({"forced_eos_token_id": 3}, "forced_eos_token_id"),
        ({"max_time": 0.5}, "max_time=0.5"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores"),
        ({"output_logits": True, "return_dict_in_generate": True}, "output_logits"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states"),
        ({"remove_invalid_values": True}, "remove_invalid_values"),
        ({"exponential_decay_length_penalty": (2, 1.5), "eos_token_id": 3}, "exponential_decay_length_penalty"),
        ({"renormalize_logits": True}, "renormalize_logits"),
        ({"prefix_allowed_tokens_fn": lambda batch, ids: [1, 2]}, "PrefixConstrainedLogitsProcessor"),
        ({"stopping_criteria": StoppingCriteriaList([lambda ids, scores: True])}, "stopping criterion"),
        ({"inputs_embeds": torch.zeros(1, 3, 32, dtype=torch.float64), "input_ids": None}, "input_ids"),
    ],
)
def test_settings_that_would_be_ignored_are_refused_by_name(
    model: PreTrainedModel, settings: dict[str, Any], needle: str
) -> None:
    arguments = {"input_ids": torch.tensor([[1, 2, 3]]), "max_new_tokens": 5} | settings
    with pytest.raises(ValueError, match=needle) as caught:
        model.generate(**arguments, custom_generate=Autoregressive())
    assert len(str(caught.value).splitlines()) == 1


def test_inputs_that_would_be_ignored_are_refused_by_name(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="pixel_values"):
        Autoregressive()(model, torch.tensor([[1, 2]]), pixel_values=torch.zeros(1))


def test_what_the_decoders_know_is_taken(model: PreTrainedModel) -> None:
    ids = torch.tensor([[1, 2, 3]])
    out = Autoregressive()(
        model,
        ids,
        logits_processor=LogitsProcessorList([TemperatureLogitsWarper(0.5)]),
        stopping_criteria=StoppingCriteriaList([MaxLengthCriteria(9)]),
    )
    assert out.shape == (1, 23)  # no limit given: transformers' 20 new tokens


def as_yaml(entries: dict[str, dict[str, Any]]) -> str:
    return yaml.safe_dump({"decoders": entries})


def test_yaml_builds_every_decoder(model: PreTrainedModel, tmp_path: Path) -> None:
    draft = str(tmp_path / "draft")
    copy_layers(model, 1).float().save_pretrained(draft)
    decoders = parse(as_yaml({name: case.entry(draft) for name, case in CASES.items()}))
    assert decoders == {name: case.build(draft) for name, case in CASES.items()}
    batch = prompts(model, [4, 7])
    expected = Autoregressive().generate(model, **batch, max_new_tokens=16)
    for name, case in DECODERS.items():
        for _ in range(2):  # the draft is loaded once
            out = decoders[name].generate(model, **batch, max_new_tokens=16)
            assert torch.equal(out.sequences, expected.sequences) or not case.kind.lossless
    assisted = decoders["assisted"]
    assert isinstance(assisted, AssistedDecoding)
    assert [part.dtype for part in assisted._loaded.values()] == [torch.float64]


@pytest.mark.parametrize("name", CASES)
def test_yaml_refuses_a_misspelt_setting_by_name(name: str) -> None:
    entry = CASES[name].entry("draft") | {"init_args": {"draft_lenght": 3}}
    with pytest.raises(Exception, match="draft_lenght"):
        parse(as_yaml({"one": entry}))


@pytest.mark.parametrize("path", ["saccade.inference.Autoregresive", "saccade.inference.Sampling", "torch.nn.Linear"])
def test_yaml_refuses_an_unknown_decoder(path: str) -> None:
    with pytest.raises(Exception, match=path.rsplit(".", 1)[1]):
        parse(f"decoders:\n  one:\n    class_path: {path}\n")


def test_yaml_refuses_an_impossible_value() -> None:
    with pytest.raises(Exception, match="draft_length must be at least 1, got 0"):
        parse("decoders:\n  one:\n    class_path: saccade.inference.PromptLookup\n    init_args: {draft_length: 0}\n")


def test_a_model_with_learned_positions_can_use_its_whole_context() -> None:
    config = GPT2Config(
        vocab_size=30,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=40,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).double().eval()
    batch = prompts(model, [10, 4, 7])
    theirs = model.generate(**batch, max_new_tokens=30, do_sample=False)
    draft = GPT2LMHeadModel(config).double().eval()
    for decoder in (Autoregressive(), PromptLookup(draft_length=12), AssistedDecoding(draft, confidence_threshold=0.0)):
        assert torch.equal(decoder.generate(model, **batch, max_new_tokens=30).sequences, theirs)
