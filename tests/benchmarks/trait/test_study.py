"""The Trait study's rows: means over seeds and targets, and paired differences over queries."""

from __future__ import annotations

import pytest

from benchmarks.trait.study import rows_of


def result(target, method, seed, best):
    queries = [f"{target}/q{place}" for place in range(4)]
    found = {"evaluated_share": 0.2, "select_share": 0.01}
    per_query = {"bm25": dict.fromkeys(queries, 0.1), "base": dict.fromkeys(queries, 0.2)}
    warm = {"a": -0.1 * seed} if method.startswith("trait") else {}
    per_query["best"] = {query: best + 0.01 * place for place, query in enumerate(queries)}
    return {
        "target": target, "method": method, "seed": seed, "per_query": per_query, "found": found,
        "warmup_minus_base": warm,
    }  # fmt: skip


def test_rows():
    gains = {"random, both": 0.3, "trait, both": 0.4}
    results = [
        result(target, method, seed, gain + 0.1 * seed + (0.2 if target == "y" else 0.0))
        for target in ("x", "y")
        for method, gain in gains.items()
        for seed in (1, 2)
    ]
    rows = {(row["case"].split(",")[0], row["method"]): row for row in rows_of(results)}
    assert set(rows) == {
        (case, method) for case in ("x", "y", "mean") for method in ("bm25", "base", "random, both", "trait, both")
    }
    assert rows["x", "random, both"]["mean"] == pytest.approx(0.3 + 0.15 + 0.015)
    assert rows["mean", "random, both"]["mean"] == pytest.approx(0.3 + 0.15 + 0.015 + 0.1)
    assert rows["mean", "random, both"]["trait_minus_this"] == pytest.approx([0.1] * 3)
    assert rows["x", "base"]["trait_minus_this"][1] > 0
    assert rows["mean", "trait, both"]["warmup_minus_base"] == {"a": pytest.approx(-0.15)}
    assert "trait_minus_this" not in rows["mean", "trait, both"]
