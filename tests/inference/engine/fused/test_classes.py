"""Every class that the fused step takes writes what its own modules write, also where windows end and rows differ."""

from __future__ import annotations

import pytest
import torch

from benchmarks.decoding import classes, vision_classes
from saccade.inference import Autoregressive, SelfSpeculative
from saccade.inference.engine.fused.parts import FUSED, why_not_fused
from saccade.inference.engine.session import Session
from saccade.inference.trees import TokenTree
from tests.support.models import prompts

TYPES = {
    "GemmaForCausalLM": "gemma",
    "Gemma3ForCausalLM": "gemma3_text",
    "GraniteForCausalLM": "granite",
    "GraniteMoeForCausalLM": "granitemoe",
    "LlamaForCausalLM": "llama",
    "MinistralForCausalLM": "ministral",
    "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mixtral",
    "Phi3ForCausalLM": "phi3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2MoeForCausalLM": "qwen2_moe",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "SeedOssForCausalLM": "seed_oss",
    "SmolLM3ForCausalLM": "smollm3",
}
OF_IMAGES = {
    "InternVLForConditionalGeneration": "internvl",
    "LlavaForConditionalGeneration": "llava",
    "LlavaNextForConditionalGeneration": "llava_next",
    "LlavaOnevisionForConditionalGeneration": "llava_onevision",
    "Qwen2VLForConditionalGeneration": "qwen2_vl",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
    "Qwen3VLForConditionalGeneration": "qwen3_vl",
    "Qwen3VLMoeForConditionalGeneration": "qwen3_vl_moe",
}
LENGTHS = [4, 30, 7]


def test_all_of_them_are_compared():
    assert set(TYPES) | set(OF_IMAGES) == FUSED


@pytest.mark.parametrize("name", TYPES)
def test_fused_steps_are_the_modules_own(name):
    model = classes.tiny_model(TYPES[name])
    assert type(model).__name__ == name
    assert why_not_fused(model) == ""
    batch = prompts(model, LENGTHS)
    right = Autoregressive(engine="eager").generate(model, **batch, max_new_tokens=16).tokens
    for rows in (slice(None), slice(1, 2)):
        given = {key: value[rows] for key, value in batch.items()}
        decoder = Autoregressive()
        decoder.pool.uncaptured = True
        assert decoder.generate(model, **given, max_new_tokens=16).tokens == right[rows]
        assert [engine._fused is not None for engine in decoder.pool._idle] == [True]
    skip = SelfSpeculative(skip={"attention": [1], "mlp": [0]}, draft_length=3)
    skip.pool.uncaptured = True
    assert skip.generate(model, **batch, max_new_tokens=16).tokens == right
    tree, tokens = TokenTree((-1, 0, 0, 1, 3)), torch.tensor([[5, 6, 7, 8, 9]])
    found = []
    for pool in (skip.pool, Autoregressive(engine="eager").pool):
        with Session(model, 60, pool=pool) as session:
            session.prefill([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]])
            found.append(session.forward(tokens, tree))
    # routers are rounded to float32 in either, after other sums
    assert torch.allclose(*found, atol=1e-5 if "mo" in TYPES[name] else 1e-10)


@pytest.mark.parametrize("name", OF_IMAGES)
def test_steps_behind_images_are_fused_too(name):
    kind = OF_IMAGES[name]
    model = vision_classes.tiny_model(kind)
    assert type(model).__name__ == name
    batch = vision_classes.prompts(kind, model)
    right = Autoregressive(engine="eager").generate(model, **batch, max_new_tokens=12).tokens
    decoder = Autoregressive()
    decoder.pool.uncaptured = True
    assert decoder.generate(model, **batch, max_new_tokens=12).tokens == right
    assert [engine._fused is not None for engine in decoder.pool._idle] == [True]
