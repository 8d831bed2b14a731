"""Rows and figure of the quality of compressors, from the raw lines of their prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from benchmarks import rows
from saccade.retrieval.measures import paired_bootstrap

IMAGES = Path(__file__).parents[2] / "docs" / "images"
OURS = "HybridKV"
PEER = "kvpress "
COLOURS = (
    "#004488", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999933", "#cc6600", "#882255", "#44aa99",
    "#bbbbbb", "#666666", "#332288", "#ddaa33", "#bb5566",
)  # fmt: skip

Line = dict[str, Any]


def _scored(line: Line) -> list[bool]:
    """Which tokens are right, without the first one where it follows from the prefill, before anything is deleted."""
    right: list[bool] = line["right"]
    return right if line["later"] else right[1:]


def _exact(line: Line) -> float:
    """Whether greedy decoding writes the whole answer, in points."""
    return 100.0 * all(_scored(line))


def _tokens(line: Line) -> float:
    """Share of right tokens, in points."""
    return 100.0 * fmean(_scored(line))


def _loss(line: Line) -> float:
    """Nats of the whole answer."""
    return -sum(line["log_probability"])


MEASURES: dict[str, tuple[Callable[[Line], float], str]] = {
    "exact": (_exact, "points"),
    "tokens": (_tokens, "points"),
    "loss": (_loss, "nats"),
}
"""Answers that are right behind their first token, right tokens, minus the log-probability of answers; their units."""


def made(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """One row for each model, length, method, budget and measure.

    A row has the mean over prompts, that minus the whole cache's, and HybridKV's minus it, with 95 % intervals of the
    paired bootstrap over prompts, and the mean of each task.

    Args:
        lines: Of :func:`benchmarks.compression.quality.measured`.

    Raises:
        ValueError: A method was measured on prompts without the whole cache.
    """
    groups: dict[tuple[str, int, bool, str], list[Line]] = {}
    for line in lines:
        device = ", ".join(line["origin"]["device"])
        groups.setdefault((line["model"], line["length"], line["later"], device), []).append(line)
    found = []
    for (model, length, later, _), group in groups.items():
        arms: dict[tuple[str, float], dict[str, Line]] = {}
        for line in group:  # a prompt that was measured again counts once
            arms.setdefault((line["method"], line["budget"]), {})[f"{line['task']} {line['number']}"] = line
        case = f"{model}, {length} tokens" + (", question behind the compression" if later else "")
        full = arms.get(("full", 1.0), {})
        for (method, budget), prompts in arms.items():
            if odd := prompts.keys() - full.keys():
                raise ValueError(f"{method} needs the whole cache for the same prompts, got none for {min(odd)}.")
            ours = arms.get((OURS, budget), {})
            found += [_row(case, method, budget, name, prompts, full, ours) for name in MEASURES]
    return found


def _row(
    case: str,
    method: str,
    budget: float,
    measure: str,
    prompts: dict[str, Line],
    full: dict[str, Line],
    ours: dict[str, Line],
) -> dict[str, Any]:
    value, unit = MEASURES[measure]
    values = {name: value(line) for name, line in prompts.items()}
    tasks = dict.fromkeys(line["task"] for line in prompts.values())
    whole = fmean(full[name]["device_bytes"] for name in prompts)
    extra: dict[str, Any] = {
        "budget": budget,
        "mean": fmean(values.values()),
        "minus_full": _paired(values, full, value),
        "hybrid_minus_this": _paired(values, ours, value, -1),
        "by_task": {
            task: fmean(values[name] for name, line in prompts.items() if line["task"] == task) for task in tasks
        },
        "device_share": fmean(line["device_bytes"] for line in prompts.values()) / whole,
        "host_share": fmean(line["host_bytes"] for line in prompts.values()) / whole,
        "static": _mean_or_none([line.get("static") for line in prompts.values()]),
    }
    origin = next(iter(prompts.values()))["origin"]
    row = rows.row(
        "compression_quality", f"{case}, budget {budget:.0%}", method, measure, values.values(), unit, extra=extra
    )
    return row | {**origin, "device": ", ".join(origin["device"])}  # where it was measured, not where it is read


def _paired(
    values: dict[str, float], other: dict[str, Line], value: Callable[[Line], float], sign: int = 1
) -> list[float] | None:
    """Mean difference over the prompts of both, and its interval; ``None`` without such prompts."""
    shared = values.keys() & other.keys()
    if not shared:
        return None
    found = paired_bootstrap(
        {name: sign * values[name] for name in shared}, {name: sign * value(other[name]) for name in shared}
    )
    return [found.difference, found.low, found.high]


def _mean_or_none(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def publish(files: Sequence[str]) -> None:
    """Writes the rows of raw files and draws the figure of all rows that there are.

    Args:
        files: Raw files; those of the same model and length belong together.
    """
    lines = [json.loads(line) for path in files for line in Path(path).read_text(encoding="utf-8").splitlines()]
    rows.replace(made(lines))
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure(rows.read("compression_quality")).savefig(IMAGES / "compression_quality.png", dpi=110)


def figure(found: Sequence[dict[str, Any]]) -> Figure:
    """Exact answers and loss over the budget, one column for each model and length.

    Args:
        found: Rows of :func:`made`.
    """
    cases = list(dict.fromkeys((row["case"].rsplit(", budget", 1)[0], row["device"]) for row in found))
    most = max(row["runs"] for row in found)
    shown = [row for row in found if row["method"] != "full" and 2 * row["runs"] >= most]  # few prompts say little
    methods = list(dict.fromkeys(row["method"] for row in shown))
    drawing = Figure(figsize=(1.5 + 5 * len(cases), 8.6), layout="constrained")
    panels = drawing.subplots(2, len(cases), squeeze=False)
    for column, (case, device) in enumerate(cases):
        for axes, (measure, label) in zip(
            panels[:, column],
            (("exact", "exact answers, points"), ("loss", "loss of the answer behind that of the whole cache, nats")),
            strict=True,
        ):
            chosen = [
                row
                for row in found
                if row["case"].startswith(f"{case}, budget") and row["device"] == device and row["metric"] == measure
            ]
            _panel(axes, chosen, methods, measure)
            axes.set_ylabel(label)
        panels[0, column].set_title(case.replace(", ", ",\n", 1), fontsize=10)
    handles, names = panels[0, 0].get_legend_handles_labels()
    drawing.legend(handles, names, loc="outside right center", frameon=False, fontsize=9)
    return drawing


def _panel(axes: Any, found: list[dict[str, Any]], methods: list[str], measure: str) -> None:
    budgets = sorted({row["budget"] for row in found if row["method"] != "full"})
    full = next(row for row in found if row["method"] == "full")
    if measure == "exact":
        axes.axhline(full["mean"], color="black", linestyle="--", linewidth=1, label="whole cache")
    for place, method in enumerate(methods):
        points = sorted((row for row in found if row["method"] == method), key=lambda row: row["budget"])
        if not points:
            continue
        # the interval is that of the paired difference from the whole cache
        base = full["mean"] if measure == "exact" else 0.0
        middle, low, high = ([base + row["minus_full"][at] for row in points] for at in range(3))
        spread = [
            [max(0.0, mid - end) for mid, end in zip(middle, low, strict=True)],
            [max(0.0, end - mid) for mid, end in zip(middle, high, strict=True)],
        ]
        peer = method.startswith(PEER)  # of the same colour as the method of this project with the same name
        own = method.removeprefix(PEER)
        twin = methods.index(own) if own in methods else place
        shift = 1.008 ** (place - len(methods) / 2)
        axes.errorbar(
            [row["budget"] * shift for row in points], middle, yerr=spread, marker="o", markersize=4, capsize=2,
            linewidth=2.2 if method.startswith(OURS) else 1.1, color=COLOURS[twin % len(COLOURS)], label=method,
            linestyle="--" if peer else ":" if method.startswith(OURS) and method != OURS else "-",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(budgets, [f"{budget:.0%}" for budget in budgets])
    axes.minorticks_off()
    axes.set_xlabel("budget")
    if measure == "loss":
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=-0.5)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
