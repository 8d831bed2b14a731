"""Tables of cache compression, made from the committed rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.compression.speed_tables import SPEED_TABLES
from benchmarks.compression.video_slots import compression_video
from benchmarks.rows import commits_of, read, spread

BUDGETS = ("0.05", "0.1", "0.2", "0.4")
_MEANING = "Difference from the whole cache on the same prompts, with the paired 95 % interval (bootstrap)."


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


def compression_quality() -> str:
    """Right answers of every method at every budget, one table for each model and length."""
    return _quality("exact", "{:.0f}", f"{_MEANING} Answers that are right behind their first token, of 100")


def compression_quality_tokens() -> str:
    """Right tokens of the answers."""
    return _quality("tokens", "{:.1f}", f"{_MEANING} Right tokens behind the first of an answer, of 100")


def compression_quality_loss() -> str:
    """What answers lose in log-probability."""
    return _quality("loss", "{:.2f}", f"{_MEANING} Nats of a whole answer; the whole cache has that of its row")


def _quality(metric: str, form: str, note: str) -> str:
    rows = [row for row in read("compression_quality") if row["metric"] == metric]
    if not rows:
        return "No rows yet: run `python -m benchmarks.compression.quality --model MODEL --raw RAW`, then `--read RAW`."
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["case"].rsplit(", budget", 1)[0], row["device"]), []).append(row)
    return "\n\n".join(_one_model(case, device, group, form, note) for (case, device), group in groups.items())


def _one_model(case: str, device: str, rows: list[dict[str, Any]], form: str, note: str) -> str:
    budgets = sorted({row["budget"] for row in rows if row["method"] != "full"})
    by_arm = {(row["method"], row["budget"]): row for row in rows}
    full = by_arm["full", 1.0]
    heads = [f"{budget:.0%}" for budget in budgets]
    lines = [
        f"| {case} | " + " | ".join(heads) + " | device bytes at 10% | HybridKV minus this, 10% | 20% |",
        "| --- |" + " --- |" * (len(budgets) + 3),
        f"| whole cache: {form.format(full['mean'])} |" + " |" * (len(budgets) + 3),
    ]
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != "full"):
        arms = [by_arm.get((method, budget)) for budget in budgets]
        cells = " | ".join(_difference(arm, "minus_full", form) for arm in arms)
        tenth = by_arm.get((method, 0.1))
        share = f"{tenth['device_share']:.0%}" if tenth else ""
        ours = " | ".join(
            _difference(arm, "hybrid_minus_this", form) if method != "HybridKV" else ""
            for arm in (tenth, by_arm.get((method, 0.2)))
        )
        lines.append(f"| {method} | {cells} | {share} | {ours} |")
    versions = full["versions"]
    source = (
        f"{note}, {full['runs']} prompts; {device}, torch {versions['torch']}, transformers"
        f" {versions['transformers']}; commit {commits_of([row for row in rows if row['commit']])}."
    )
    return "\n".join([*lines, "", source])


def _difference(row: dict[str, Any] | None, name: str, form: str) -> str:
    """A mean difference of a row with its interval; an empty text where there is none."""
    found = None if row is None else row[name]
    if found is None:
        return ""
    signed = form.replace("{:", "{:+")
    return f"{signed.format(found[0])} ({' to '.join(signed.format(end) for end in found[1:])})"


TABLES: dict[str, Callable[[], str]] = {
    "compression_quality": compression_quality,
    "compression_quality_loss": compression_quality_loss,
    "compression_quality_tokens": compression_quality_tokens,
    "compression_video": compression_video,
    "planted_heads": planted_heads,
    "planted_heads_recall": planted_heads_recall,
    "planted_heads_settings": planted_heads_settings,
    **SPEED_TABLES,
}
