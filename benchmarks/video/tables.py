"""Tables of the video benchmarks, made from their committed rows."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from benchmarks.rows import by_method, commits_of, each_case, interval, read, runs_of, spread


def video_acceptance() -> str:
    """The effect of pruning and of relaxed rules on acceptance, from :mod:`benchmarks.video.acceptance`."""
    rows = read("video_acceptance")
    if not rows:
        return "No rows yet: run `python -m benchmarks.video.rows_gpu`."
    return each_case(rows, _acceptance_case)


def _acceptance_case(rows: list[dict[str, Any]]) -> str:
    pruned = [row for row in rows if row.get("prune_ratio")]
    ratios = sorted({row["prune_ratio"] for row in pruned})
    lines: list[str] = []
    if pruned:
        whole = next(row["value"] for row in rows if row.get("prune_ratio") == 0)
        lines = [
            "| selector | " + " | ".join(f"{share:.0%} pruned" for share in ratios) + " |",
            "| --- |" + " --- |" * len(ratios),
        ]
        for name in dict.fromkeys(row["method"].split(", ")[1] for row in pruned):
            mine = {row["prune_ratio"]: row for row in pruned if row["method"].split(", ")[1] == name}
            cells = (interval(mine[share], "of_reference") if share in mine else "" for share in ratios)
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines += [
            "",
            f"Without pruning {whole:.2f} drafts of a round are accepted; the table has the share that is left.",
        ]
    relaxed = [row for row in rows if "prune_ratio" not in row]
    if relaxed:
        lines += [
            *([""] if lines else []),
            "| rule | accepted a round | of strict (95 %) | relaxed tokens | facts right | of the target's (95 %) |",
            "| --- |" + " --- |" * 5,
        ]
        for row in relaxed:
            lines.append(
                f"| {row['method']} | {row['value']:.2f} | {interval(row, 'of_reference')} |"
                f" {row['relaxed_share']:.1%} | {row['slot_accuracy']:.1%} | {interval(row, 'retention')} |"
            )
    lines += ["", _video_origin(rows)]
    return "\n".join(lines)


_COMPARED = ("two_stage", "attention", "random", "uniform")
_COMPARED_AT = 0.9  # the paper's share


def video_pairs() -> str:
    """What is left of the acceptance of each pair with 90 % of the video pruned, pairs beneath each other."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in read("video_acceptance"):
        if row.get("prune_ratio") in (0, _COMPARED_AT):
            found.setdefault((row["case"], row["device"]), {})[row["method"].split(", ")[1]] = row
    whole = {key: methods for key, methods in found.items() if {"none", "two_stage", "random"} <= set(methods)}
    if not whole:
        return "No rows yet: run `python -m benchmarks.video.acceptance`."
    lines = [
        "| pair | accepted without pruning | " + " | ".join(_COMPARED) + " | two_stage is |",
        "| --- |" + " --- |" * (len(_COMPARED) + 2),
    ]
    for (case, _), methods in whole.items():
        cells = [interval(methods[name], "of_reference") if name in methods else "" for name in _COMPARED]
        lines.append(
            f"| {', '.join(case.split(', ')[:2])} | {methods['none']['value']:.2f} | {' | '.join(cells)} |"
            f" {_beside(methods['two_stage'], methods['random'])} |"
        )
    return "\n".join([*lines, "", f"Shares with {_COMPARED_AT:.0%} of the video pruned, and their 95 % intervals."])


def _beside(mine: dict[str, Any], other: dict[str, Any]) -> str:
    """Whether a selector keeps more than random tokens, as far as the intervals tell."""
    if None in (mine["of_reference"], other["of_reference"]):
        return ""
    (low, high), (least, most) = mine["of_reference_interval"], other["of_reference_interval"]
    return "above random" if low > most else "below random" if high < least else "not told apart from random"


def video_training() -> str:
    """What trained models tell of held-out scenes, from :mod:`benchmarks.video.training`; a table for each case."""
    rows = read("video_training")
    if not rows:
        return "No rows yet: run `python -m benchmarks.video.training`."
    return each_case(rows, _training_case)


def _training_case(rows: list[dict[str, Any]]) -> str:
    lines = ["| run | model | steps | minutes | last loss | facts told right (95 %) |", "| --- |" + " --- |" * 5]
    for row in rows:
        log = ("" if row[name] is None else f"{row[name]:{form}}" for name, form in _OF_THE_LOG.items())
        lines.append(f"| {row['method']} | {row['model']} | {' | '.join(log)} | {interval(row, 'slot_accuracy')} |")
    return "\n".join([*lines, "", _video_origin(rows)])


_OF_THE_LOG = {"steps": ",", "minutes": ".1f", "train_loss": ".3f"}


def video_speed() -> str:
    """The speed-up of SpecVLM and LVSpec at full size, from :mod:`benchmarks.video.speed`; a table for each case."""
    rows = read("video_speed")
    if not rows:
        return "No rows yet: run `python -m benchmarks.video.rows_gpu`."
    return each_case(rows, _speed_case)


def _speed_case(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| method | decoding (spread) | (T+1)/R | T | R | whole call (spread) | ms a token | relaxed tokens |"
        " facts right | keys and values of the draft |",
        "| --- |" + " --- |" * 9,
    ]
    found = by_method(rows)
    for name, mine in found.items():
        gain = mine["decode_speedup"]
        numbers = " | ".join(f"{gain[key]:.2f}" if key in gain else "" for key in ("predicted", "T", "R"))
        relaxed = f"{gain['relaxed_share']:.1%}" if gain.get("relaxed_share") else ""
        held = f"{gain['draft_kv_bytes'] / 2**20:,.0f} MiB" if "draft_kv_bytes" in gain else ""
        lines.append(
            f"| {name}{', degenerate' if gain['degenerate'] else ''} | {spread(gain)} | {numbers} |"
            f" {spread(mine['whole_speedup'])} | {mine['ms_per_token']['value']:.2f} | {relaxed} |"
            f" {gain['slot_accuracy']:.0%} | {held} |"
        )
    base = found["Autoregressive"]["ms_per_token"]
    share = next(mine["relevance_share"]["value"] for mine in found.values() if "relevance_share" in mine)
    lines += [
        "",
        f"{_video_origin(rows)} Speed-ups are over Autoregressive, {runs_of(base)}. Reading what an autoregressive"
        f" token needs takes {base['bound']:.2f} ms. Relaxed tokens are those that the target would not have chosen."
        f" Scoring relevance takes {share:.1%} of a round of LVSpec.",
    ]
    return "\n".join(lines)


_BRIEF = ("naive speculation", "SpecVLM 0.9", "LVSpec 0.7", "transformers generate", "transformers assistant_model")


def video_brief() -> str:
    """The speed-ups at the shapes of :mod:`benchmarks.video.speed`, a line for each shape, the fastest first.

    Of a method that was measured more than once at a shape, the last measurement is shown.
    """
    found = read("video_speed")
    if not found:
        return "No rows yet: run `python -m benchmarks.video.rows_gpu`."
    whole = {(row["case"], row["method"]): row["value"] for row in found if row["metric"] == "whole_speedup"}
    last: dict[str, dict[str, dict[str, Any]]] = {}
    for row in sorted(found, key=lambda row: row["date"]):
        if row["metric"] == "decode_speedup" and row["method"] in _BRIEF:
            models = re.search(r"(\S+) with draft ([^,]+),.* (\d+) video", row["case"]).groups()  # type: ignore[union-attr]
            last.setdefault("{} with a {} draft, {}".format(*models), {})[row["method"]] = row
    names = dict.fromkeys(name for methods in last.values() for name in methods)
    lines = ["| models, video tokens | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for models, methods in sorted(last.items(), key=lambda one: -max(row["value"] for row in one[1].values())):
        cells = []
        for name in names:
            found_row = methods.get(name, {})
            cells.append(f"{found_row['value']:.2f} / {whole[found_row['case'], name]:.2f}" if found_row else "")
            if found_row.get("relaxed_share"):
                cells[-1] += f", {found_row['relaxed_share']:.1%}"
        lines.append(f"| {models} | " + " | ".join(cells) + " |")
    shown = [row for methods in last.values() for row in methods.values()]
    first = max(shown, key=lambda row: row["date"])
    lines += [
        "",
        "Times as fast as Autoregressive on the same engine, decoding / whole call, and the share of tokens that the"
        f" target would not have chosen where there are any; bfloat16, batch 1; {first['device']}, torch"
        f" {first['versions']['torch']}, transformers {first['versions']['transformers']}; commit {commits_of(shown)}.",
    ]
    return "\n".join(lines)


def video_relevance() -> str:
    """How well LVSpec's relevance finds words about the video, from :mod:`benchmarks.video.relevance`."""
    rows = [row for row in read("video_relevance") if row["score_at"] == "judge"]
    if not rows:
        return "No rows yet: run `python -m benchmarks.video.relevance`."
    lines = [
        "| layer | content over function words | facts over function words | facts over the rest |",
        "| --- |" + " --- |" * 3,
    ]
    for row in rows:
        cells = " | ".join(interval(row, name) for name in ("content", "facts", "facts_over_rest"))
        lines.append(f"| {row['layer']} | {cells} |")
    return "\n".join([*lines, "", _video_origin(rows)])


def _video_origin(rows: list[dict[str, Any]]) -> str:
    first = rows[0]
    versions = first["versions"]
    distinct = [row["distinct_4"] for row in rows if "distinct_4" in row]
    said = "; degenerate rows support no claim" if any(row.get("degenerate") for row in rows) else ""
    return (
        f"{first['case']}; {first['device']}, torch {versions['torch']}, transformers {versions['transformers']};"
        f" commit {commits_of(rows)}. Distinct 4-grams {min(distinct):.2f} to {max(distinct):.2f}, the clips' own"
        f" captions {first['distinct_4_real']:.2f}{said}."
    )


TABLES: dict[str, Callable[[], str]] = {
    "video_acceptance": video_acceptance,
    "video_pairs": video_pairs,
    "video_training": video_training,
    "video_speed": video_speed,
    "video_brief": video_brief,
    "video_relevance": video_relevance,
}
"""The tables of this folder by the names that pages give them."""
