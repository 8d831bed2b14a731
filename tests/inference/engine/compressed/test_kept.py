"""Kept tokens in few bits: what is attended to, what it weighs, and decoders on top of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saccade.inference import Autoregressive, CompressedCache, FullKV, HybridKV, PromptLookup, SelfSpeculative, SnapKV
from saccade.inference.compression.compressor import static_plan
from saccade.inference.compression.precision import CHANNEL, FIRST, GROUP, TOKEN, packed, row_bytes, unpacked
from saccade.inference.engine.cache import KVCache
from saccade.inference.engine.compressed.attention import reference_ragged_attention
from saccade.inference.engine.compressed.cache import RaggedCache
from saccade.inference.engine.compressed.kept import KeptTokens
from tests.support.errors import one_line
from tests.support.models import tiny_model
from tests.support.triton_mode import DEVICE, triton_ragged_attention

MODEL = tiny_model("llama", residual=0.3, seed=3)
DRAW = torch.Generator().manual_seed(0)
PROMPTS = [torch.randint(3, 40, (count,), generator=DRAW).tolist() for count in (190, 97, 121)]
DRAWN = [torch.randint(3, 40, (240,), generator=DRAW).tolist() for _ in range(3)]
NEW = {"max_new_tokens": 16, "eos_token_id": ()}
KINDS = {
    "static": SnapKV(budget=0.5, kept_bits=4),
    "whole": FullKV(kept_bits=8),
    "both": HybridKV(budget=0.6, theta=0.55, sparsity="threshold", recent=8, chunk=8, host_bits=4, kept_bits=8),
    "pins": HybridKV(budget=0.6, theta=2.0, recent=8, chunk=8, kept_bits=4),
    "merged": HybridKV(budget=0.6, theta=0.0, merge=True, recent=8, kept_bits=4),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_decoder_writes_the_text_of_the_packed_cache(kind) -> None:
    made = KINDS[kind]
    right = [Autoregressive(compressor=made).generate(MODEL, [prompt], **NEW).tokens[0] for prompt in PROMPTS]
    assert Autoregressive(compressor=made).generate(MODEL, PROMPTS, **NEW).tokens == right
    for decoder in (
        PromptLookup(draft_length=4, compressor=made, control="fixed"),
        SelfSpeculative({"mlp": [1]}, 4, gamma=0.0, adaptive=False, compressor=made, control="fixed"),
    ):
        for engine in ("eager", "graph"):
            decoder = replace(decoder, engine=engine)
            decoder.pool.uncaptured = True
            found = decoder.generate(MODEL, PROMPTS, **NEW)
            assert found.tokens == right
            assert 0 < found.stats.accepted < found.stats.drafted, "drafts are rejected over the packed cache"


@pytest.mark.parametrize("kind", ["static", "both"])
def test_one_engine_serves_prompts_of_many_sizes(kind) -> None:
    made, lengths = KINDS[kind], ((190, 97, 121), (150, 130, 80), (240, 100, 85), (220, 90, 110))
    decoder = PromptLookup(draft_length=4, compressor=made, control="fixed", engine="graph")
    decoder.pool.uncaptured = True
    served = []
    for each in lengths:
        batch = [DRAWN[row][:count] for row, count in enumerate(each)]
        right = Autoregressive(compressor=made, engine="eager").generate(MODEL, batch, **NEW).tokens
        assert decoder.generate(MODEL, batch, **NEW).tokens == right
        served.append(decoder.pool._idle[0])
    assert len({id(engine) for engine in served}) < len(served), "an engine has served several prompts"


def test_rows_that_end_early_leave_the_others_alone() -> None:
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


def test_generate_of_transformers_writes_the_same_and_grows() -> None:
    made = KINDS["static"]
    right = Autoregressive(compressor=made).generate(MODEL, PROMPTS[:1], **NEW)
    ids = torch.tensor(PROMPTS[:1])
    with CompressedCache(made, MODEL, room=3) as cache:
        found = MODEL.generate(ids, max_new_tokens=16, do_sample=False, past_key_values=cache)
        assert found[:, ids.shape[1] :].tolist() == right.tokens


def one_layer(bits, dtype=torch.float32):
    """Two rows of one layer with two KV heads that keep 70, 36, 3 and 102 tokens."""
    draw = torch.Generator().manual_seed(1)
    full = KVCache(1, 120)
    full.place([0, 0], 120)
    keys, values = (torch.randn(2, 2, 120, 16, generator=draw).to(DEVICE, dtype) for _ in range(2))
    full.write(0, keys, values)
    kept = [[torch.randperm(110, generator=draw)[:n].sort().values for n in row] for row in ((70, 36), (3, 102))]
    return full, keys, values, [static_plan([sets], kept_bits=bits) for sets in kept], [110, 120]


@pytest.mark.parametrize("bits", [8, 4])
def test_whole_groups_are_packed_and_the_rest_is_as_it_was(bits) -> None:
    full, keys, values, plans, lengths = one_layer(bits)
    made = RaggedCache(full, plans, lengths, 130)
    groups = made.kept.groups(0, 2)
    assert groups.counts.tolist() == [[2, 1], [0, 3]]
    found = groups.unpacked(16, torch.float32)
    for row, plan in enumerate(plans):
        for head, kept in enumerate(plan.kept[0]):
            few = max(0, len(kept) - FIRST) // GROUP * GROUP
            assert found[2][row, head].sum() == few
            base = int(made.bases[0, row, head])
            for whole, flat, tokens, over in (
                (keys, made.keys, found[0], CHANNEL),
                (values, made.values, found[1], TOKEN),
            ):
                part = whole[row, head][kept]
                left = torch.cat([part[:FIRST], part[FIRST + few :]])
                assert torch.equal(flat[base : base + len(kept) - few], left)
                few_part = part[FIRST : FIRST + few]
                rows = packed(few_part.unflatten(0, (-1, GROUP)), bits, over)
                right = unpacked(rows, GROUP, 16, bits, over, part.dtype).flatten(0, 1)
                assert torch.equal(tokens[row, head, :few], right)
                if few:
                    assert 0 < float((right - few_part).abs().max()) < 8 / 2**bits


def test_bytes_are_those_of_the_rows_scales_included() -> None:
    sizes = {}
    for bits in (16, 8, 4):
        full, _, _, plans, lengths = one_layer(bits)
        made = RaggedCache(full, plans, lengths, 130)
        room = 2 * (130 - 110) + 2 * (130 - 120) + 64
        flat = sum(len(kept) - plan.packed(0, head) for plan in plans for head, kept in enumerate(plan.kept[0])) + room
        tables = sum(part.nbytes for part in (made.bases, made.removed, made.shifts))
        rows = 0 if bits == 16 else 6 * sum(row_bytes(GROUP, 16, 4, bits, over) for over in (CHANNEL, TOKEN))
        assert (made.kept is None) == (bits == 16)
        assert made.bytes == 2 * flat * 16 * 4 + tables + rows + (2 * 4 * 8 if rows else 0)
        sizes[bits] = made.bytes
    assert sizes[16] > sizes[8] > sizes[4]


def test_a_step_attends_to_packed_tokens_and_to_the_others() -> None:
    full, _, _, plans, lengths = one_layer(8, torch.float64)
    made = RaggedCache(full, plans, lengths, 130)
    plain = one_layer(16, torch.float64)
    right = RaggedCache(plain[0], plain[3], lengths, 130)
    draw = torch.Generator().manual_seed(2)
    query = torch.randn(2, 4, 1, 16, generator=draw, dtype=torch.float64).to(DEVICE)
    step = torch.randn(2, 2, 1, 16, generator=draw, dtype=torch.float64).to(DEVICE)
    found = []
    for cache in (made, right):
        cache.place(lengths, 1)
        cache.write(0, step, step)
        bits, depths = torch.tensor([1], device=DEVICE), torch.tensor([0], device=DEVICE)
        found.append(cache.attend(0, query, cache.lengths(), bits, depths, None))
    error = float((found[0] - found[1]).norm() / found[1].norm())
    assert 0 < error < 0.02


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("holes", "width"), [(False, 16), (True, 24)])
def test_the_kernel_computes_what_the_reference_computes(bits, holes, width) -> None:
    draw = torch.Generator().manual_seed(4)
    keys, values = (torch.randn(400, width, generator=draw).to(DEVICE) for _ in range(2))
    query = torch.randn(2, 6, 3, width, generator=draw).to(DEVICE)
    bases, lengths = torch.tensor([[0, 150], [230, 300]]), torch.tensor([[140, 70], [0, 90]])
    counts = torch.tensor([[[5, 0], [9, 1]]])
    kept = KeptTokens(counts, keys, bits)
    parts = [[torch.randn(GROUP * n, width, generator=draw).to(DEVICE) for n in (5, 0, 9, 1)] for _ in range(2)]
    kept.add(*parts)
    seen = (torch.rand(400, generator=draw) > 0.5).to(DEVICE) if holes else None
    given = (query, keys, values, bases.to(DEVICE), lengths.to(DEVICE), torch.tensor([1, 3, 5]).to(DEVICE), 3, 150)
    right = reference_ragged_attention(*given, seen=seen, packed=kept.groups(0, 2))
    assert not torch.allclose(right, reference_ragged_attention(*given, seen=seen), atol=1e-2)
    found = triton_ragged_attention(*given, seen=seen, packed=kept.groups(0, 2))
    assert torch.allclose(found, right, atol=1e-5)


def test_other_bits_are_refused() -> None:
    one_line(lambda: SnapKV(kept_bits=6), "kept_bits must be 16, 8 or 4, got 6: choose one of these")
    one_line(lambda: HybridKV(kept_bits=0), "kept_bits must be 16, 8 or 4, got 0")
    odd = tiny_model("llama")
    odd.config.head_dim = 15
    one_line(lambda: SnapKV(kept_bits=4).check(odd), "even number of dimensions for 4 bits, got 15: choose 8 bits")


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
