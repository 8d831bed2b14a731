"""The first use of a model of an untested class: its own logits and a session's are compared, once."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
    MinistralConfig,
    MinistralForCausalLM,
    PersimmonConfig,
    PersimmonForCausalLM,
    PreTrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from saccade.inference import Autoregressive, EngineConfig, PromptLookup
from saccade.inference.model_check import _CHECKED, check_model
from saccade.inference.request import Request
from tests.inference.doors.test_clean import portrait, same
from tests.support.errors import one_line
from tests.support.models import tiny_model
from tests.support.video_checks import asked, video_model
from tests.support.video_models import video_prompts

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
SMALL: dict[str, Any] = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
    "initializer_range": 0.2,
}  # fmt: skip


def granite(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    return GraniteForCausalLM(GraniteConfig(**SMALL, num_key_value_heads=2)).to(dtype).eval()


class Plain(LlamaForCausalLM):
    """A class that nobody has tested; it computes what a Llama does."""


class Forgetful(LlamaForCausalLM):
    """Adds something where it sees a cache that holds tokens."""

    def forward(self, *given: Any, **named: Any) -> Any:
        out = super().forward(*given, **named)
        cache = named.get("past_key_values")
        step = cache is not None and len(named["input_ids"][0]) == 1
        out.logits = out.logits + (torch.arange(out.logits.shape[-1]) % 2 if step else 0)
        return out


class Looking(LlamaForCausalLM):
    """Adds the mean of all states: a place depends on what comes later."""

    def forward(self, *given: Any, **named: Any) -> Any:
        out = super().forward(*given, **named)
        return type(out)(logits=out.logits + 3 * out.logits.mean(1, keepdim=True))


class Counting(LlamaForCausalLM):
    """Positions that begin at one where it counts them itself."""

    def forward(self, input_ids: Any = None, position_ids: Any = None, **named: Any) -> Any:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1])[None] * 2
        return super().forward(input_ids=input_ids, position_ids=position_ids, **named)


class Broken(LlamaForCausalLM):
    def forward(self, input_ids: Any = None, **named: Any) -> Any:
        if named.get("past_key_values") is not None:
            raise TypeError("this model has no cache")
        return super().forward(input_ids=input_ids, **named)


def made(kind: type[PreTrainedModel], **settings: Any) -> PreTrainedModel:
    model = tiny_model(**settings)
    other = kind(model.config).to(model.dtype).eval()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize(
    ("kind", "needles"),
    [
        (Forgetful, ("Forgetful", "step behind a rejected draft", "standard deviation", "check_model")),
        (Looking, ("Looking", "later", "model.generate")),
        (Counting, ("Counting", "for a prompt")),
        (Broken, ("Broken", "this model has no cache")),
    ],
)
def test_models_that_compute_something_else_are_refused(kind: type[PreTrainedModel], needles: tuple[str, ...]) -> None:
    model = made(kind)
    before = portrait(model)
    for _ in range(2):  # again at the next use
        one_line(lambda: PromptLookup().generate(model, IDS), *needles)
    one_line(lambda: next(Autoregressive().stream(model, IDS)), *needles)
    one_line(lambda: model.generate(IDS, custom_generate=Autoregressive(), max_new_tokens=2), *needles)
    assert same(before, portrait(model))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rounding_is_not_refused(dtype: torch.dtype) -> None:
    for model in (granite(dtype), made(Plain, dtype=dtype)):
        assert Autoregressive().generate(model, IDS, max_new_tokens=4).stats.new_tokens == 4
        assert _CHECKED[model] == {"text"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: PersimmonForCausalLM(PersimmonConfig(**SMALL)),
        lambda: Qwen2MoeForCausalLM(
            Qwen2MoeConfig(
                **SMALL, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
                shared_expert_intermediate_size=16,
            )
        ),
        lambda: DeepseekV3ForCausalLM(
            DeepseekV3Config(
                **SMALL, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
                n_group=1, topk_group=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
                v_head_dim=12, first_k_dense_replace=1,
            )
        ),
    ],
    ids=["persimmon", "qwen2_moe", "deepseek_v3"],
)  # fmt: skip
def test_untested_classes_of_transformers_decode_as_they_do(make: Any) -> None:
    torch.manual_seed(0)
    model = make().float().eval()
    right = model.generate(IDS, max_new_tokens=8, do_sample=False)
    assert torch.equal(PromptLookup().generate(model, IDS, max_new_tokens=8).sequences, right)
    assert "text" in _CHECKED[model]


class Nearsighted(MinistralForCausalLM):
    """Its own forward has a shorter window than its configuration says."""

    def forward(self, *given: Any, **named: Any) -> Any:
        self.config.sliding_window = 9 if named.get("past_key_values") is None else 10
        return super().forward(*given, **named)


def test_short_windows_are_checked_with_a_text_that_is_longer() -> None:
    torch.manual_seed(0)
    config = MinistralConfig(**SMALL, num_key_value_heads=2, head_dim=8, sliding_window=10)
    right = MinistralForCausalLM(config).eval()
    assert Autoregressive().generate(right, IDS, max_new_tokens=2).stats.new_tokens == 2
    wrong = Nearsighted(config).eval()
    one_line(lambda: Autoregressive().generate(wrong, IDS), "Nearsighted", "standard deviation")


def test_a_model_object_is_checked_once_and_not_kept() -> None:
    model = made(Plain).train()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    before = portrait(model)
    counts = []
    for _ in range(2):
        Autoregressive().generate(model, IDS, max_new_tokens=3)
        counts.append(len(calls))
        calls.clear()
    assert counts == [8, 3]  # two forwards of its own, two of a session; a prompt and two steps
    assert same(before, portrait(model))
    Autoregressive().generate(made(Plain), IDS, max_new_tokens=3)  # another object
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_what_is_not_checked() -> None:
    model = made(Forgetful)
    request = Request.read(model, IDS, None, 3, None, None, None)
    check_model(model, request, EngineConfig(), synced=True)  # all ranks make the same forwards
    check_model(model, request, EngineConfig(check_model=False))
    assert Autoregressive(engine=EngineConfig(check_model=False)).generate(model, IDS, max_new_tokens=3).tokens
    tested = tiny_model()
    Autoregressive().generate(tested, IDS, max_new_tokens=2)
    assert tested not in _CHECKED
    one_line(lambda: EngineConfig(check_model=1), "engine.check_model")  # type: ignore[arg-type]


def test_a_tested_class_with_a_replaced_forward_is_checked() -> None:
    model = tiny_model()
    forward = model.model.layers[1].mlp.forward
    model.model.layers[1].mlp.forward = lambda hidden: forward(hidden) * (1 + hidden.shape[1] % 2)
    one_line(lambda: Autoregressive().generate(model, IDS), "LlamaForCausalLM")


class Deeper(Qwen2_5_VLForConditionalGeneration):
    """Adds features of its video to the logits behind it, which no session hands over."""

    def forward(self, *given: Any, **named: Any) -> Any:
        out = super().forward(*given, **named)
        if named.get("pixel_values_videos") is not None:
            out.logits = out.logits + 2 * torch.arange(out.logits.shape[-1]) % 3
        return out


def test_images_and_videos_of_an_untested_class() -> None:
    stock = video_model("qwen2_5_vl")
    prompts = video_prompts("qwen2_5_vl", rows=2, seed=1)
    for kind in (Deeper, type("Same", (Qwen2_5_VLForConditionalGeneration,), {})):
        model = kind(stock.config).double().eval()
        model.load_state_dict(stock.state_dict())
        words = torch.tensor([[3, 20, 21]])
        assert Autoregressive().generate(model, words, max_new_tokens=2).stats.new_tokens == 2
        call = lambda model=model: Autoregressive().generate(model, **asked(prompts), max_new_tokens=4)  # noqa: E731
        before = portrait(model)
        if kind is Deeper:
            one_line(call, "Deeper", "images or videos")
        else:
            assert call().tokens == Autoregressive().generate(stock, **asked(prompts), max_new_tokens=4).tokens
            assert _CHECKED[model] == {"text", "visual"}
        assert same(before, portrait(model))


def test_nan_weights_are_told_by_the_verification() -> None:
    model = made(Plain)
    nn.init.constant_(model.lm_head.weight[7:8], torch.nan)
    one_line(lambda: Autoregressive().generate(model, IDS), "NaN")
