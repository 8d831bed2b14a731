"""What a compressor cannot work with ends in one line; what looks wrong and is not has a meaning."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, LlamaConfig, LlamaForCausalLM

from saccade.inference import (
    AssistedDecoding,
    Autoregressive,
    CacheCompressor,
    FullKV,
    HeadKV,
    HybridKV,
    LookM,
    PromptLookup,
    Quest,
    SnapKV,
    VLCache,
)
from saccade.inference.compression.allocation import BudgetTooSmallError
from saccade.inference.compression.observation import observed_rows
from saccade.inference.engine.compressed import host_memory
from saccade.inference.engine.compressed.chunk_store import ChunkStore
from tests.inference.compression.compressors import COMPRESSORS, observation
from tests.support.errors import one_line
from tests.support.models import tiny_model
from tests.support.video_models import VIDEO, tiny_video_model, video_prompts

MODEL = tiny_model("llama", residual=0.3, seed=3)
PROMPT = torch.randint(3, 40, (120,), generator=torch.Generator().manual_seed(0)).tolist()
FETCHING = HybridKV(budget=0.6, theta=2.0, recent=8, chunk=8)


@pytest.mark.parametrize("name", [name for name, made in COMPRESSORS.items() if not isinstance(made, FullKV)])
@pytest.mark.parametrize("length", [40, 300])
def test_the_smallest_budget_that_is_named_is_enough_and_no_smaller_one(name, length) -> None:
    seen = observation(length=length, images=((10, 30),))
    small = dataclasses.replace(COMPRESSORS[name], budget=0.001)
    with pytest.raises(
        BudgetTooSmallError, match=rf"^budget must be at least \S+ for a prompt of {length} tokens, got"
    ):
        small.plan(seen)
    try:
        small.plan(seen)
    except BudgetTooSmallError as error:
        enough = dataclasses.replace(small, budget=error.smallest)
        assert enough.plan(seen).entries
        # the number is rounded up to its fourth decimal
        with pytest.raises(BudgetTooSmallError):
            dataclasses.replace(small, budget=error.smallest - 0.0002).plan(seen)


@pytest.mark.parametrize("decoder", [Autoregressive, PromptLookup])
def test_a_budget_that_is_too_small_ends_a_generation_in_one_line(decoder) -> None:
    for made in (HybridKV(budget=0.01), SnapKV(budget=0.001), Quest(budget=0.01)):
        one_line(
            lambda made=made: decoder(compressor=made).generate(MODEL, [PROMPT], max_new_tokens=2), "at least", "120"
        )


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_prompts_without_a_question_or_without_an_image(family) -> None:
    """Rows that are observed: the text before an image that ends a prompt; without text or image the last tokens."""
    model = tiny_video_model(family)
    prompt = video_prompts(family)
    ids = prompt.input_ids[0]
    end = int((ids == VIDEO).nonzero()[-1, 0]) + 1
    rows = {
        "ends": (ids[:end], (0, int((ids == VIDEO).nonzero()[0, 0]))),
        "image": (ids[ids == VIDEO], (0, int((ids == VIDEO).sum()))),
        "text": (torch.arange(10, 50), (0, 40)),
    }
    for kind, (text, expected) in rows.items():
        first, last = observed_rows(len(text), text == VIDEO, 64)
        assert last == expected[1], kind
        assert 0 <= first < last
        given = {} if kind == "text" else prompt.visual
        for made in (
            HybridKV(budget=0.95, sinks=1, recent=1, chunk=1, theta=2.0),
            LookM(budget=0.5),
            VLCache(budget=0.5),
        ):
            out = Autoregressive(compressor=made).generate(
                model, text[None], **given, max_new_tokens=3, eos_token_id=()
            )
            assert len(out.tokens[0]) == 3


@pytest.mark.parametrize("kv_heads", [4, 1])
@pytest.mark.parametrize("made", [SnapKV(budget=0.3), FETCHING, FullKV()])
def test_a_kv_head_of_one_query_head_or_of_all_is_a_group_as_any_other(kv_heads, made: CacheCompressor) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**MODEL.config.to_dict(), "num_key_value_heads": kv_heads})).double().eval()
    plain = Autoregressive(compressor=made).generate(model, [PROMPT], max_new_tokens=8, eos_token_id=())
    draft = PromptLookup(compressor=made, control="fixed").generate(model, [PROMPT], max_new_tokens=8, eos_token_id=())
    full = Autoregressive().generate(model, [PROMPT], max_new_tokens=8, eos_token_id=())
    assert draft.tokens == plain.tokens
    assert (plain.tokens == full.tokens) or made.budget < 1
    assert plain.stats.kv_cache_bytes < full.stats.kv_cache_bytes or made.budget == 1


def test_layers_with_a_latent_in_the_place_of_heads_are_refused() -> None:
    config = DeepseekV3Config(
        vocab_size=40, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, v_head_dim=8, qk_nope_head_dim=8,
        eos_token_id=None, first_k_dense_replace=1,
    )  # fmt: skip
    model = DeepseekV3ForCausalLM(config).eval()
    decoder = Autoregressive(compressor=SnapKV(budget=0.5))
    one_line(
        lambda: decoder.generate(model, [PROMPT], max_new_tokens=2), "same number and width of heads", "compressor out"
    )


def test_windows_and_scores_of_another_model_are_refused() -> None:
    windowed = tiny_model("qwen3", use_sliding_window=True, sliding_window=16, max_window_layers=0)
    for decoder in (Autoregressive(compressor=SnapKV()), AssistedDecoding(MODEL, compressor=SnapKV())):
        one_line(lambda decoder=decoder: decoder.check(windowed), "full attention in every layer", "sliding_attention")
    one_line(lambda: Autoregressive(compressor=HeadKV([[1.0]])).check(MODEL), "scores must have 3 layers")
    one_line(lambda: HeadKV("none.json").check(), "scores must be a JSON file, got none.json")
    one_line(lambda: Autoregressive(compressor=HeadKV("none.json")).check(), "scores must be a JSON file")


def test_host_memory_that_does_not_suffice_is_said_before_any_is_allocated(monkeypatch) -> None:
    right = Autoregressive(compressor=FETCHING).generate(MODEL, [PROMPT] * 2, max_new_tokens=2).stats.kv_host_bytes
    monkeypatch.setattr(host_memory, "free_host_bytes", lambda: right)
    assert (
        Autoregressive(compressor=FETCHING).generate(MODEL, [PROMPT] * 2, max_new_tokens=2).stats.kv_host_bytes == right
    )
    monkeypatch.setattr(host_memory, "free_host_bytes", lambda: right - 1)
    monkeypatch.setattr(ChunkStore, "of", lambda *given: pytest.fail("memory was allocated"))
    decoder = Autoregressive(compressor=FETCHING)
    one_line(
        lambda: decoder.generate(MODEL, [PROMPT] * 2, max_new_tokens=2),
        f"2 compressed prompts need {right:,} bytes of host memory, but {right - 1:,} are free",
    )
    monkeypatch.undo()
    assert decoder.generate(MODEL, [PROMPT], max_new_tokens=2).stats.kv_host_bytes == right // 2


def test_pinned_memory_is_rounded_up() -> None:
    seen = observation(length=300, images=((10, 30),))
    plan = Quest(budget=0.2, chunk=16).plan(seen)
    chunks = [(len(plan.bounds) - 1) * 16 * len(heads) for heads in plan.slots]
    assert host_memory.chunk_bytes([plan], 8, 4, pinned=False) == sum(2 * each * 8 * 4 for each in chunks)
    rounded = [1 << (each * 32 - 1).bit_length() for each in chunks]
    assert host_memory.chunk_bytes([plan], 8, 4, pinned=True) == 2 * sum(rounded) > 2 * sum(chunks) * 32
    none = SnapKV(budget=0.2).plan(seen)
    assert host_memory.chunk_bytes([none], 8, 4, pinned=True) == 0


def test_free_host_memory_is_the_least_that_is_said(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(host_memory, "_SYSTEM", tmp_path / "meminfo")
    monkeypatch.setattr(host_memory, "_GROUP", tmp_path)
    assert host_memory.free_host_bytes() is None
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    7 kB\n")
    assert host_memory.free_host_bytes() == 7 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100\n")
    assert host_memory.free_host_bytes() == 7 * 1024
    (tmp_path / "memory.max").write_text("4000\n")
    assert host_memory.free_host_bytes() == 1100
