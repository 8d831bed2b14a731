"""Tables of the speed and size of compressed caches, made from the committed rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.rows import commits_of, read

COMMAND = "No rows yet: run `python -m benchmarks.compression.speed`."
Rows = dict[str, dict[str, dict[str, Any]]]


def speed() -> str:
    """Milliseconds a token of every case, and how much faster than the whole cache each method is."""
    found = _rows("ms_per_token")
    if not found:
        return COMMAND
    methods = [
        name for name in dict.fromkeys(name for rows in found.values() for name in rows) if name != "whole cache"
    ]
    lines = [f"| case | whole cache | {' | '.join(methods)} |", "| --- | --- |" + " --- |" * len(methods)]
    for case, rows in found.items():
        if "whole cache" not in rows:
            continue
        whole = rows["whole cache"]
        cells = [_pace(rows[name], whole) if name in rows else "" for name in methods]
        lines.append(
            f"| {_short(case)} | {whole['value']:.2f} ({whole['bound'] / whole['value']:.0%}) | {' | '.join(cells)} |"
        )
    every = [row for rows in found.values() for row in rows.values()]
    note = (
        "Milliseconds a token, and in parentheses the share of the bound that a whole cache reaches. For the others:"
        " times as fast as the whole cache, of what the bytes that they keep would allow. " + _source(every)
    )
    return "\n".join([*lines, "", note])


def size() -> str:
    """Bytes on the device and in host memory, and the share of chunks that a step had to fetch."""
    found = {case: rows for case, rows in _rows("ms_per_token").items() if "whole cache" in rows}
    if not found:
        return COMMAND
    lines = [
        "| case | method | MB on the device | times smaller | MB in host memory | chunks fetched a step |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case, rows in found.items():
        whole = rows["whole cache"]["device_bytes"]
        for name, row in rows.items():
            if "device_bytes" not in row:
                continue
            share = "" if row["fetched_share"] is None else f"{row['fetched_share']:.0%}"
            lines.append(
                f"| {_short(case)} | {name} | {row['device_bytes'] / 1e6:,.0f} | {whole / row['device_bytes']:.1f} |"
                f" {row['host_bytes'] / 1e6:,.0f} | {share} |"
            )
    every = [row for rows in found.values() for row in rows.values()]
    return "\n".join([*lines, "", "Bytes as the allocator gives them. " + _source(every)])


def first_token() -> str:
    """Milliseconds until the first token."""
    found = _rows("time_to_first_token")
    if not found:
        return COMMAND
    lines = ["| case | method | first token, ms | beside the whole cache |", "| --- | --- | --- | --- |"]
    for case, rows in found.items():
        whole = rows["whole cache"]["value"]
        for name, row in rows.items():
            low, high = row["spread"]["min"], row["spread"]["max"]
            beside = f"{row['value'] / whole - 1:+.1%}"
            lines.append(f"| {_short(case)} | {name} | {row['value']:.0f} ({low:.0f} to {high:.0f}) | {beside} |")
    return "\n".join([*lines, "", _source([row for rows in found.values() for row in rows.values()])])


def _rows(metric: str) -> Rows:
    found: Rows = {}
    for row in read("compression_speed"):
        if row["metric"] == metric and row["case"].startswith("Qwen2 7B"):
            found.setdefault(row["case"], {})[row["method"]] = row
    return found


def _pace(row: dict[str, Any], whole: dict[str, Any]) -> str:
    return f"{row['value']:.2f}: {whole['value'] / row['value']:.2f} of {whole['bound'] / row['bound']:.2f}"


def _short(case: str) -> str:
    parts = case.split(", ")
    return ", ".join([*parts[2:4], *parts[5:]])


def _source(rows: list[dict[str, Any]]) -> str:
    first = rows[0]
    return (
        f"Qwen2 7B shape, bfloat16, budget {first['case'].split('budget ')[1].split(',')[0]}; {first['device']}, torch"
        f" {first['versions']['torch']}, transformers {first['versions']['transformers']}; commit {commits_of(rows)}."
    )


def speculation() -> str:
    """Decoders that draft on compressed caches: how fast, and how fast the product of both speed-ups would be."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in read("compression_speculation"):
        groups.setdefault((row["case"], row["device"]), []).append(row)
    if not groups:
        return "No rows yet: run `python -m benchmarks.compression.speculation --model MODEL --prompts PROMPTS`."
    return "\n\n".join(_one_model(case, device, rows) for (case, device), rows in groups.items())


def _one_model(case: str, device: str, rows: list[dict[str, Any]]) -> str:
    lines = [
        f"| {case} | ms a token | times as fast | product | tokens a step | same text | spread of repeats |",
        "| --- |" + " --- |" * 6,
    ]
    for row in rows:
        both = row["decoder"] != rows[0]["decoder"] and row["cache"] != rows[0]["cache"]
        lines.append(
            f"| {row['method']} | {row['value']:.1f} ({row['spread']['min']:.1f} to {row['spread']['max']:.1f}) |"
            f" {_range(row['speedup'])} | {_range(row['product']) if both else ''} | {row['acceptance']:.2f} |"
            f" {row['same_text']} of {row['runs']} | {row['run_spread']:.0%} |"
        )
    first = rows[0]
    note = (
        f"Median (lowest to highest) of {first['runs']} prompts, each the median of {first['repeats']} repeats; the"
        " last column is the range of a prompt's repeats, as a share of their median. 'Same text': as one token at a"
        f" time writes on the same cache. {device}, torch {first['versions']['torch']}, transformers"
        f" {first['versions']['transformers']}; commit {commits_of(rows)}."
    )
    return "\n".join([*lines, "", note])


def _range(values: list[float]) -> str:
    return f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"


SPEED_TABLES: dict[str, Callable[[], str]] = {
    "compression_first_token": first_token,
    "compression_size": size,
    "compression_speculation": speculation,
    "compression_speed": speed,
}
