"""Tables of the studies of training-data selection and of vector search, made from their committed rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.rows import by_method, commits_of, each_case, read, runs_of


def trait_worlds() -> str:
    """The gain of choosing chunks over random choice in synthetic worlds, from :mod:`benchmarks.trait.worlds`."""
    rows = [row for row in read("trait_worlds") if row["metric"] == "true_gain"]
    if not rows:
        return "No rows yet: run `python -m benchmarks.trait.worlds`."
    lines = [
        "| sources | selection | true gain (mean; minimum to maximum) | over random | better than random |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        spread = f"{row['mean']:.3f} ({row['spread']['min']:.3f} to {row['spread']['max']:.3f})"
        ratio = row.get("ratio_to_random")
        better = "" if row["method"] == "random" else f"{row['wins']} of {row['runs']}"
        lines.append(
            f"| {row['case'].split()[0]} | {row['method']} | {spread} | {'' if ratio is None else f'{ratio:.2f}x'} |"
            f" {better} |"
        )
    first = rows[0]
    lines += ["", f"{first['device']}, {first['threads']} thread; commit {commits_of([first])}."]
    return "\n".join(lines)


def trait_study() -> str:
    """The result of each selection on judged collections, from :mod:`benchmarks.trait.study`."""
    rows = read("trait_study")
    if not rows:
        return "No rows yet: run `python -m benchmarks.trait.study`."
    targets = list(dict.fromkeys(row["case"].split(",")[0] for row in rows))
    lines = [
        "| selection | " + " | ".join(targets) + " | Trait, both signals, is better by (95 %) |",
        "| --- |" + " --- |" * (len(targets) + 1),
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = {row["case"].split(",")[0]: row for row in rows if row["method"] == method}
        gain = mine["mean"].get("trait_minus_this")
        told = "" if gain is None else f"{gain[0]:+.4f} ({gain[1]:+.4f} to {gain[2]:+.4f})"
        lines.append(f"| {method} | " + " | ".join(f"{mine[name]['mean']:.3f}" for name in targets) + f" | {told} |")
    last = rows[-1]
    lines += [
        "",
        f"nDCG@10, {last['case'].split(', ', 1)[1]}; Trait evaluated {last['evaluated_share']:.0%} of the pairs;"
        f" {last['device']}; commit {commits_of([last])}.",
    ]
    return "\n".join(lines)


def trait_throughput() -> str:
    """Speed of training, measuring and choosing with Trait, from :mod:`benchmarks.trait.throughput`."""
    rows = read("trait_throughput")
    if not rows:
        return "No rows yet: run `python -m benchmarks.trait.throughput`."
    lines = [
        "| model | trained pairs/s (median, spread) | measured pairs/s (median, spread) | time in the surrogate |",
        "| --- | --- | --- | --- |",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = {row["metric"]: row for row in rows if row["method"] == method}
        speeds = " | ".join(
            f"{item['value']:,.0f} ({item['spread']['min']:,.0f} to {item['spread']['max']:,.0f})"
            for item in (mine["train_pairs_per_second"], mine["measured_pairs_per_second"])
        )
        choice = 1000 * mine["seconds_per_choice"]["value"]
        lines.append(f"| {method} | {speeds} | {mine['select_share']['value']:.1%}, {choice:.0f} ms a trial |")
    first = rows[0]
    lines += ["", f"{first['case']}; {first['device']}; commit {commits_of([first])}; {runs_of(first)}."]
    return "\n".join(lines)


def vector_search() -> str:
    """Speed of an index, from :mod:`benchmarks.trait.vector_search`; one table for each machine."""
    rows = read("vector_search")
    if not rows:
        return "No rows yet: run `python -m benchmarks.trait.vector_search`."
    return each_case(rows, _search_case)


def _search_case(rows: list[dict[str, Any]]) -> str:
    found = by_method(rows)
    lines = ["| search | queries/s (median, spread) | build, s | recall |", "| --- |" + " --- |" * 3]
    for name, mine in found.items():
        speed = mine["search"]
        told = f"{speed['value']:,.0f} ({speed['spread']['min']:,.0f} to {speed['spread']['max']:,.0f})"
        build = f"{mine['build']['value']:.1f}" if "build" in mine else ""
        recall = f"{mine['recall']['value']:.4f}" if "recall" in mine else ""
        lines.append(f"| {name} | {told} | {build} | {recall} |")
    first = rows[0]
    lines += [
        "",
        f"{first['case']}; {first['device']}, torch {first['versions']['torch']}, FAISS {first['faiss']}; commit"
        f" {commits_of(rows)}; {runs_of(first)}.",
    ]
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "trait_worlds": trait_worlds,
    "trait_study": trait_study,
    "trait_throughput": trait_throughput,
    "vector_search": vector_search,
}
"""The tables of this folder by the names that pages give them."""
