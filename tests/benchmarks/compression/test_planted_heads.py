"""The study of planted heads: the order of methods and labels, on small worlds; its rows, tables and figure."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from statistics import fmean

import pytest
import torch

from benchmarks import rows
from benchmarks.compression import planted_heads as study
from benchmarks.compression import tables
from benchmarks.compression.planted_heads import Labelled, Published, labels
from benchmarks.compression.world import World, outcome, planted_heads, recall
from saccade.common.provenance import provenance
from saccade.inference import CacheCompressor, FullKV, Quest, RandomKV
from saccade.inference.compression.selection import runs

SMALL = partial(planted_heads, heads=12, static=3, length=1344, steps=12)


@pytest.fixture(scope="module")
def worlds() -> list[World]:
    return [SMALL(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def right(worlds: list[World]) -> Labelled:
    return Labelled(window=32, labels=labels(worlds[0], "right", 0))


def error(worlds: list[World], compressor: CacheCompressor) -> float:
    return fmean(outcome(world, compressor.plan(world.seen))[0] for world in worlds)


def test_the_whole_cache_has_no_error(worlds, right) -> None:
    assert outcome(worlds[0], FullKV().plan(worlds[0].seen)) == (0, 0)
    assert outcome(worlds[0], replace(right, budget=1).plan(worlds[0].seen)) == (0, 0)


def test_the_score_finds_the_kinds(worlds) -> None:
    for world in worlds:
        found = Published(window=32, theta=0.92).roles(world.seen)
        assert int((found.static == world.static).sum()) >= 11
        assert found.sparsity[world.static].min() > found.sparsity[~world.static].median()


def test_random_labels_are_worse_and_inverted_ones_worse_still(worlds, right) -> None:
    scored = error(worlds, Published(window=32, theta=0.92))
    shuffled = fmean(
        error([world], replace(right, labels=labels(world, "random", seed))) for seed, world in enumerate(worlds)
    )
    inverted = error(worlds, replace(right, labels=labels(worlds[0], "inverted", 0)))
    assert error(worlds, right) <= scored * 1.05
    assert 2 * scored < shuffled
    assert 1.5 * shuffled < inverted


def test_two_rules_are_better_than_one(worlds, right) -> None:
    hybrid = error(worlds, right)
    assert (
        hybrid < 0.8 * error(worlds, Published(window=32, theta=2)) < 0.3 * error(worlds, Published(window=32, theta=0))
    )
    assert error(worlds, RandomKV()) > 10 * hybrid


def test_the_error_falls_with_the_budget(worlds, right) -> None:
    errors = [error(worlds, replace(right, budget=budget)) for budget in (0.05, 0.1, 0.2, 0.4, 1)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 2 * errors[1] > 4 * errors[3]


def test_only_new_chunks_are_fetched(worlds) -> None:
    plan = Quest(budget=0.1).plan(worlds[0].seen)
    moved = outcome(worlds[0], plan)[1]
    still = replace(worlds[0], queries=worlds[0].queries[:, :1].expand_as(worlds[0].queries))
    once = outcome(still, plan)[1] * 12
    assert 0 < once <= plan.entries
    assert once < moved * 12 < plan.entries * 12


def test_the_best_chunk_is_found_more_often_among_more(worlds) -> None:
    for kind in ("mean", "minmax"):
        shares = [recall(worlds[0], kind, count) for count in (1, 4, 16, 80)]
        assert shares == sorted(shares)
        assert shares[0] > 0.5
        assert shares[-1] > 0.99


def test_planted_numbers_do_not_leak_over_borders(worlds) -> None:
    seen = worlds[0].seen
    assert runs(seen.segments).bincount().tolist() == [32, 1248, 64]
    torch.testing.assert_close(seen.mean[0].sum(1), torch.ones(12))


def test_rows_tables_and_figure_are_made_of_every_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "planted_heads", partial(planted_heads, heads=4, static=1, length=1344, steps=2))
    origin = provenance(0)  # asks git, so not for every row
    monkeypatch.setattr(rows, "provenance", lambda seed: dict(origin))
    made = study.study(2)
    assert all(row["runs"] == 2 and math.isfinite(row["value"]) for row in made)
    assert len(study.figure(made).axes) == 3
    monkeypatch.setattr(tables, "read", lambda name: made)
    assert "| HybridKV, right labels |" in tables.planted_heads()
    assert tables.planted_heads_settings().count("\n") == 24
    assert tables.planted_heads_recall().count("\n") == 5
    monkeypatch.setattr(tables, "read", lambda name: [])
    assert tables.planted_heads().startswith("No rows yet: run `python -m ")
