"""Tables of the study of T2DR, made from its committed rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.rows import by_method, commits_of, read

GROUPS = {"intra": "A", "inter": "B", "mixed": "C", "block": "D", "unbalanced": "E", "mean of A, B, C": "A to C"}
STUDIED = {
    "synthetic": "MAE on the embedded data (generator seed {generator_seed}, test split of 686 clips)",
    "digits": "accuracy on spoken and scanned digits (test split of 300)",
}


def t2dr_study(data: str = "synthetic", brief: bool = False) -> str:
    """The arms of :mod:`benchmarks.t2dr.study` on one kind of data; briefly, T2DR and the baselines only."""
    rows = [row for row in read("t2dr_study") if row["case"].startswith(f"{data}, ")]
    if not rows:
        return "No rows yet: run `python -m benchmarks.t2dr.study`."
    by_arm: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_arm.setdefault(row["method"], {})[row["case"].split(", 5 ")[0].removeprefix(f"{data}, ")] = row
    if brief:
        wanted = ("T2DR", "late fusion, zero fill", "cross-modal transformer", "TFR-Net-like", "LNLN-like")
        by_arm = {arm: by_arm[arm] for arm in wanted}
    lines = [
        "| arm | " + " | ".join(GROUPS.values()) + " | T2DR is better by (95 % interval) | on A | on B |",
        "| --- |" + " --- |" * (len(GROUPS) + 3),
    ]
    sign = -1 if rows[0]["metric"] == "mae" else 1  # of a better value
    for arm, found in sorted(by_arm.items(), key=lambda item: -sign * item[1]["mean of A, B, C"]["mean"]):
        means = " | ".join(f"{found[group]['mean']:.3f}" for group in GROUPS)
        gains = " | ".join(_gain(found[group], sign) for group in ("mean of A, B, C", "intra", "inter"))
        lines.append(f"| {arm} | {means} | {gains} |")
    first, shown = rows[0], [row for found in by_arm.values() for row in found.values()]
    what = STUDIED[data].format(**first)
    devices = "; ".join(dict.fromkeys(name for row in shown for name in row["device"].split("; ")))
    torches = ", ".join(dict.fromkeys(row["versions"]["torch"] for row in shown))
    lines += [
        "",
        f"{what}, mean of {first['runs']} training seeds by {first['mask_seeds']} mask seeds, width 32,"
        f" {first['epochs']} epochs; {devices}, torch {torches}; commit {commits_of(shown)}.",
    ]
    return "\n".join(lines)


def _gain(row: dict[str, Any], sign: int) -> str:
    """By how much T2DR is better than an arm, with the interval; an empty text for T2DR itself."""
    if "t2dr_minus_this" not in row:
        return ""
    mean, *ends = (sign * value for value in row["t2dr_minus_this"])
    return f"{mean:.4f} ({min(ends):.4f} to {max(ends):.4f})"


def t2dr_cost() -> str:
    """Training speed and memory of T2DR and its baselines, from :mod:`benchmarks.t2dr.checks`."""
    rows = [row for row in read("t2dr_checks") if row["metric"] in ("training_samples_per_second", "peak_memory")]
    if not rows:
        return "No rows yet: run `python -m benchmarks.t2dr.checks`."
    found = by_method(rows)
    lines = ["| model | samples/s (median, spread) | peak memory |", "| --- | --- | --- |"]
    for model, both in found.items():
        speed, memory = both["training_samples_per_second"], both["peak_memory"]
        spread = f"{speed['spread']['min']:.0f} to {speed['spread']['max']:.0f}"
        lines.append(f"| {model} | {speed['value']:.0f} ({spread}) | {memory['value']:.0f} |")
    first = rows[0]
    lines += [
        "",
        f"{first['case']}; {first['device']}, torch {first['versions']['torch']}; commit {commits_of([first])}.",
    ]
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "t2dr_cost": t2dr_cost,
    "t2dr_study": t2dr_study,
    "t2dr_digits": lambda: t2dr_study("digits"),
    "t2dr_brief": lambda: t2dr_study("digits", brief=True) + "\n\n" + t2dr_study(brief=True),
}
"""The tables of this folder by the names that pages give them."""
