"""Static heads on probation: what they miss is measured, and those that miss too much fetch from then on."""

from dataclasses import replace
from itertools import chain

import pytest
import torch

from saccade.inference import Autoregressive, CompressedCache, HybridKV, PromptLookup, SelfSpeculative
from saccade.inference.compression.chunks import chunk_bounds
from saccade.inference.compression.compressor import Plan
from saccade.inference.compression.probation import Probation
from saccade.inference.engine.cache import KVCache
from saccade.inference.engine.compressed import host_memory
from saccade.inference.engine.compressed.cache import RaggedCache
from saccade.inference.engine.session import Session
from tests.inference.compression.compressors import observation
from tests.support.errors import one_line
from tests.support.models import tiny_model

MODEL = tiny_model("llama", residual=0.3, seed=3)
DRAW = torch.Generator().manual_seed(0)
PROMPTS = [torch.randint(3, 40, (count,), generator=DRAW).tolist() for count in (150, 97, 121)]
NEW = {"max_new_tokens": 16, "eos_token_id": ()}
TRUSTED = HybridKV(budget=0.5, theta=0.0, recent=8, chunk=8)
WATCHED = replace(TRUSTED, probation=4, most_lost=0.0)  # who misses anything at all fetches
SOME = replace(WATCHED, min_static=0.5, max_static=0.5, most_lost=0.47)  # half of the heads fetch from the beginning
STEPS, WIDTH, LENGTHS = 3, 16, [29, 37]
PINS = [torch.tensor([0, 1, 2, 3, *range(length - 8, length)]) for length in LENGTHS]


def written(decoder, prompts=PROMPTS, **settings):
    return decoder.generate(MODEL, prompts, **(NEW | settings)).tokens


def test_heads_that_may_miss_everything_stay_as_they_are():
    right = written(Autoregressive(compressor=TRUSTED))
    assert written(Autoregressive(compressor=replace(WATCHED, most_lost=1.0))) == right
    assert written(Autoregressive(compressor=WATCHED)) != right, "those that may not miss anything matter here"


@pytest.mark.parametrize("made", [WATCHED, SOME, replace(SOME, host_bits=8)])
def test_every_decoder_writes_the_text_of_the_watched_cache(made):
    right = [written(Autoregressive(compressor=made), [prompt])[0] for prompt in PROMPTS]
    assert written(Autoregressive(compressor=made)) == right, "a batch of three lengths is three runs"
    for decoder in (
        PromptLookup(draft_length=4, compressor=made, control="fixed"),
        SelfSpeculative({"mlp": [1]}, 4, gamma=0.0, adaptive=False, compressor=made, control="fixed"),
    ):
        for engine in ("eager", "graph"):
            decoder = replace(decoder, engine=engine)
            decoder.pool.uncaptured = True
            for _ in range(2):  # the second time an engine may be there already
                found = decoder.generate(MODEL, PROMPTS, **NEW)
                assert found.tokens == right
                assert 0 < found.stats.accepted < found.stats.drafted


def test_transformers_writes_the_same_text():
    ids = torch.tensor([PROMPTS[0]])
    with CompressedCache(SOME, MODEL) as cache:
        found = MODEL.generate(ids, max_new_tokens=16, do_sample=False, past_key_values=cache, eos_token_id=None)
    assert found[0, ids.shape[1] :].tolist() == written(Autoregressive(compressor=SOME), PROMPTS[:1])[0]


def test_rows_that_end_on_probation_leave_the_others_alone():
    long = replace(SOME, probation=8)
    single = [written(Autoregressive(compressor=long), [prompt])[0] for prompt in PROMPTS]
    ends = {token: [text.index(token) + 1 if token in text else 17 for text in single] for token in range(40)}
    eos = next(token for token, found in ends.items() if min(found) < 8 and max(found) > 8)
    right = [text[:end] for text, end in zip(single, ends[eos], strict=True)]
    assert written(PromptLookup(draft_length=4, compressor=long, control="fixed"), eos_token_id=eos) == right


def test_a_token_that_is_taken_back_leaves_no_trace():
    """Others are read first, and replaced: the shares that are lost and what follows are as without them."""
    found = []
    for others in ([], [5, 7, 9]):
        with Session(MODEL, 200, compressor=SOME) as session, torch.inference_mode():
            session.prefill(PROMPTS[:2])
            for token in (11, 12, 13, 14):
                for other in others:
                    session.forward(torch.tensor([[other], [other]]))
                session.forward(torch.tensor([[token], [token]]))
                session.commit([[0], [0]])
            trial = session.storage.trial
            assert trial is not None
            shares = trial.lost(session.storage)
            assert session.storage.host_bytes >= trial.host_bytes > 0
            logits = session.forward(torch.tensor([[15], [15]]))
            assert session.storage.trial is None, "the fifth token is behind the probation"
            found.append((shares, logits))
    (shares, logits), (again, other) = found
    assert shares == again
    assert torch.equal(logits, other)


def test_a_plan_on_probation_keeps_what_it_keeps_without() -> None:
    seen = observation(length=320, images=((20, 120), (120, 200)))
    for theta in (0.0, 0.8, 2.0):
        trusted = HybridKV(budget=0.4, theta=theta)
        plain, watched = (made.plan(seen) for made in (trusted, replace(trusted, probation=8)))
        assert plain.slots == watched.slots
        assert all(map(torch.equal, chain(*plain.kept), chain(*watched.kept)))
        assert watched.probation is not None
        starts = watched.bounds[:-1][torch.isin(watched.bounds[:-1], watched.probation.pins)]
        sizes = watched.bounds.diff()[torch.isin(watched.bounds[:-1], starts)]
        assert int(sizes.sum()) == len(watched.probation.pins), "pins are whole chunks"


def test_probation_that_does_not_fit_in_host_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "free_host_bytes", lambda: 100)
    width, units = MODEL.config.hidden_size // MODEL.config.num_attention_heads, 6
    needed = f"{2 * 2 * units * len(PROMPTS[0]) * width * MODEL.lm_head.weight.itemsize:,}"
    one_line(lambda: written(Autoregressive(compressor=WATCHED), PROMPTS[:1]), needed, "bytes of host memory")
    assert written(Autoregressive(compressor=TRUSTED), PROMPTS[:1])


def test_a_head_without_room_for_a_chunk_stays_static() -> None:
    cache = made_cache(dynamic=False, entries=15)[0]  # 12 pins and less than a chunk
    before = cache.keys.clone()
    draw = torch.Generator().manual_seed(2)
    for at in range(STEPS):
        step(cache, at, draw)
    shares = cache.trial.lost(cache)[0]
    assert all(share > 0.05 for share in shares.values())
    step(cache, STEPS, draw)
    assert cache.trial is None
    assert cache.chunks == [None]
    base = int(cache.bases[0, 0, 0])
    assert torch.equal(cache.keys[base : base + 15], before[base : base + 15])


def made_cache(
    dynamic: bool, most_lost: float = 0.0, entries: int = 22
) -> tuple[RaggedCache, torch.Tensor, torch.Tensor, list[Plan]]:
    """Two rows of one layer with two heads, static and on probation, or as they are when they have become dynamic."""
    draw = torch.Generator().manual_seed(1)
    full = KVCache(1, max(LENGTHS))
    full.place([0, 0], max(LENGTHS))
    keys, values = (torch.randn(2, 2, max(LENGTHS), WIDTH, generator=draw) for _ in range(2))
    full.write(0, keys, values)
    plans = []
    for length, pins in zip(LENGTHS, PINS, strict=True):
        kept = [torch.randperm(length, generator=draw)[:entries].sort().values for _ in range(2)]
        bounds = chunk_bounds(torch.full((length,), -1), 4, (4, length - 8))
        slots = [2, 2]  # of 22 entries 12 are pins, and two are left over
        if dynamic:
            plans.append(Plan([[pins, pins]], [slots], 4, bounds))
        else:
            plans.append(Plan([kept], [[0, 0]], 4, bounds, probation=Probation(STEPS, most_lost, pins)))
    return RaggedCache(full, plans, LENGTHS, 50), keys, values, plans


def step(cache: RaggedCache, at: int, draw: torch.Generator) -> torch.Tensor:
    """Attention of one more token of every row."""
    lengths = [length + at for length in LENGTHS]
    cache.settle(lengths)
    cache.place(lengths, 1)
    new = torch.randn(2, 2, 2, 1, WIDTH, generator=draw)
    cache.write(0, new[0], new[1])
    query = torch.randn(2, 4, 1, WIDTH, generator=draw) * 2
    return cache.attend(0, query, torch.tensor(lengths), torch.tensor([1]), torch.tensor([0]), 0.3)


def test_the_share_that_is_lost_is_exact():
    cache, keys, _, plans = made_cache(dynamic=False)
    draw = torch.Generator().manual_seed(2)
    queries, new = [], []
    note = cache.trial.note
    cache.trial.note = lambda layer, query, *rest: (queries.append(query), note(layer, query, *rest))
    write = cache.write
    cache.write = lambda layer, k, v: (new.append(k), write(layer, k, v))[1]
    for at in range(STEPS):
        step(cache, at, draw)
    for (row, head), share in cache.trial.lost(cache)[0].items():
        length, kept, lost = LENGTHS[row], plans[row].kept[0][head], []
        for at in range(STEPS):
            seen = torch.cat([keys[row, head, :length], *(each[row, head] for each in new[: at + 1])])
            weights = (queries[at][row, 2 * head : 2 * head + 2, 0] @ seen.T * 0.3).softmax(-1)
            lost.append(1 - weights[:, kept].sum(1) - weights[:, length:].sum(1))
        assert abs(float(torch.stack(lost).mean()) - share) < 1e-5
        assert share > 0.05


def test_a_demoted_head_is_a_dynamic_head():
    """Behind the probation it holds and fetches what a head does that has been dynamic from the beginning."""
    watched, dynamic = made_cache(dynamic=False)[0], made_cache(dynamic=True)[0]
    shape = watched.keys.shape
    first, second = torch.Generator().manual_seed(2), torch.Generator().manual_seed(2)
    for at in range(8):
        one, other = step(watched, at, first), step(dynamic, at, second)
        assert torch.allclose(one, other, atol=1e-6) == (at >= STEPS)
    assert watched.keys.shape == shape, "no more memory for keys on the device"
    assert watched.host_bytes == dynamic.host_bytes, "the copies on probation are freed"


def test_only_those_heads_are_demoted_that_miss_too_much():
    cache = made_cache(dynamic=False)[0]
    draw = torch.Generator().manual_seed(2)
    for at in range(STEPS):
        step(cache, at, draw)
    shares = cache.trial.lost(cache)[0]
    middle = sum(sorted(shares.values())[1:3]) / 2
    cache = made_cache(dynamic=False, most_lost=middle)[0]
    draw = torch.Generator().manual_seed(2)
    for at in range(STEPS + 1):
        step(cache, at, draw)
    store = cache.chunks[0]
    assert store is not None
    demoted = {tuple(unit) for unit, many in zip(store.units.tolist(), store.many.tolist(), strict=True) if many}
    assert demoted == {unit for unit, share in shares.items() if share > middle}
    assert len(demoted) == 2
