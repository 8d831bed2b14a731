"""Tables of cache compression, made from the committed rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.compression.speed_tables import SPEED_TABLES
from benchmarks.rows import commits_of, read, spread

BUDGETS = ("0.05", "0.1", "0.2", "0.4")


def planted_heads() -> str:
    """Error of every method at every budget, and what it moves at 10 %."""
    found = _rows()
    if not found:
        return "No rows yet: run `python -m benchmarks.compression.planted_heads`."
    lines = [
        "| method | " + " | ".join(f"{float(budget):.0%}" for budget in BUDGETS) + " | tokens fetched a step at 10% |",
        "| --- |" + " --- |" * (len(BUDGETS) + 1),
    ]
    methods = [method for case, method in found if case == "budget 0.1"]
    for method in sorted(methods, key=lambda method: found["budget 0.1", method]["mean"]):
        errors = " | ".join(_error(found[f"budget {budget}", method]) for budget in BUDGETS)
        lines.append(f"| {method} | {errors} | {found['budget 0.1', method]['fetched']:.0f} |")
    return "\n".join([*lines, "", _source(found)])


def planted_heads_settings() -> str:
    """Error of HybridKV with other labels, thresholds, ratios and representatives at a budget of 10 %."""
    found = _rows()
    if not found:
        return "No rows yet: run `python -m benchmarks.compression.planted_heads`."
    lines = [
        "| HybridKV, budget 10% | error | right labels of 32 | tokens fetched a step |",
        "| --- | --- | --- | --- |",
    ]
    for (case, method), row in found.items():
        if not case.startswith("budget"):
            lines.append(f"| {method} | {_error(row)} | {row['right_labels']:.1f} | {row['fetched']:.0f} |")
    return "\n".join([*lines, "", _source(found)])


def planted_heads_recall() -> str:
    """How often the best chunk is found."""
    found = [row for row in read("planted_heads") if row["metric"] == "recall"]
    if not found:
        return "No rows yet: run `python -m benchmarks.compression.planted_heads`."
    kinds = dict.fromkeys(row["method"].split()[0] for row in found)
    counts = dict.fromkeys(row["method"].split()[1] for row in found)
    lines = [
        "| representative | " + " | ".join(f"among the best {count}" for count in counts) + " |",
        "| --- |" + " --- |" * len(counts),
    ]
    for kind in kinds:
        shares = " | ".join(spread(row) for row in found if row["method"].split()[0] == kind)
        lines.append(f"| {kind} | {shares} |")
    first = found[0]
    return "\n".join(
        [
            *lines,
            "",
            f"Share of steps of dynamic heads in which the chunk of 16 tokens with the most attention is found, of 128;"
            f" median (lowest to highest) of {first['runs']} seeds; commit {commits_of(found)}.",
        ]
    )


def _rows() -> dict[tuple[str, str], dict[str, Any]]:
    rows = [row for row in read("planted_heads") if row["metric"] == "error"]
    return {(row["case"].split(", ")[0], row["method"]): row for row in rows}


def _error(row: dict[str, Any]) -> str:
    return f"{row['mean']:.3f} ± {row['sd']:.3f}"


def _source(found: dict[tuple[str, str], dict[str, Any]]) -> str:
    first = next(iter(found.values()))
    return (
        f"Relative L2 error of a head's output, mean ± standard deviation over {first['runs']} seeds; one layer of 32"
        f" planted heads, 8 of them static, 2048 tokens, 24 steps; torch {first['versions']['torch']}; commit"
        f" {commits_of(list(found.values()))}."
    )


TABLES: dict[str, Callable[[], str]] = {
    "planted_heads": planted_heads,
    "planted_heads_recall": planted_heads_recall,
    "planted_heads_settings": planted_heads_settings,
    **SPEED_TABLES,
}
