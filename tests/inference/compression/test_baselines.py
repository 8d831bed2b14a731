"""The rules of the baselines, on small cases that were computed by hand or in another way."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from saccade.inference import (
    AdaKV,
    HeadKV,
    LookM,
    PyramidKV,
    Quest,
    RandomKV,
    SnapKV,
    StreamingLLM,
    VLCache,
)
from saccade.inference.compression.allocation import BudgetTooSmallError
from saccade.inference.compression.baselines.head_kv import needle_scores
from saccade.inference.compression.compressor import CacheCompressor
from saccade.inference.compression.observation import Observation
from tests.inference.compression.compressors import observation, prompt


def lengths(compressor: CacheCompressor, seen: Observation) -> list[list[int]]:
    return [[len(kept) for kept in layer] for layer in compressor.plan(seen).kept]


def test_snapkv_is_the_authors_selection_on_one_text() -> None:
    seen = observation(images=())
    for pool_kind, pool in (("mean", F.avg_pool1d), ("max", F.max_pool1d)):
        kept = SnapKV(budget=0.2, pool_kind=pool_kind).plan(seen).kept
        for layer, sets in zip(seen.mean, kept, strict=True):
            before = pool(layer[None, :, :-32], 5, padding=2, stride=1)[0]
            before[:, :2] = before[:, -2:] = 0  # their averages count zeros beyond the ends
            for scores, positions in zip(before, sets, strict=True):
                assert positions[-32:].tolist() == list(range(608, 640))
                others = [place for place in positions[:-32].tolist() if 1 < place < 606]
                assert len(others) >= 92
                assert scores[others].min() >= scores.topk(96).values[-1] - 1e-7


def test_pyramidkv_falls_linearly() -> None:
    seen = observation(heads=(2, 2, 2, 2, 2))
    kept = [layer[0] for layer in lengths(PyramidKV(budget=0.2), seen)]
    assert PyramidKV(budget=0.2).plan(seen).entries == 1280
    # beside a window of 32: 96 on average, 4.8 in the last layer, 187.2 in the first
    assert kept == [pytest.approx(32 + 187.2 - step * 45.6, abs=1) for step in range(5)]
    assert [layer[0] for layer in lengths(PyramidKV(budget=0.2, beta=1), seen)] == [128] * 5
    flat = [layer[0] for layer in lengths(PyramidKV(budget=0.7), seen)]  # the first layer would need 845 tokens
    assert flat == [pytest.approx(640 - step * 96, abs=1) for step in range(5)]


def test_adakv_counts_the_best_of_all_heads() -> None:
    seen = observation(heads=(2,), images=())
    scores = torch.full((2, 640), 1e-9)
    scores[0, :100] = 0.5  # head 0 has a hundred good ones, head 1 ten
    scores[1, 100:110] = 0.5
    seen = dataclasses.replace(seen, mean=[scores])
    ada = AdaKV(budget=174 / 1280, pool=1, alpha=0)
    assert lengths(ada, seen) == [[132, 42]]  # a window of 32 each, and 110 others
    assert lengths(dataclasses.replace(ada, alpha=0.2), seen) == [[123, 51]]  # 0.8 * 100 + 11, 0.8 * 10 + 11
    assert lengths(dataclasses.replace(ada, alpha=1), seen) == [[87, 87]]
    assert ada.plan(seen).kept[0][1][:10].tolist() == list(range(100, 110))


def test_lookm_keeps_recent_tokens_then_text_then_images() -> None:
    seen = observation()  # 80 of text
    kept = LookM(budget=0.2).plan(seen).kept[1][0]
    assert kept[-64:].tolist() == sorted({*range(600, 640), *range(576, 600)})
    assert int((~seen.visual[kept]).sum()) == 80
    visual = kept[seen.visual[kept] & (kept < 576)]
    scores = seen.mean[1][0].masked_fill(~seen.visual, -1)
    scores[576:] = -1
    assert set(visual.tolist()) == set(scores.topk(24).indices.tolist())
    many = observation(images=((300, 320),))
    kept = LookM(budget=0.2).plan(many).kept[0][0]
    assert not many.visual[kept].any(), "more text than fits"
    assert LookM().plan(seen).merged is not None
    assert LookM(merge=False).plan(seen).merged is None


def test_vlcache_gives_dense_layers_more() -> None:
    seen = observation(heads=(1, 1, 1, 1))
    seen = dataclasses.replace(seen, alive=[torch.tensor([share]) for share in (0.4, 0.3, 0.1, 1e-6)])
    shares = [layer[0] for layer in lengths(VLCache(budget=0.2), seen)]
    assert sum(shares) == 512
    assert shares[3] == 6  # one per cent
    assert shares[:3] == [pytest.approx(506 * share / 0.8, abs=1) for share in (0.4, 0.3, 0.1)]
    kept = VLCache(budget=0.2).plan(seen).kept[0][0]
    assert kept[-25:].tolist() == list(range(615, 640))


def test_headkv_divides_by_scores_of_heads() -> None:
    seen = observation(heads=(2, 2))
    kept = lengths(HeadKV([[3, 1], [0, 0]], budget=0.2, beta=1.25), seen)
    # of 96 beside the window, a fifth for all, and four fifths of 4 * 96 by score
    assert kept == [[pytest.approx(51 + 0.75 * 308, abs=1), pytest.approx(51 + 0.25 * 308, abs=1)], [51, 51]]
    assert lengths(HeadKV([[2, 1, 0.5, 0.5], [0, 0, 0, 0]], budget=0.2, beta=1.25), seen) == kept  # query heads


def test_scores_of_heads_are_read_from_files(tmp_path: Path) -> None:
    seen, path = observation(heads=(2, 2)), tmp_path / "scores.json"
    expected = lengths(HeadKV([[3, 1], [0, 2]]), seen)
    for content in ([[3, 1], [0, 2]], {"0-0": [2, 4], "1-1": [2], "0-1": 1, "1-0": [0, 0]}):
        path.write_text(json.dumps(content))
        assert lengths(HeadKV(str(path)), seen) == expected
    for wrong in ("[[1], []]", '{"a": 1}', "{}", '[["x"]]', "3", "[[NaN]]", '{"0-1": 1}'):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=r"^scores must be a list of numbers"):
            HeadKV(str(path)).check()
    with pytest.raises(ValueError, match=r"^scores must be a JSON file, got missing\.json "):
        HeadKV("missing.json").check()
    with pytest.raises(ValueError, match=r"^scores must have 2 layers with multiples of \[2\] heads, got 1 "):
        HeadKV([[1, 2]]).plan(seen)


def test_needle_scores_are_attention_on_the_answer_among_the_best_keys() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4]])
    visual, segments = prompt(4, ())
    seen = Observation([scores], [torch.zeros(2)], visual, segments, (3, 4))
    answer = torch.tensor([0, 2])
    assert needle_scores([(seen, answer)]) == [[pytest.approx(0.5), pytest.approx(0.3)]]
    assert needle_scores([(seen, answer), (seen, torch.tensor([3]))]) == [[pytest.approx(0.25), pytest.approx(0.35)]]
    with pytest.raises(ValueError, match=r"^samples must be at least one"):
        needle_scores([])


def test_streamingllm_keeps_both_ends() -> None:
    kept = StreamingLLM(budget=0.02).plan(observation()).kept[2][0]
    assert kept.tolist() == [0, 1, 2, 3, *range(632, 640)]
    assert StreamingLLM(budget=0.02, sinks=100).plan(observation()).kept[2][0].tolist() == list(range(12))


def test_quest_deletes_nothing_and_reads_its_budget() -> None:
    seen = observation()
    plan = Quest(budget=0.2).plan(seen)
    assert not any(len(kept) for layer in plan.kept for kept in layer)
    assert plan.slots == [[8, 8], [8, 8, 8], [8]]  # 8 chunks of 16 are a fifth of 640
    assert plan.representative == "minmax"
    with pytest.raises(BudgetTooSmallError, match=r"at least 0\.025 .*: raise it, or lower chunk\."):
        Quest(budget=0.01).plan(seen)
    assert Quest(budget=0.025).plan(seen).slots[0] == [1, 1]


def test_random_sets_are_uniform_and_repeatable() -> None:
    seen = observation(heads=(40, 40))
    first, again, other = (RandomKV(budget=0.1, seed=seed).plan(seen).kept for seed in (0, 0, 1))
    assert all(a.equal(b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True))
    assert not first[0][0].equal(other[0][0])
    assert not first[0][0].equal(first[1][0])
    counts = torch.bincount(torch.cat([kept for layer in first for kept in layer]), minlength=640)
    assert counts.sum() == 80 * 64
    # each position is kept by 8 of 80 heads: variance 7.2
    assert float(counts.double().var()) == pytest.approx(7.2, rel=0.25)
