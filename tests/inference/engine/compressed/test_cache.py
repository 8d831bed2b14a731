"""Compressed caches: units of different lengths, chunks that are fetched, and decoders on top of them."""

from dataclasses import replace

import pytest
import torch

from saccade.inference import (
    AdaKV,
    Autoregressive,
    FullKV,
    HeadKV,
    HybridKV,
    LookM,
    PromptLookup,
    PyramidKV,
    Quest,
    RandomKV,
    SelfSpeculative,
    SnapKV,
    StreamingLLM,
    VLCache,
)
from saccade.inference.compression.chunks import chunk_scores
from saccade.inference.compression.compressor import Plan, static_plan
from saccade.inference.engine.cache import KVCache
from saccade.inference.engine.compressed.attention import reference_ragged_attention
from saccade.inference.engine.compressed.cache import RaggedCache
from tests.support.errors import one_line
from tests.support.models import tiny_model
from tests.support.triton_mode import DEVICE, triton_choose, triton_fetch, triton_ragged_attention

MODEL = tiny_model("llama", residual=0.3, seed=3)
DRAW = torch.Generator().manual_seed(0)
PROMPTS = [torch.randint(3, 40, (count,), generator=DRAW).tolist() for count in (150, 97, 121)]
DRAWN = [torch.randint(3, 40, (180,), generator=DRAW).tolist() for _ in range(3)]
NEW = {"max_new_tokens": 16, "eos_token_id": ()}
FULL = Autoregressive().generate(MODEL, PROMPTS, **NEW)
KINDS = {
    "static": SnapKV(budget=0.3),
    "fetched": HybridKV(budget=0.5, theta=2.0, recent=8, chunk=8),
    "both": HybridKV(budget=0.5, min_static=0.5, max_static=0.5, recent=8, chunk=8),
    "bounds": HybridKV(budget=0.6, theta=2.0, recent=8, chunk=8, representative="minmax"),
    "merged": HybridKV(budget=0.4, theta=0.0, merge=True, recent=8),
}


@pytest.mark.parametrize("compressor", [SnapKV(budget=1.0), HybridKV(budget=1.0), HybridKV(budget=1.0, theta=0.0)])
def test_a_budget_of_one_is_the_whole_cache(compressor):
    found = Autoregressive(compressor=compressor).generate(MODEL, PROMPTS, **NEW)
    assert found.tokens == FULL.tokens


@pytest.mark.parametrize("kind", KINDS)
def test_every_decoder_writes_the_text_of_the_compressed_cache(kind):
    made = KINDS[kind]
    right = [Autoregressive(compressor=made).generate(MODEL, [prompt], **NEW).tokens[0] for prompt in PROMPTS]
    assert right != FULL.tokens, "the compression must matter here"
    plain = Autoregressive(compressor=made).generate(MODEL, PROMPTS, **NEW)
    assert plain.tokens == right, "a batch of three lengths is three runs"
    for decoder in (
        PromptLookup(draft_length=4, compressor=made, control="fixed"),
        SelfSpeculative({"mlp": [1]}, 4, gamma=0.0, adaptive=False, compressor=made, control="fixed"),
    ):
        for engine in ("eager", "graph"):
            decoder = replace(decoder, engine=engine)
            decoder.pool.uncaptured = True
            found = decoder.generate(MODEL, PROMPTS, **NEW)
            assert found.tokens == right
            assert 0 < found.stats.accepted < found.stats.drafted, "drafts are rejected over the compressed cache"


@pytest.mark.parametrize("method", [FullKV, StreamingLLM, RandomKV, PyramidKV, AdaKV, HeadKV, LookM, VLCache, Quest])
def test_every_method_compresses_and_is_left_as_it_was_by_rejected_drafts(method):
    settings = {FullKV: {}, HeadKV: {"budget": 0.7, "scores": [[1.0, 2.0]] * 3}}
    made = method(**settings.get(method, {"budget": 0.7}))
    plain = Autoregressive(compressor=made).generate(MODEL, PROMPTS[:2], **NEW)
    assert (plain.tokens == FULL.tokens[:2]) == (method is FullKV)
    found = PromptLookup(draft_length=4, compressor=made, control="fixed").generate(MODEL, PROMPTS[:2], **NEW)
    assert found.tokens == plain.tokens
    assert found.stats.accepted < found.stats.drafted


def test_rows_that_end_early_leave_the_others_alone():
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


def test_a_session_with_another_compressor_is_refused():
    with Autoregressive(compressor=KINDS["static"]).session(MODEL, 200) as session:
        plain = Autoregressive()
        one_line(lambda: plain.start(MODEL, PROMPTS[:1], max_new_tokens=2, session=session), "compressor", "SnapKV")
        found = PromptLookup(compressor=SnapKV(budget=0.3)).start(MODEL, PROMPTS[:1], max_new_tokens=2, session=session)
        with found:
            assert len(found.prefill()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_one_engine_serves_prompts_of_many_sizes(kind):
    """It goes on with smaller prompts as it is, and grows for larger ones."""
    made, lengths = KINDS[kind], ((150, 97, 121), (90, 130, 80), (180, 100, 85), (170, 90, 110))
    batches = [[DRAWN[row][:count] for row, count in enumerate(each)] for each in lengths]
    decoder = PromptLookup(draft_length=4, compressor=made, control="fixed", engine="graph")
    decoder.pool.uncaptured = True
    served = []
    for batch in batches:
        right = Autoregressive(compressor=made, engine="eager").generate(MODEL, batch, **NEW).tokens
        assert decoder.generate(MODEL, batch, **NEW).tokens == right
        (engine,) = decoder.pool._idle
        assert not engine.compressed.host_bytes, "host memory is free between the calls"
        served.append(engine)
    assert len({id(engine) for engine in served}) < len(served), "an engine has served several prompts"
    assert served[-1].compressed.bytes >= served[0].compressed.bytes


def plans_and_cache(dtype=torch.float32):
    """Two rows of one layer with two KV heads: one head prunes, one fetches."""
    draw = torch.Generator().manual_seed(1)
    full = KVCache(1, 24)
    full.place([0, 0], 24)
    keys, values = (torch.randn(2, 2, 24, 16, generator=draw).to(DEVICE, dtype) for _ in range(2))
    full.write(0, keys, values)
    kept = [torch.tensor([0, 3, 5, 20]), torch.tensor([0, 1])]
    bounds = [torch.tensor([0, 2, 6, 10, 12, 16, 20, length]) for length in (21, 24)]
    plans = [Plan([kept], [[0, slots]], 4, begins) for slots, begins in zip((2, 3), bounds, strict=True)]
    return full, keys, values, plans, [21, 24]


def test_the_cache_is_as_large_as_the_plans_say_and_the_whole_one_is_freed():
    full, _, _, plans, lengths = plans_and_cache()
    made = RaggedCache(full, plans, lengths, 30)
    held = [4 + 2 + 2 * 4, 4 + 2 + 3 * 4]
    room = [2 * (30 - 21), 2 * (30 - 24)]
    slots = sum(held) + sum(room) + 64
    assert made.keys.shape == made.values.shape == (slots, 16)
    assert not full.bytes
    store = made.chunks[0]
    assert store is not None
    assert store.host_keys.shape == (7 + 7, 4, 16)
    assert made.host_bytes == 2 * 14 * 4 * 16 * 4
    assert made.bytes > 2 * slots * 16 * 4


def test_a_fetched_chunk_is_that_of_the_host_and_the_same_query_moves_nothing():
    full, keys, values, plans, lengths = plans_and_cache()
    made = RaggedCache(full, plans, lengths, 30)
    store, moved = made.chunks[0], []
    assert store is not None
    copy = store._copy
    store._copy = lambda missing, *rest: (moved.append(int(missing.sum())), copy(missing, *rest))
    draw = torch.Generator().manual_seed(2)
    for step in range(6):
        query = torch.randn(2, 4, 16, generator=draw).to(DEVICE)
        for _ in range(2):
            store.fetch(query, made.keys, made.values, made.seen)
        assert moved[-1] == 0, "the second time everything is there"
        assert step or moved[0] == 2 + 3
        for unit, (row, head) in enumerate(store.units[store.many > 0].tolist()):
            bounds = plans[row].bounds
            for slot in range(int(store.counts[unit])):
                chunk = int(store.slots[unit, slot])
                first, last = int(bounds[chunk]), int(bounds[chunk + 1])
                begin = int(store.places[unit]) + 4 * slot
                assert torch.equal(made.keys[begin : begin + last - first], keys[row, head, first:last])
                assert torch.equal(made.values[begin : begin + last - first], values[row, head, first:last])
                assert made.seen[begin : begin + 4].tolist() == [place < last - first for place in range(4)]
                assert chunk != 0, "pins are on the device already"
    assert 0 < sum(moved[2:]) < 5 * 5, "only what is new is fetched"


def test_attention_of_units_is_softmax_over_what_they_hold():
    draw = torch.Generator().manual_seed(3)
    keys, values = (torch.randn(90, 16, generator=draw, dtype=torch.float64) for _ in range(2))
    query = torch.randn(2, 4, 3, 16, generator=draw, dtype=torch.float64)
    bases, lengths = torch.tensor([[0, 20], [45, 60]]), torch.tensor([[10, 21], [3, 12]])
    bits = torch.tensor([0b001, 0b011, 0b101])
    seen = torch.rand(90, generator=draw) > 0.3
    seen[[0, 20, 45, 60]] = True
    for holes in (None, seen):
        found = reference_ragged_attention(query, keys, values, bases, lengths, bits, 3, 40, seen=holes)
        for row in range(2):
            for head in range(4):
                base, length = int(bases[row, head // 2]), int(lengths[row, head // 2])
                for node, own in enumerate(([0], [0, 1], [0, 2])):
                    slots = [*range(base, base + length), *(base + length + other for other in own)]
                    slots = [slot for slot in slots if holes is None or holes[slot]]
                    weights = (keys[slots] @ query[row, head, node] / 4).softmax(0)
                    assert torch.allclose(weights @ values[slots], found[row, node, head], atol=1e-12)


@pytest.mark.parametrize("holes", [False, True])
def test_the_kernel_computes_what_the_reference_computes(holes):
    draw = torch.Generator().manual_seed(4)
    keys, values = (torch.randn(400, 24, generator=draw).to(DEVICE) for _ in range(2))
    query = torch.randn(2, 6, 3, 24, generator=draw).to(DEVICE)
    bases, lengths = torch.tensor([[0, 150], [230, 300]]), torch.tensor([[140, 70], [3, 90]])
    seen = (torch.rand(400, generator=draw) > 0.5).to(DEVICE) if holes else None
    given = (query, keys, values, bases.to(DEVICE), lengths.to(DEVICE), torch.tensor([1, 3, 5]).to(DEVICE), 3, 150)
    right = reference_ragged_attention(*given, seen=seen)
    assert torch.allclose(triton_ragged_attention(*given, seen=seen), right, atol=1e-5)
    # a step computed node by node
    parts = [
        triton_ragged_attention(query[:, :, at : at + 1], *given[1:5], given[5][at : at + 1], 3, 150, seen=seen)
        for at in range(3)
    ]
    assert torch.allclose(torch.cat(parts, 1), right, atol=1e-5)


@pytest.mark.parametrize(("kind", "dtype"), [("mean", torch.float32), ("minmax", torch.bfloat16)])
def test_the_kernels_choose_what_the_reference_chooses(kind, dtype):
    """Over some steps: the same chunks are held, each in one slot, and only new ones are to be fetched."""
    draw = torch.Generator().manual_seed(7)
    units, chunks, width, kv_heads, groups = 5, 70, 20, 2, 3
    shape = (units, chunks, width) if kind == "mean" else (units, 2, chunks, width)
    summaries = torch.randn(shape, generator=draw).sort(1).values.to(DEVICE, dtype)
    blocked = (torch.rand(units, chunks, generator=draw) < 0.2).to(DEVICE)
    packed = summaries if kind == "mean" else summaries.transpose(1, 2)
    first = torch.arange(units, device=DEVICE) * chunks
    many = torch.full((units,), chunks, device=DEVICE)
    table = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [2, 1]], device=DEVICE)  # the last row has ended
    counts = torch.tensor([9, 4, 1, 12, 7], device=DEVICE)
    slots = torch.full((units, 12), -1, device=DEVICE)
    where = torch.full((units, chunks), -1, dtype=torch.int32, device=DEVICE)
    query = torch.randn(2, kv_heads * groups, width, generator=draw)
    fetched = 0
    for turn in range(4):
        query = (query + 0.3 * torch.randn(query.shape, generator=draw)).to(dtype).float()
        asking = None if turn % 2 else torch.tensor(turn, device=DEVICE)  # nobody asks in the first turn
        before = slots.clone()
        given = (table, counts, first, many, packed.flatten(0, 1).contiguous(), blocked.flatten(), slots)
        given += (where.view(-1), chunks, kv_heads, asking)
        missing = triton_choose(query.to(DEVICE, dtype), *given).bool()
        fetched += int(missing.sum())
        if turn == 0:
            assert torch.equal(slots, before)
            continue
        asked = query.view(2, kv_heads, groups, width)[table[:, 0].clamp(max=1).cpu(), table[:, 1].cpu()]
        scores = chunk_scores(asked, summaries.cpu().float())
        if dtype == torch.bfloat16:  # the kernel compares the first bits; of equal ones the first chunk is taken
            scores = (scores.view(torch.int32) & -65536).view(torch.float32)
        scores = scores.masked_fill(blocked.cpu(), -torch.inf)
        for unit, count in enumerate(counts.tolist()):
            best = scores[unit].sort(descending=True, stable=True).indices[:count].tolist()
            held = slots[unit, :count].tolist()
            assert sorted(held) == sorted(best)
            assert {where[unit, chunk].item(): chunk for chunk in held} == dict(enumerate(held))
            assert int((where[unit] >= 0).sum()) == count
            new = set(held) - set(before[unit, :count].tolist())
            assert {held[slot] for slot in missing[unit].nonzero()[:, 0].tolist()} == new
    assert fetched < 3 * int(counts.sum()), "chunks that are held are not fetched again"


def test_the_kernel_fetches_what_is_missing():
    draw = torch.Generator().manual_seed(5)
    host = [torch.randn(7, 3, 20, generator=draw).to(DEVICE) for _ in range(2)]
    flat = [torch.zeros(40, 20, device=DEVICE) for _ in range(2)]
    seen = torch.zeros(40, dtype=torch.bool, device=DEVICE)
    filled = (torch.rand(8, 3, generator=draw) > 0.3).to(DEVICE)
    slots = torch.tensor([[3, 0], [1, 2]], device=DEVICE)
    missing = torch.tensor([[True, False], [False, True]], device=DEVICE)
    first, places = torch.tensor([0, 4], device=DEVICE), torch.tensor([5, 22], device=DEVICE)
    hosts = torch.tensor([part.data_ptr() for part in host], device=DEVICE)
    triton_fetch(hosts, *flat, seen, filled, slots, missing, first, places)
    wanted = [flat[0].new_zeros(40, 20) for _ in range(2)]
    for buffer, source in zip(wanted, host, strict=True):
        buffer[5:8], buffer[25:28] = source[3], source[6]
    assert all(torch.equal(found, right) for found, right in zip(flat, wanted, strict=True))
    marked = torch.zeros_like(seen)
    marked[5:8], marked[25:28] = filled[3], filled[6]
    assert torch.equal(seen, marked)


def test_accepted_paths_move_to_the_front_of_every_unit():
    full, keys, _, _, lengths = plans_and_cache()
    kept = static_plan([[torch.tensor([0, 3, 5, 20]), torch.tensor([0, 1])]])
    made = RaggedCache(full, [kept, kept], lengths, 40)
    made.place([21, 24], 4)
    step = torch.randn(2, 2, 4, 16).to(DEVICE)
    made.write(0, step, step)
    made.gather([21, 24], [[0, 2, 3], [0]])
    for row, path in enumerate(([0, 2, 3], [0])):
        for head, left in enumerate((4, 2)):
            begin = int(made.bases[0, row, head]) + left
            assert torch.equal(made.keys[begin : begin + len(path)], step[row, head, path])
            assert torch.equal(made.keys[begin - left : begin], keys[row, head, kept.kept[0][head]])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_graphs_write_what_eager_forwards_write(kind, dtype):
    torch.backends.cuda.matmul.allow_tf32 = False
    model, made = tiny_model("llama", residual=0.3, seed=3, dtype=dtype).cuda(), KINDS[kind]
    right = Autoregressive(compressor=made, engine="eager").generate(model, PROMPTS, **NEW).tokens
    if dtype == torch.float64:
        assert right == Autoregressive(compressor=made).generate(MODEL, PROMPTS, **NEW).tokens
    for decoder in (
        Autoregressive(compressor=made, engine="graph"),
        PromptLookup(draft_length=4, compressor=made, control="fixed", engine="graph"),
        SelfSpeculative({"mlp": [1]}, 4, gamma=0.0, adaptive=False, compressor=made, control="fixed", engine="graph"),
    ):
        for _ in range(2):
            assert decoder.generate(model, PROMPTS, **NEW).tokens == right
