"""HybridKV: roles, text before visual tokens, pins and slots."""

from __future__ import annotations

import dataclasses
import re
from functools import partial

import pytest
import torch

from saccade.inference import HybridKV
from saccade.inference.compression.allocation import BudgetTooSmallError
from saccade.inference.compression.chunks import pinned_chunks
from saccade.inference.compression.compressor import Plan
from saccade.inference.compression.observation import Observation, late_rows
from saccade.inference.compression.selection import pooled, runs
from tests.inference.compression.compressors import check_plan, observation, prompt

published = partial(HybridKV, sparsity="threshold", theta=0.9, ratio=4.0, pinned=0.0)


def same(one: Plan, other: Plan) -> bool:
    layers = zip(one.kept, other.kept, strict=True)
    return one.slots == other.slots and all(a.equal(b) for pair in layers for a, b in zip(*pair, strict=True))


@pytest.mark.parametrize("scope", ["model", "layer"])
@pytest.mark.parametrize("seed", range(8))
def test_plans_keep_to_the_rules(seed, scope) -> None:
    seen = observation(seed, heads=(2, 4, 1, 3))
    for budget in (0.15, 0.3, 0.7):
        compressor = published(budget=budget, scope=scope)
        plan = compressor.plan(seen)
        check_plan(plan, seen, budget)
        roles = compressor.roles(seen)
        assert roles.static.tolist() == [not count for layer in plan.slots for count in layer]
        assert roles.margin.allclose((roles.sparsity - 0.9).abs())
        if scope == "layer":
            for layer, slots, heads in zip(plan.kept, plan.slots, seen.heads, strict=True):
                assert sum(map(len, layer)) + 16 * sum(slots) <= budget * heads * seen.length + 1e-6


def test_the_whole_budget_keeps_everything() -> None:
    seen = observation()
    for scope in ("model", "layer"):
        plan = published(budget=1, scope=scope).plan(seen)
        assert not any(map(any, plan.slots))
        assert all(kept.equal(torch.arange(seen.length)) for layer in plan.kept for kept in layer)


def test_the_ends_of_theta_are_the_two_ablations() -> None:
    seen = observation()
    static, dynamic = published(budget=0.2, theta=0), published(budget=0.2, theta=1.01)
    assert same(static.plan(seen), published(budget=0.2, min_static=1).plan(seen))
    assert same(dynamic.plan(seen), published(budget=0.2, max_static=0).plan(seen))
    assert not any(map(any, static.plan(seen).slots))
    assert all(map(all, dynamic.plan(seen).slots))
    assert static.plan(seen).entries == 768  # exactly the budget
    counts = [int(published(theta=theta).roles(seen).static.sum()) for theta in (0, 0.8, 0.85, 0.9, 0.95, 0.99, 1.01)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 6 > counts[3] > counts[-1] == 0


def test_the_shares_of_static_heads_are_limited() -> None:
    seen = observation()
    score = published().roles(seen).sparsity
    assert published(max_static=0.34).roles(seen).static.nonzero()[:, 0].tolist() == sorted(
        score.topk(2).indices.tolist()
    )
    assert published(theta=2, min_static=0.5).roles(seen).static.sum() == 3


def test_text_is_kept_before_visual_tokens() -> None:
    seen = observation()
    plan = published(budget=0.25, theta=0, weighting="uniform", visual_sink=False).plan(seen)
    text = (~seen.visual).nonzero()[:, 0]
    run = runs(seen.segments)
    for layer, kept_sets in enumerate(plan.kept):
        for head, kept in enumerate(kept_sets):
            assert torch.isin(text, kept).all()  # 80 of text, of which 4 sinks and 32 recent
            visual = kept[seen.visual[kept]]
            assert len(visual) == len(kept) - len(text)
            scores = pooled(seen.mean[layer][head : head + 1], run, 5)[0].masked_fill(~seen.visual, -1)
            assert set(visual.tolist()) == set(scores.topk(len(visual)).indices.tolist())


def test_of_text_that_does_not_fit_the_most_attended_is_kept() -> None:
    seen = observation(images=((300, 400),))
    plan = published(budget=0.1, theta=0, pool=1).plan(seen)
    for layer, kept_sets in zip(seen.mean, plan.kept, strict=True):
        for scores, kept in zip(layer, kept_sets, strict=True):
            assert not seen.visual[kept].any()
            assert kept[:4].tolist() == [0, 1, 2, 3]
            assert kept[-32:].tolist() == list(range(608, 640))
            middle = kept[4:-32]
            rest = scores.clone().masked_fill(seen.visual, -1)
            rest[:4] = rest[-32:] = -1
            assert set(middle.tolist()) == set(rest.topk(len(middle)).indices.tolist())


def test_the_best_visual_token_of_each_image_is_kept_after_text() -> None:
    seen = observation()
    assert seen.mean[0][0, 20:250].argmax() != 0
    seen.mean[0][0, 20] = 1e-3 + seen.mean[0][0, 20:250].max()  # alone on its high place: pooling would lose it
    seen.mean[0][0, 21:25] = 0
    tight = published(budget=0.13, theta=0, weighting="uniform")  # 83 entries: 80 of text, three images
    assert 20 in tight.plan(seen).kept[0][0].tolist()
    assert 20 not in dataclasses.replace(tight, visual_sink=False).plan(seen).kept[0][0].tolist()


def test_plain_text_has_no_prior() -> None:
    seen = observation(images=())
    kept = published(budget=0.2, theta=0).plan(seen).kept[1][1]
    scores = pooled(seen.mean[1][1:], runs(seen.segments), 5)[0]
    scores[:4] = scores[-32:] = 2
    assert set(kept.tolist()) == set(scores.topk(len(kept)).indices.tolist())


def test_dynamic_heads_pin_ends_and_text_that_is_short() -> None:
    seen = observation()
    few, many = (published(budget=budget, theta=2).plan(seen) for budget in (0.3, 0.6))
    ends = [*range(4), *range(640 - 44, 640)]  # 32 recent tokens, and 12 more: with 4 sinks, three chunks
    assert few.kept[0][0].tolist() == ends
    assert few.slots[0] == [9, 9]  # 192 entries, of which 48 are pins
    assert many.kept[0][0].tolist() == sorted({*ends, *(~seen.visual).nonzero()[:, 0].tolist()})
    assert published(budget=0.6, theta=2, pin_text=False).plan(seen).kept[0][0].tolist() == ends


@pytest.mark.parametrize("weighting", ["inverse", "direct", "uniform"])
def test_static_heads_share_by_their_sparsity(weighting) -> None:
    seen = observation()
    seen = dataclasses.replace(seen, alive=[torch.tensor([0.02, 0.08])] * 3)
    lengths = [len(kept) for kept in published(budget=0.2, weighting=weighting).plan(seen).kept[0]]
    assert {"inverse": lengths[0] < lengths[1], "direct": lengths[0] > lengths[1]}.get(weighting, True)
    assert (lengths[0] == lengths[1]) == (weighting == "uniform")


def test_concentration_is_the_mass_of_the_best_keys() -> None:
    seen = observation()
    score = published(sparsity="concentration", budget=0.1).roles(seen).sparsity
    torch.testing.assert_close(score[3], seen.mean[1][1].topk(64).values.sum())


def test_held_out_attention_is_what_the_other_rows_would_have_kept() -> None:
    seen = observation(images=())
    assert late_rows(seen.rows) == 624
    early, late = torch.zeros(2, 640), torch.zeros(2, 640)
    early[:, 100] = early[:, 300] = 0.5
    late[0, 100] = 1  # goes on as before
    late[1, 200], late[1, 630], late[1, 302] = 0.5, 0.2, 0.3  # moves on; the latest keys are kept, and neighbours
    mean = (48 * early + 16 * late) / 64
    seen = dataclasses.replace(seen, mean=[mean], late=[late], alive=[torch.zeros(2)])
    score = HybridKV(budget=0.2).roles(seen).sparsity
    torch.testing.assert_close(score, torch.tensor([1.0, 0.5]))
    assert HybridKV(budget=0.2).roles(seen).static.tolist() == [True, False]
    with pytest.raises(ValueError, match=r"^seen must have the attention of the last rows, got none: observe them "):
        HybridKV(budget=0.2).roles(dataclasses.replace(seen, late=[]))


def test_one_observed_row_is_compared_with_itself() -> None:
    seen = dataclasses.replace(observation(images=()), rows=(639, 640))
    seen = dataclasses.replace(seen, late=seen.mean)
    score = HybridKV(budget=0.2).roles(seen).sparsity
    assert bool(((score > 0.2) & (score <= 1)).all())


def test_a_part_of_the_chunks_is_chosen_once() -> None:
    seen = observation()
    whole, half = (HybridKV(budget=0.3, theta=2, pinned=share).plan(seen) for share in (0.0, 0.5))
    check_plan(half, seen, 0.3)
    assert half.entries == whole.entries
    assert half.bounds is not None
    for layer, (kept_sets, slots) in enumerate(zip(half.kept, half.slots, strict=True)):
        for head, (kept, count) in enumerate(zip(kept_sets, slots, strict=True)):
            before, had = whole.kept[layer][head], whole.slots[layer][head]
            assert count == had - had // 2
            more = kept[~torch.isin(kept, before)]
            attention = torch.stack([part.sum() for part in seen.mean[layer][head].split(half.bounds.diff().tolist())])
            best = (
                attention.masked_fill(pinned_chunks([before], half.bounds[:-1], int(half.bounds[-1]))[0], -1)
                .topk(had // 2)
                .indices
            )
            assert set(more.tolist()) == {
                place for chunk in best for place in range(int(half.bounds[chunk]), int(half.bounds[chunk + 1]))
            }


def test_a_short_prompt_names_the_smallest_budget() -> None:
    seen = observation(length=300, images=((20, 200),))
    for scope in ("model", "layer"):
        with pytest.raises(
            BudgetTooSmallError, match=r"^budget must be at least 0\.\d+ for a prompt of 300 "
        ) as caught:
            published(budget=0.1, scope=scope).plan(seen)
        assert published(budget=caught.value.smallest, scope=scope).plan(seen).entries
    tiny = observation(length=20, images=())
    with pytest.raises(BudgetTooSmallError, match=r"at least 1\.0 "):
        published(budget=0.99).plan(tiny)


def test_merging_goes_with_the_plan() -> None:
    seen = observation()
    assert published(budget=0.2).plan(seen).merged is None
    merged = published(budget=0.2, merge=True).plan(seen).merged
    assert merged is not None
    assert merged.groups is not None
    assert merged.groups.equal(seen.visual.long())


def test_the_plan_does_not_depend_on_more_query_heads_or_later_calls() -> None:
    seen, compressor = observation(), published(budget=0.2)
    assert same(compressor.plan(seen), compressor.plan(seen))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0}, "budget must be above 0, got 0"),
        ({"budget": 1.2}, "budget must be between 0 and 1, got 1.2"),
        ({"window": 0}, "window must be at least 1, got 0: the roles of heads follow from observed rows."),
        ({"theta": -1}, "theta must be at least 0, got -1"),
        ({"sparsity": "mass"}, "sparsity must be held_out, threshold or concentration, got 'mass'"),
        ({"ratio": 0}, "ratio must be above 0, got 0"),
        ({"pool": 4}, "pool must be odd, got 4: add or subtract 1."),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"probation": -1}, "probation must be at least 0, got -1"),
        ({"probation": 4, "kept_bits": 8}, "kept_bits must be 16 for heads on probation, got 8: leave"),
        ({"most_lost": 1.5}, "most_lost must be between 0 and 1, got 1.5"),
        ({"min_static": 0.5, "max_static": 0.2}, "min_static must be at most max_static, 0.2, got 0.5: lower it."),
    ],
)
def test_wrong_settings_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        published(**settings)


def test_prompts_of_visual_tokens_only() -> None:
    visual, segments = prompt(640, ((0, 640),))
    base = observation()
    seen = Observation(base.mean, base.alive, visual, segments, (576, 640))
    check_plan(published(budget=0.3).plan(seen), seen, 0.3)
