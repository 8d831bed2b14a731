"""transformers' own generate, measured like a decoder."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from saccade.callbacks.decoding.transformers_generate import TransformersGenerate
from saccade.inference import Autoregressive, Sampling
from tests.support.models import plant_constant, tiny_model

PROMPTS = [[5, 6, 7, 8], [9, 3], [4, 4, 4]]


def test_texts_are_those_of_the_baseline_in_a_batch_and_alone():
    model = tiny_model()
    ours = Autoregressive().generate(model, PROMPTS, max_new_tokens=7, do_sample=False)
    together = TransformersGenerate().generate(model, PROMPTS, max_new_tokens=7, do_sample=False)
    assert together.tokens == ours.tokens
    assert torch.equal(together.sequences, ours.sequences)
    for row, prompt in enumerate(PROMPTS):
        alone = TransformersGenerate().generate(model, [prompt], max_new_tokens=7, do_sample=False)
        assert alone.tokens == [ours.tokens[row]]
        for name in ("requests", "prompt_tokens", "new_tokens", "verify_steps", "target_forwards"):
            assert getattr(alone.stats, name) == getattr(ours.per_request[row], name), name
    assert together.stats.target_forwards == 7
    assert together.stats.new_tokens == 21
    assert together.stats.requests == 3
    assert 0 < together.stats.prefill_seconds < together.stats.seconds


@pytest.mark.parametrize("ends", [13, [2, 13]])
def test_a_text_ends_with_its_eos(ends):
    model = tiny_model()
    plant_constant(model, 13)
    model.generation_config.eos_token_id = ends
    out = TransformersGenerate().generate(model, PROMPTS, max_new_tokens=7, do_sample=False)
    assert out.tokens == [[13]] * 3


def test_settings_of_the_models_own_generation_are_left_out_and_restored():
    model = tiny_model()
    plain = TransformersGenerate().generate(model, PROMPTS, max_new_tokens=7, do_sample=False)
    own = model.generation_config
    own.update(repetition_penalty=9.0, suppress_tokens=list(range(20)), do_sample=True, max_length=3)
    out = TransformersGenerate().generate(
        model, PROMPTS, max_new_tokens=7, do_sample=False, generation_config=GenerationConfig()
    )
    assert out.tokens == plain.tokens
    assert model.generation_config is own


def test_drawn_texts_depend_on_the_seed_and_leave_the_generator_alone():
    model = tiny_model()
    state = torch.random.get_rng_state()
    first, again, other = (
        TransformersGenerate().generate(model, PROMPTS, max_new_tokens=9, sampling=Sampling(temperature=2.0, seed=seed))
        for seed in (1, 1, 2)
    )
    assert first.tokens == again.tokens
    assert first.tokens != other.tokens
    assert torch.equal(state, torch.random.get_rng_state())
