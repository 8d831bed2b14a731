"""The throughput benchmark: figures from a search's record, and that a search records what they need."""

from __future__ import annotations

import pytest

from benchmarks.trait.throughput import MODELS, UNITS, figures, searched
from saccade.datamodules import ChunkPool


def test_figures() -> None:
    found = {
        "pairs": {"train": 600, "measure": 9000},
        "seconds": {"train": 3.0, "measure": 1.5, "select": 0.5},
        "select_share": 0.1,
        "trials": 5,
    }
    assert figures(found) == {
        "train_pairs_per_second": pytest.approx(200),
        "measured_pairs_per_second": pytest.approx(6000),
        "select_share": 0.1,
        "seconds_per_choice": pytest.approx(0.1),
        "seconds_per_trial": pytest.approx(1.0),
    }


def test_a_search_gives_every_figure() -> None:
    pool = ChunkPool(["asyncio", "email"], "logging", chunk_size=16, passes=1, max_pairs_per_package=64)
    found = searched(MODELS["Reranker, cross features"](), pool, budget=2, candidates=10)
    values = figures(found)
    assert set(values) == set(UNITS)
    assert all(value > 0 for value in values.values())
    assert values["select_share"] < 1
