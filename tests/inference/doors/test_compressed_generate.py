"""`past_key_values=CompressedCache(...)`: transformers' own `generate` on a compressed cache."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList
from transformers.generation import TopKLogitsWarper

from saccade.inference import Autoregressive, CacheCompressor, CompressedCache, FullKV, HybridKV, LookM, Session, SnapKV
from saccade.inference.huggingface.vision import visual_arguments
from tests.support.errors import one_line
from tests.support.models import tiny_model
from tests.support.video_models import ALL_FAMILIES, tiny_video_model, video_prompts

MODEL = tiny_model("llama", residual=0.3, seed=3)
DRAW = torch.Generator().manual_seed(0)
PROMPTS = [torch.randint(3, 40, (count,), generator=DRAW).tolist() for count in (150, 97, 121)]
LONGEST = max(map(len, PROMPTS))
INPUTS = {
    "input_ids": torch.tensor([[0] * (LONGEST - len(prompt)) + prompt for prompt in PROMPTS]),
    "attention_mask": torch.tensor([[0] * (LONGEST - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS]),
}
NEW = {"max_new_tokens": 24, "do_sample": False}
KINDS: dict[str, CacheCompressor] = {
    "static": SnapKV(budget=0.3),
    "fetched": HybridKV(budget=0.5, theta=2.0, recent=8, chunk=8),
    "both": HybridKV(budget=0.5, theta=0.55, sparsity="threshold", recent=8, chunk=8),
    "merged": LookM(budget=0.3),
}


def one(row: int) -> dict[str, Tensor]:
    ids = torch.tensor([PROMPTS[row]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("room", [256, 3])
def test_generate_writes_what_autoregressive_writes(kind, room) -> None:
    made = KINDS[kind]
    right = Autoregressive(compressor=made).generate(MODEL, PROMPTS, max_new_tokens=24, eos_token_id=())
    full = MODEL.generate(**INPUTS, **NEW)[:, LONGEST:].tolist()
    assert right.tokens != full, "the compression must matter here"
    with CompressedCache(made, MODEL, room=room) as cache:
        found = MODEL.generate(**INPUTS, **NEW, past_key_values=cache)
        assert found[:, LONGEST:].tolist() == right.tokens
        assert torch.equal(found[:, :LONGEST], INPUTS["input_ids"])
        assert cache.host_bytes == right.stats.kv_host_bytes
        assert (cache.host_bytes > 0) == made.dynamic
        # the room behind the prompts is the same for both kinds only if it is given the same number of tokens
        assert cache.device_bytes > 0
        assert cache.get_seq_length() == LONGEST + 23
    assert MODEL.generate(**INPUTS, **NEW)[:, LONGEST:].tolist() == full, "the model is as it was"
    assert (cache.device_bytes, cache.host_bytes) == (0, 0)


def test_hidden_states_of_padded_prompts_are_in_their_places() -> None:
    with torch.no_grad():
        right = MODEL(**INPUTS, output_hidden_states=True).hidden_states
        found = MODEL(
            **INPUTS, output_hidden_states=True, past_key_values=CompressedCache(FullKV(), MODEL)
        ).hidden_states
    mask = INPUTS["attention_mask"].bool()
    for own, wanted in zip(found, right, strict=True):
        assert torch.allclose(own[mask], wanted[mask], atol=1e-5)  # rotations are in float32


def test_bytes_are_those_of_a_session_with_as_much_room() -> None:
    made = SnapKV(budget=0.3)
    with CompressedCache(made, MODEL, room=24) as cache, Session(MODEL, LONGEST + 24, compressor=made) as session:
        MODEL.generate(**one(0), **NEW, past_key_values=cache)
        session.prefill([PROMPTS[0]])
        assert cache.device_bytes == session.cache_bytes


def test_sampling_is_transformers_own() -> None:
    drawn = {"max_new_tokens": 24, "do_sample": True, "temperature": 0.9, "top_k": 12, "top_p": 0.95}
    texts = {}
    for name, made in {"dynamic": None, "full": FullKV(), "whole": HybridKV(budget=1.0), "less": KINDS["both"]}.items():
        torch.manual_seed(5)
        cache = DynamicCache(config=MODEL.config) if made is None else CompressedCache(made, MODEL)
        texts[name] = MODEL.generate(**INPUTS, **drawn, past_key_values=cache).tolist()
    assert texts["full"] == texts["whole"] == texts["dynamic"]
    assert texts["less"] != texts["dynamic"]


@pytest.mark.parametrize("kind", ["static", "both"])
def test_logits_of_a_sampled_text_are_those_of_the_compressed_cache(kind) -> None:
    made = KINDS[kind]
    torch.manual_seed(1)
    cache = CompressedCache(made, MODEL)
    out = MODEL.generate(
        **one(1), max_new_tokens=12, do_sample=True, past_key_values=cache, output_logits=True,
        return_dict_in_generate=True, logits_processor=LogitsProcessorList([TopKLogitsWarper(5)]),
    )  # fmt: skip
    with Session(MODEL, 200, compressor=made) as session:
        logits = [session.prefill([PROMPTS[1]])[0]]
        text = out.sequences[:, len(PROMPTS[1]) : -1]
        logits += list(session.forward(text)[0])
    for own, right in zip(out.logits, logits, strict=True):
        assert torch.allclose(own[0].double(), right, atol=1e-5)  # generate keeps them in float32


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_behind_the_prompt_are_taken_back(kind) -> None:
    made = KINDS[kind]
    right = Autoregressive(compressor=made).generate(MODEL, PROMPTS[:1], max_new_tokens=24, eos_token_id=()).tokens[0]
    with CompressedCache(made, MODEL, room=6) as cache, torch.no_grad():
        logits = MODEL(**one(0), past_key_values=cache).logits[0, -1]
        text = []
        while len(text) < 24:
            text.append(int(logits.argmax()))
            wrong = torch.tensor([[text[-1], (text[-1] + 1) % 40, 9, 11]])
            logits = MODEL(wrong, past_key_values=cache).logits[0, 0]
            cache.crop(-3)
            cache.crop(0)
        assert text == right
        cache.crop(-24)
        assert cache.get_seq_length() == LONGEST
        one_line(lambda: cache.crop(-1), "tokens_to_remove must be from 0 to 0, got -1", "reset()")
        lookup = {"prompt_lookup_num_tokens": 4}
        cache.reset()
        one_line(
            lambda: MODEL.generate(**one(0), **NEW, **lookup, past_key_values=cache), "assisted decoding", "Lookup"
        )


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("rows", [1, 3])
def test_images_and_videos(family, rows) -> None:
    model = tiny_video_model(family)
    prompts = video_prompts(family, rows)
    made = HybridKV(budget=0.95, theta=2.0, sinks=1, recent=1, chunk=1, pin_text=False)
    given = {"input_ids": prompts.input_ids, "attention_mask": prompts.attention_mask}
    right = Autoregressive(compressor=made).generate(
        model, **given, **prompts.visual, max_new_tokens=10, eos_token_id=()
    )
    given |= visual_arguments(model, prompts.input_ids, prompts.visual)
    with CompressedCache(made, model) as cache:
        found = model.generate(**given, max_new_tokens=10, do_sample=False, past_key_values=cache)
        assert found[:, prompts.input_ids.shape[1] :].tolist() == right.tokens
        assert any(bool(mask.any()) for mask in cache._observer.visual), "it knows which tokens are visual"


def test_a_cache_serves_one_prompt_after_the_other() -> None:
    made = KINDS["both"]
    cache = CompressedCache(made, MODEL)
    for row in (1, 0):
        right = Autoregressive(compressor=made).generate(MODEL, [PROMPTS[row]], max_new_tokens=24, eos_token_id=())
        found = MODEL.generate(**one(row), **NEW, past_key_values=cache)
        assert found[0, len(PROMPTS[row]) :].tolist() == right.tokens[0]
        cache.reset()


def test_two_caches_take_turns_and_a_dropped_one_leaves_the_model_alone() -> None:
    first, second = CompressedCache(KINDS["static"], MODEL), CompressedCache(KINDS["both"], MODEL)
    texts = [MODEL.generate(**one(0), **NEW, past_key_values=cache).tolist() for cache in (first, second)]
    for made, text in zip((KINDS["static"], KINDS["both"]), texts, strict=True):
        right = Autoregressive(compressor=made).generate(MODEL, PROMPTS[:1], max_new_tokens=24, eos_token_id=())
        assert text[0][LONGEST:] == right.tokens[0]
    seen = weakref.ref(first)
    del first
    gc.collect()
    assert seen() is None
    second.close()
    assert not MODEL.model._forward_pre_hooks
    assert not MODEL.model._forward_hooks
    assert not MODEL._forward_pre_hooks
    assert MODEL.config._attn_implementation != "saccade"


def test_a_later_turn_goes_on_where_the_text_ended() -> None:
    made = KINDS["static"]
    cache = CompressedCache(made, MODEL)
    text = MODEL.generate(**one(0), **NEW, past_key_values=cache)
    longer = torch.cat([text, torch.tensor([[7, 8, 9]])], 1)
    found = MODEL.generate(longer, attention_mask=torch.ones_like(longer), **NEW, past_key_values=cache)
    with Session(MODEL, 300, compressor=made) as session:
        session.prefill([PROMPTS[0]])
        rest = found[:, LONGEST:]
        logits = session.forward(rest[:, :-1])[0]
    assert found[0, longer.shape[1] :].tolist() == logits.argmax(-1)[longer.shape[1] - LONGEST - 1 :].tolist()


def test_wrong_uses_are_told_in_one_line() -> None:
    made = KINDS["static"]
    one_line(lambda: CompressedCache("SnapKV", MODEL), "compressor must be a cache compressor, got 'SnapKV'")  # type: ignore[arg-type]
    one_line(lambda: CompressedCache(made, MODEL, room=0), "room must be at least 1, got 0")
    windowed = tiny_model("qwen3", use_sliding_window=True, sliding_window=16, max_window_layers=0)
    one_line(lambda: CompressedCache(made, windowed), "full attention in every layer", "sliding_attention")
    cache = CompressedCache(made, MODEL)
    other = tiny_model("llama", seed=4)
    one_line(
        lambda: other.generate(**one(0), **NEW, past_key_values=cache), "past_key_values must be a CompressedCache"
    )
    one_line(
        lambda: MODEL.generate(**one(0), max_new_tokens=3, num_beams=2, past_key_values=cache), "num_beams must be 1"
    )
    cache.reset()
    right = {"input_ids": INPUTS["input_ids"].flip(1), "attention_mask": INPUTS["attention_mask"].flip(1)}
    one_line(lambda: MODEL.generate(**right, **NEW, past_key_values=cache), "padding on the left", "padding_side")
    one_line(lambda: MODEL(**one(0), past_key_values=cache), "no gradients", "torch.no_grad()")
    small = CompressedCache(HybridKV(budget=0.01), MODEL)
    one_line(lambda: MODEL.generate(**one(0), **NEW, past_key_values=small), "budget must be at least", "150 tokens")
    assert small.device_bytes == 0, "nothing is left of a prompt that could not be compressed"
    with torch.no_grad():
        MODEL(**one(0), past_key_values=cache)
        two = torch.tensor([[4], [5]])
        one_line(lambda: MODEL(two, past_key_values=cache), "input_ids must have 1 rows", "got 2", "reset()")
        many = torch.full((1, 65), 4)
        one_line(lambda: MODEL(many, past_key_values=cache), "at most 64 new tokens", "got 65")
    cache.close()
    one_line(lambda: MODEL.generate(**one(0), **NEW, past_key_values=cache), "past_key_values must be", "closed")
