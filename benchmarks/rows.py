"""Rows of measurements: one JSON object a line, with the spread over runs and where it was measured."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

from saccade.common.checks import leads_nowhere
from saccade.common.files import write_text
from saccade.common.provenance import provenance

RESULTS = Path(__file__).parent / "results"
IDENTITY = ("benchmark", "case", "method", "metric", "device")
"""A new row replaces an older one that has the same values of these keys."""


def positive(text: str) -> int:
    """Reads a whole number of at least 1 from the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)


def existing(text: str) -> str:
    """Reads the path of an existing file or folder from the command line."""
    if not Path(text).exists():
        raise argparse.ArgumentTypeError(f"there is no {text}: name an existing one, or run the command that makes it")
    return text


def model_place(text: str) -> str:
    """Reads a model from the command line: an existing folder, or a name of the Hugging Face hub (one slash)."""
    return existing(text) if leads_nowhere(text) else text


def row(
    benchmark: str,
    case: str,
    method: str,
    metric: str,
    values: Iterable[float],
    unit: str,
    *,
    bound: float | None = None,
    grown: bool = False,
    seed: int | None = None,
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Makes a row; its value is the median of the runs.

    Args:
        benchmark: Name of the benchmark, and of the file that the row goes to.
        case: Model shape, batch, prompt length and data, in words.
        method: What was measured.
        metric: Name of the figure.
        values: One figure for each run.
        unit: Of the figures.
        bound: The best figure that the hardware allows, where it is known.
        grown: Whether the model was grown (the same function in a larger shape).
        seed: Seed of the run.
        extra: Further entries, for example ``distinct_4``.
    """
    runs = list(values)
    origin = provenance(seed)
    origin.pop("command")
    origin["device"] = ", ".join(origin["device"])
    return {
        "benchmark": benchmark,
        "case": case,
        "method": method,
        "metric": metric,
        "value": median(runs),
        "unit": unit,
        "spread": {"min": min(runs), "median": median(runs), "max": max(runs)},
        "runs": len(runs),
        "bound": bound,
        "grown": grown,
        **(extra or {}),
        **origin,
    }


def spread(item: dict[str, Any]) -> str:
    """Median, minimum and maximum of a row's runs, as tables show them."""
    return f"{item['value']:.2f} ({item['spread']['min']:.2f} to {item['spread']['max']:.2f})"


def interval(item: dict[str, Any], name: str) -> str:
    """A figure of a row with its interval, as tables show them; an empty text where the row has none."""
    if item[name] is None:
        return ""
    low, high = item[f"{name}_interval"]
    return f"{item[name]:.2f} ({low:.2f} to {high:.2f})"


def equal_texts(item: dict[str, Any]) -> str:
    """How many texts equal the reference, and how many others rounding explains; empty where none is compared."""
    if item["identical_rows"] is None:
        return ""
    near = item.get("near_tie_rows")
    return f"{item['identical_rows']} of {item['rows']}" + (f", {near} near tie{'s' * (near > 1)}" if near else "")


def runs_of(made: dict[str, Any]) -> str:
    """How many runs a row's value was computed from, in words."""
    return "one run" if made["runs"] == 1 else f"median of {made['runs']} runs"


def commits_of(rows: list[dict[str, Any]]) -> str:
    """The commits that rows were measured at, each once; ``unknown`` for rows from a folder without git."""
    return ", ".join(dict.fromkeys((row["commit"] or "unknown")[:8] for row in rows))


def each_case(rows: list[dict[str, Any]], table: Callable[[list[dict[str, Any]]], str]) -> str:
    """One table for each case on each device, in the order of the rows."""
    cases = dict.fromkeys((row["case"], row["device"]) for row in rows)
    return "\n\n".join(table([row for row in rows if (row["case"], row["device"]) == key]) for key in cases)


def by_method(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Rows by method, then by metric."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["method"], {})[row["metric"]] = row
    return found


def read(benchmark: str) -> list[dict[str, Any]]:
    """Reads the committed rows of a benchmark; an empty list when it has not been run."""
    path = RESULTS / f"{benchmark}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def replace(rows: Iterable[dict[str, Any]]) -> None:
    """Writes rows; those that measured the same on the same device before are replaced.

    Several processes may call this at the same time: a lock makes one wait for the other.
    """
    new = list(rows)
    RESULTS.mkdir(exist_ok=True)
    folder = os.open(RESULTS, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        for benchmark in {item["benchmark"] for item in new}:
            mine = [item for item in new if item["benchmark"] == benchmark]
            identities = {tuple(item[key] for key in IDENTITY) for item in mine}
            kept = [item for item in read(benchmark) if tuple(item[key] for key in IDENTITY) not in identities]
            path = RESULTS / f"{benchmark}.jsonl"
            write_text(path, "".join(json.dumps(item) + "\n" for item in kept + mine))
    finally:
        os.close(folder)  # this ends the lock too
