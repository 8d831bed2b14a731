"""Chunks in few bits: what is fetched, what it weighs, and decoders on top of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saccade.inference import Autoregressive, CompressedCache, HybridKV, PromptLookup, Quest, SelfSpeculative
from saccade.inference.compression.compressor import Plan
from saccade.inference.compression.precision import CHANNEL, TOKEN, packed, quantize, row_bytes, unpacked
from saccade.inference.engine.cache import KVCache
from saccade.inference.engine.compressed.cache import RaggedCache
from saccade.inference.engine.compressed.host_memory import chunk_bytes
from tests.support.errors import one_line
from tests.support.models import tiny_model
from tests.support.triton_mode import DEVICE, triton_fetch

MODEL = tiny_model("llama", residual=0.3, seed=3)
DRAW = torch.Generator().manual_seed(0)
PROMPTS = [torch.randint(3, 40, (count,), generator=DRAW).tolist() for count in (150, 97, 121)]
NEW = {"max_new_tokens": 16, "eos_token_id": ()}
KINDS = {
    "fetched": HybridKV(budget=0.5, theta=2.0, recent=8, chunk=8, host_bits=4),
    "both": HybridKV(budget=0.5, theta=0.55, sparsity="threshold", recent=8, chunk=8, host_bits=8),
    "quest": Quest(budget=0.5, host_bits=4),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_decoder_writes_the_text_of_the_packed_cache(kind, dtype) -> None:
    made, model = KINDS[kind], tiny_model("llama", residual=0.3, seed=3, dtype=dtype)
    right = [Autoregressive(compressor=made).generate(model, [prompt], **NEW).tokens[0] for prompt in PROMPTS]
    assert Autoregressive(compressor=made).generate(model, PROMPTS, **NEW).tokens == right
    for decoder in (
        PromptLookup(draft_length=4, compressor=made, control="fixed"),
        SelfSpeculative({"mlp": [1]}, 4, gamma=0.0, adaptive=False, compressor=made, control="fixed"),
    ):
        for engine in ("eager", "graph"):
            decoder = replace(decoder, engine=engine)
            decoder.pool.uncaptured = True
            for _ in range(2):  # the engine goes on with another prompt of the same kind
                found = decoder.generate(model, PROMPTS, **NEW)
                assert found.tokens == right
                assert 0 < found.stats.accepted < found.stats.drafted, "drafts are rejected over the packed cache"


def test_fewer_bits_change_the_text_in_the_end() -> None:
    """Else nothing here would depend on them."""
    model = tiny_model("llama", residual=0.3, seed=3, dtype=torch.float64)
    logits = {}
    for bits in (16, 8, 4):
        decoder = Autoregressive(compressor=replace(KINDS["fetched"], host_bits=bits))
        with decoder.session(model, 200) as session:
            first = session.prefill(PROMPTS[:1])
            logits[bits] = session.forward(first.argmax(-1, keepdim=True))[0, 0]
    error = [float((logits[bits] - logits[16]).norm() / logits[16].norm()) for bits in (8, 4)]
    assert 0 < error[0] < error[1] / 4, "a bit is a factor of two, so four bits are about sixteen"
    assert error[1] < 0.3


def one_layer(bits, dtype=torch.float32, width=16):
    """Two rows of one layer with two KV heads that fetch, with short chunks among others."""
    draw = torch.Generator().manual_seed(1)
    full = KVCache(1, 24)
    full.place([0, 0], 24)
    keys, values = (torch.randn(2, 2, 24, width, generator=draw).to(DEVICE, dtype) for _ in range(2))
    keys[..., 3] = 50 + 10 * keys[..., 3]
    full.write(0, keys, values)
    bounds = [torch.tensor([0, 2, 6, 10, 12, 16, 20, length]) for length in (21, 24)]
    kept = [torch.tensor([0, 1]), torch.tensor([0, 1])]
    plans = [
        Plan([kept], [[2, slots]], 4, begins, host_bits=bits) for slots, begins in zip((2, 3), bounds, strict=True)
    ]
    return full, keys, values, plans, [21, 24]


@pytest.mark.parametrize("bits", [8, 4])
def test_fetched_chunks_are_the_packed_ones_and_no_other_tokens_widen_their_ranges(bits) -> None:
    full, keys, values, plans, lengths = one_layer(bits)
    made = RaggedCache(full, plans, lengths, 30)
    store = made.chunks[0]
    draw = torch.Generator().manual_seed(2)
    seen = set()
    for _ in range(8):
        store.fetch(torch.randn(2, 4, 16, generator=draw).to(DEVICE), made.keys, made.values, made.seen)
        for unit, (row, head) in enumerate(store.units[store.many > 0].tolist()):
            bounds = plans[row].bounds
            for slot in range(int(store.counts[unit])):
                chunk = int(store.slots[unit, slot])
                first, last = int(bounds[chunk]), int(bounds[chunk + 1])
                begin = int(store.places[unit]) + 4 * slot
                for buffer, whole, over in ((made.keys, keys, CHANNEL), (made.values, values, TOKEN)):
                    part = whole[row, head, first:last]
                    right = unpacked(packed(part[None], bits, over), last - first, 16, bits, over, whole.dtype)[0]
                    assert torch.equal(buffer[begin : begin + last - first], right)
                    _, scale, _ = quantize(part, bits, over)
                    assert bool(((right - part).abs() <= 0.5 * scale + 1e-5).all())
                seen.add((unit, chunk))
    assert len(seen) > 12, "most chunks were fetched once"


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_bytes_are_those_of_the_rows_scales_included(bits, dtype) -> None:
    full, _, _, plans, lengths = one_layer(bits, dtype)
    made = RaggedCache(full, plans, lengths, 30)
    each = sum(row_bytes(4, 16, dtype.itemsize, bits, over) for over in (CHANNEL, TOKEN))
    assert made.host_bytes == 4 * 7 * each == chunk_bytes(plans, 16, dtype.itemsize, pinned=False)
    whole = one_layer(16, dtype)
    plain = RaggedCache(whole[0], whole[3], lengths, 30)
    assert made.bytes == plain.bytes, "the device holds what it would hold"


def test_long_chunks_weigh_little_more_than_their_bits() -> None:
    share = {
        bits: sum(row_bytes(16, 128, 2, bits, over) for over in (CHANNEL, TOKEN)) / (2 * 16 * 128 * 2)
        for bits in (8, 4)
    }
    assert share[8] < 0.58
    assert share[4] < 0.33


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("chunk", "width"), [(3, 20), (8, 32), (16, 64)])
def test_the_kernel_unpacks_what_the_reference_unpacks(bits, dtype, chunk, width) -> None:
    draw = torch.Generator().manual_seed(5)
    numbers = [(3 * torch.randn(7, chunk, width, generator=draw) + 1).to(DEVICE, dtype) for _ in range(2)]
    host = [packed(part, bits, over) for part, over in zip(numbers, (CHANNEL, TOKEN), strict=True)]
    flat = [torch.zeros(13 * chunk, width, device=DEVICE, dtype=dtype) for _ in range(2)]
    seen = torch.zeros(13 * chunk, dtype=torch.bool, device=DEVICE)
    filled = (torch.rand(8, chunk, generator=draw) > 0.3).to(DEVICE)
    slots, missing = torch.tensor([[3, 0], [1, 2]], device=DEVICE), torch.tensor([[1, 0], [0, 1]], device=DEVICE).bool()
    first, places = torch.tensor([0, 4], device=DEVICE), torch.tensor([5, 5 + 3 * chunk], device=DEVICE)
    hosts = torch.tensor([part.data_ptr() for part in host], device=DEVICE)
    triton_fetch(hosts, *flat, seen, filled, slots, missing, first, places, bits)
    for buffer, rows, over in zip(flat, host, (CHANNEL, TOKEN), strict=True):
        right = torch.zeros_like(buffer)
        right[5 : 5 + chunk], right[5 + 4 * chunk : 5 + 5 * chunk] = unpacked(
            rows[[3, 6]], chunk, width, bits, over, dtype
        )
        if DEVICE == "cpu" and dtype == torch.bfloat16:  # the interpreter cuts numbers off instead of rounding them
            assert bool(((buffer - right).abs() <= torch.finfo(dtype).eps * right.abs()).all())
        else:
            assert torch.equal(buffer, right)
    marked = torch.zeros_like(seen)
    marked[5 : 5 + chunk], marked[5 + 4 * chunk : 5 + 5 * chunk] = filled[3], filled[6]
    assert torch.equal(seen, marked)


def test_rows_that_end_and_engines_that_go_on_keep_their_bits() -> None:
    made = KINDS["both"]
    single = [
        Autoregressive(compressor=made).generate(MODEL, [prompt], max_new_tokens=16).tokens[0] for prompt in PROMPTS
    ]
    eos = single[0][4]
    right = [text[: text.index(eos) + 1] if eos in text else text for text in single]
    assert len({len(text) for text in right}) > 1
    for engine in ("eager", "graph"):
        decoder = PromptLookup(draft_length=4, compressor=made, control="fixed", engine=engine)
        decoder.pool.uncaptured = True
        assert decoder.generate(MODEL, PROMPTS, max_new_tokens=16, eos_token_id=eos).tokens == right


def test_generate_of_transformers_writes_the_same() -> None:
    made = KINDS["fetched"]
    right = Autoregressive(compressor=made).generate(MODEL, PROMPTS[:1], **NEW)
    ids = torch.tensor(PROMPTS[:1])
    with CompressedCache(made, MODEL) as cache:
        found = MODEL.generate(ids, max_new_tokens=16, do_sample=False, past_key_values=cache)
        assert found[:, ids.shape[1] :].tolist() == right.tokens
        assert cache.host_bytes == right.stats.kv_host_bytes


def test_other_bits_and_odd_widths_are_refused() -> None:
    for bits in (3, 32, "8"):
        one_line(lambda bits=bits: HybridKV(host_bits=bits), "host_bits must be 16, 8 or 4", repr(bits))
    one_line(lambda: Quest(host_bits=2), "host_bits must be 16, 8 or 4, got 2")
    odd = tiny_model("llama")
    odd.config.head_dim = 15
    one_line(lambda: HybridKV(host_bits=4).check(odd), "even number of dimensions for 4 bits, got 15: choose 8 bits")
    HybridKV(host_bits=8).check(odd)
    full, _, _, plans, lengths = one_layer(4, width=15)
    one_line(lambda: RaggedCache(full, plans, lengths, 30), "even number of dimensions for 4 bits, got 15")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_graphs_write_what_eager_forwards_write(kind, dtype) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    model, made = tiny_model("llama", residual=0.3, seed=3, dtype=dtype).cuda(), KINDS[kind]
    right = Autoregressive(compressor=made, engine="eager").generate(model, PROMPTS, **NEW).tokens
    for decoder in (
        Autoregressive(compressor=made, engine="graph"),
        PromptLookup(draft_length=4, compressor=made, control="fixed", engine="graph"),
    ):
        for _ in range(2):
            assert decoder.generate(model, PROMPTS, **NEW).tokens == right
