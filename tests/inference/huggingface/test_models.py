"""What a model is taken for: limits, logits, adapters, and weights that are not where they seem to be."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, init_empty_weights
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from saccade.inference import AssistedDecoding, Autoregressive, PromptLookup, SelfSpeculative, SpecVLM
from saccade.inference.huggingface.models import (
    context_length,
    device_of,
    kept_logits,
    last_position,
    takes_logits_to_keep,
    weights_in_place,
)
from tests.support.errors import one_line
from tests.support.models import tiny_model
from tests.support.video_checks import asked
from tests.support.video_models import tiny_video_model, video_prompts

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
LORA = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)


class Swallowing(LlamaForCausalLM):
    def forward(self, input_ids: Any = None, **named: Any) -> Any:
        named.pop("logits_to_keep", None)
        return super().forward(input_ids=input_ids, **named)


def test_who_takes_logits_to_keep() -> None:
    model = tiny_model()
    assert takes_logits_to_keep(model)
    assert not takes_logits_to_keep(Swallowing(model.config))
    assert takes_logits_to_keep(get_peft_model(tiny_model(), LORA))
    assert not takes_logits_to_keep(get_peft_model(Swallowing(model.config), LORA))
    assert takes_logits_to_keep(cpu_offload(tiny_model()))


def test_the_wanted_logits_are_cut_by_their_shape() -> None:
    whole = torch.arange(2 * 5 * 3).reshape(2, 5, 3)
    places = torch.tensor([1, 4])
    assert torch.equal(kept_logits(whole, places, 5), whole[:, [1, 4]])
    assert torch.equal(kept_logits(whole[:, [1, 4]], places, 5), whole[:, [1, 4]])
    assert torch.equal(kept_logits(whole, 0, 5), whole)
    assert torch.equal(kept_logits(whole, 2, 5), whole[:, 3:])
    assert torch.equal(kept_logits(whole[:, 3:], 2, 5), whole[:, 3:])
    one_line(lambda: kept_logits(whole[:, :3], places, 5), "3 places", "2 of 5", "logits_to_keep")


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8),
    ],
    ids=["prompt tuning", "prefix tuning", "p-tuning"],
)
def test_soft_prompts_are_refused_at_both_doors(config: Any) -> None:
    model = get_peft_model(tiny_model(), config)
    for decoder in (Autoregressive(), PromptLookup()):
        one_line(lambda d=decoder: d.generate(model, IDS), "PEFT adapter 'default'", "virtual tokens", "LoRA")
        call = lambda d=decoder: model.generate(input_ids=IDS, max_new_tokens=3, custom_generate=d)  # noqa: E731
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one_line(call, "PEFT adapter 'default'", "virtual tokens")
    # the model inside is as it was
    inner = model.get_base_model()
    assert Autoregressive().generate(inner, IDS, max_new_tokens=3).stats.new_tokens == 3
    one_line(lambda: AssistedDecoding(model).generate(tiny_model(), IDS), "virtual tokens")


def test_adapters_of_the_layers_are_decoded() -> None:
    model = get_peft_model(tiny_model(), LORA).double().eval()
    right = model.generate(input_ids=IDS, max_new_tokens=8, do_sample=False)
    assert not torch.equal(right, tiny_model().generate(IDS, max_new_tokens=8, do_sample=False))
    assert torch.equal(PromptLookup().generate(model, IDS, max_new_tokens=8).sequences, right)
    second = model.generate(input_ids=IDS, max_new_tokens=8, do_sample=False, custom_generate=PromptLookup())
    assert torch.equal(second, right)
    one_line(
        lambda: model.generate(
            input_ids=IDS, max_new_tokens=2, adapter_names=["__base__"], custom_generate=Autoregressive()
        ),
        "adapter_names",
    )


def test_adapters_that_begin_in_the_text_are_refused() -> None:
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], alora_invocation_tokens=[4, 1])
    model = get_peft_model(tiny_model(), config)
    one_line(lambda: Autoregressive().generate(model, IDS), "alora_invocation_tokens")
    call = lambda: model.generate(input_ids=IDS, max_new_tokens=2, custom_generate=Autoregressive())  # noqa: E731
    one_line(call, "alora")


@pytest.mark.parametrize("make", [tiny_model, lambda: GPT2LMHeadModel(small_gpt2()).double().eval()])
def test_offloaded_weights_are_decoded(make: Any) -> None:
    torch.manual_seed(0)
    model = make()
    right = model.generate(IDS, max_new_tokens=6, do_sample=False)
    assert weights_in_place(model)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(weight.is_meta for weight in model.parameters())
    assert not weights_in_place(model)
    assert device_of(model) == torch.device("cpu")
    assert torch.equal(PromptLookup().generate(model, IDS, max_new_tokens=6).sequences, right)
    assert torch.equal(model.generate(IDS, max_new_tokens=6, do_sample=False, custom_generate=PromptLookup()), right)
    decoder = SelfSpeculative(skip={"attention": [1], "mlp": [0]})
    hooked = {path: vars(part).get("forward") for path, part in model.named_modules()}
    assert torch.equal(decoder.generate(model, IDS, max_new_tokens=6).sequences, right)
    assert {path: vars(part).get("forward") for path, part in model.named_modules()} == hooked


def test_an_offloaded_vision_language_model_is_decoded() -> None:
    prompts = asked(video_prompts("qwen2_5_vl", seed=1))
    model = tiny_video_model("qwen2_5_vl", seed=2)
    right = Autoregressive().generate(model, **prompts, max_new_tokens=5).tokens
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert SpecVLM(prune_ratio=0.5).generate(model, **prompts, max_new_tokens=5).tokens == right


def test_weights_without_values_are_refused() -> None:
    with init_empty_weights():
        empty = LlamaForCausalLM(tiny_model().config)
    one_line(lambda: Autoregressive().generate(empty, IDS), "embed_tokens.weight", "meta", "from_pretrained")
    half = tiny_model()
    half.model.layers[1].mlp.up_proj.weight = nn.Parameter(half.model.layers[1].mlp.up_proj.weight.to("meta"))
    one_line(lambda: Autoregressive().generate(half, IDS), "model.layers.1.mlp.up_proj.weight", "meta")


def small_gpt2(context: int = 64) -> GPT2Config:
    return GPT2Config(
        vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=context, bos_token_id=None, eos_token_id=None
    )


@pytest.mark.parametrize("room", [0, 1, 4])
def test_the_last_token_needs_no_position(room: int) -> None:
    """Also where positions are a table."""
    for model in (tiny_model(context=8 + room), GPT2LMHeadModel(small_gpt2(8 + room)).double().eval()):
        right = model.generate(IDS, max_new_tokens=room + 1, do_sample=False)
        for decoder in (Autoregressive(), PromptLookup(), AssistedDecoding(model, confidence_threshold=0.0)):
            assert torch.equal(decoder.generate(model, IDS, max_new_tokens=room + 1).sequences, right)
        one_line(lambda m=model: Autoregressive().generate(m, IDS, max_new_tokens=room + 2), "max_new_tokens")


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}, 32),
        ({"rope_type": "linear", "factor": 2.0}, 24),
        (
            {
                "rope_type": "llama3", "factor": 3.0, "original_max_position_embeddings": 12, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
            36,
        ),
        ({"rope_type": "default"}, 12),
    ],
    ids=lambda rope: rope["rope_type"] if isinstance(rope, dict) else "",
)  # fmt: skip
def test_scaled_positions_reach_beyond_the_context(rope: dict[str, Any], positions: int) -> None:
    model = tiny_model(context=12, rope_parameters=rope | {"rope_theta": 1e4})
    assert context_length(model) == positions
    assert last_position(model) > 10**9
    most = positions - 8 + 1
    right = model.generate(IDS, max_new_tokens=most, do_sample=False)
    for decoder in (Autoregressive(), PromptLookup(), AssistedDecoding(model, confidence_threshold=0.0)):
        assert torch.equal(decoder.generate(model, IDS, max_new_tokens=most).sequences, right)
    one_line(lambda: Autoregressive().generate(model, IDS, max_new_tokens=most + 1), str(positions))


def test_scalings_that_depend_on_the_text_are_refused_for_each_kind_of_layer() -> None:
    config = LlamaConfig(**{**tiny_model().config.to_dict(), "rope_parameters": None})
    model = LlamaForCausalLM(config)
    for rope in ({"rope_type": "dynamic"}, {"full_attention": {"rope_type": "dynamic", "factor": 2.0}}):
        model.config.rope_parameters = rope
        one_line(lambda: Autoregressive().generate(model, IDS), "dynamic", "yarn")
