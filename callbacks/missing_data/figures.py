"""Figures of a missing-data evaluation: metrics and weights over the missing rate and for each pattern."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from saccade.datamodules.multimodal.batch import MODALITIES

NAMES = ("missing_rates", "missing_patterns", "missing_weights")
"""Names of the figures, without file ending."""

Row = Mapping[str, Any]

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
_GREY = "#666666"
# panels from left to right: metric, its axis, its scale
_PANELS = (
    ("mae", "MAE (lower is better)", 1.0),
    ("acc_2_has0", "Acc-2 with neutral (%)", 100.0),
    ("acc_2", "Acc-2 (%)", 100.0),
    ("accuracy", "accuracy (%)", 100.0),
    ("corr", "correlation", 1.0),
    ("f1", "weighted F1 (%)", 100.0),
)


def figures(records: Sequence[Row]) -> dict[str, Figure]:
    """Draw the figures for which the rows contain data.

    Args:
        records: Rows of ``missing.json``.

    Returns:
        Up to three figures, by their names in `NAMES`.
    """
    made = {
        "missing_rates": rates_figure(records),
        "missing_patterns": patterns_figure(records),
        "missing_weights": weights_figure(records),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def rates_figure(records: Sequence[Row]) -> Figure | None:
    """Draw metrics over the missing rate, with a band of one standard deviation over mask seeds.

    Groups that are one curve share the first row of panels; a group with a curve for each pattern has its own row, with
    the complete pattern's curve for comparison. The dashed line is the best constant prediction.

    Args:
        records: The rows.

    Returns:
        The figure; None if no group is a curve.
    """
    single, several = [], {}
    for name, members in _groups(records).items():
        curves = _curves(name, members)
        if len(curves) == 1:
            single += curves
        elif curves:
            several[name] = curves
    # the reference for all rows is the longest curve that begins with the complete data
    reference = max((curve for curve in single if curve[1][0]["x"] == 0), key=lambda curve: len(curve[1]), default=None)
    panels = ([("", single)] if single else []) + list(several.items())
    if not panels:
        return None
    metrics = _metrics(records[0], 3)
    spaced = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.08)
    canvas = Figure(figsize=(3.4 * len(metrics) + 2.4, 0.5 + 2.9 * len(panels)), layout=spaced)
    grid = canvas.subplots(len(panels), len(metrics), squeeze=False)
    for place, (title, curves) in enumerate(panels):
        for axes, (metric, label, scale) in zip(grid[place], metrics, strict=True):
            if title and reference is not None:
                _line(axes, reference, metric, scale, "#bbbbbb")
            for colour, curve in zip(_cycle(len(curves)), curves, strict=True):
                _line(axes, curve, metric, scale, colour)
            _constant(axes, records[0], metric, scale, axes.axhline)
            axes.set_xlabel("missing rate")
            axes.set_ylabel(label)
            axes.spines[["top", "right"]].set_visible(False)
        if title:
            grid[place][0].set_title(f"{title}: by available modalities", loc="left", fontsize=10)
        # the first panel's legend, beside the last panel: only the first certainly has every line
        handles = grid[place][0].get_legend_handles_labels()
        place_right = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5)}
        grid[place][-1].legend(*handles, frameon=False, fontsize=8, **place_right)
    _title(canvas, records[0])
    return canvas


def patterns_figure(records: Sequence[Row]) -> Figure | None:
    """Draw bars for every condition of the groups that are not curves, such as patterns of modalities.

    Args:
        records: The rows.

    Returns:
        The figure; None if all groups are curves.
    """
    groups = {name: members for name, members in _groups(records).items() if not _curves(name, members)}
    if not groups:
        return None
    metrics = _metrics(records[0], 2)
    sizes = [len(members) + 1 for members in groups.values()]
    canvas = Figure(
        figsize=(4.2 * len(metrics) + 2.0, 1.2 + 0.3 * sum(sizes) + 0.7 * len(groups)), layout="constrained"
    )
    grid = canvas.subplots(len(groups), len(metrics), squeeze=False, height_ratios=sizes, sharex="col")
    means = {row["name"]: row for row in records if row["kind"] == "group"}
    for place, (name, members) in enumerate(groups.items()):
        for column, (metric, label, scale) in enumerate(metrics):
            axes = grid[place][column]
            shown = [*members, means[name]]
            texts = [_text(row, metric, scale) for row in shown]
            lengths = [scale * (row["metrics"][metric]["mean"] or 0.0) for row in shown]
            errors = [scale * (row["metrics"][metric]["sd"] or 0.0) for row in shown]
            colours = [_COLOURS[0]] * len(members) + ["#bbbbbb"]
            axes.barh(range(len(shown)), lengths, xerr=errors, color=colours, height=0.7, error_kw={"linewidth": 0.9})
            for at, (length, error, text) in enumerate(zip(lengths, errors, texts, strict=True)):
                axes.annotate(
                    text, (max(length, 0.0) + error, at), (4, 0), textcoords="offset points", va="center", fontsize=8
                )
            names = [*(row["name"] for row in members), f"mean of {len(means[name]['conditions'])}"]
            axes.set_yticks(range(len(shown)), names if column == 0 else [""] * len(shown), fontsize=9)
            axes.tick_params(axis="y", length=0)
            axes.invert_yaxis()
            _constant(axes, records[0], metric, scale, axes.axvline)
            axes.margins(x=0.16)
            axes.spines[["top", "right"]].set_visible(False)
            if place == len(groups) - 1:
                axes.set_xlabel(label)
        grid[place][0].set_title(name, loc="left", fontsize=10)
    handles, labels = grid[0][0].get_legend_handles_labels()
    if handles:
        canvas.legend(handles, labels, frameon=False, fontsize=8, loc="outside lower right")
    _title(canvas, records[0])
    return canvas


def weights_figure(records: Sequence[Row]) -> Figure | None:
    """Draw the mean weight of each modality over the missing rate and for each pattern, and the learned floors.

    Args:
        records: The rows.

    Returns:
        The figure; None for a model without weights and floors.
    """
    groups = {name: rows for name, rows in _groups(records).items() if all(row["weights"] for row in rows)}
    curve = next((curves[0] for name, rows in groups.items() if len(curves := _curves(name, rows)) == 1), None)
    bars = next(((name, rows) for name, rows in groups.items() if not _curves(name, rows)), None)
    floors = records[0]["floors"]
    widths = [width for width, shown in ((1.25, curve), (1.35, bars), (0.9, floors)) if shown]
    if not widths:
        return None
    rows = max(len(bars[1]) if bars else 0, len(floors))
    canvas = Figure(figsize=(3.5 * sum(widths) + 0.6, max(3.6, 1.7 + 0.3 * rows)), layout="constrained")
    panels = list(canvas.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0])
    if curve:
        _weight_curves(panels.pop(0), *curve)
    if bars:
        _weight_bars(panels.pop(0), *bars)
    if floors:
        _floors(panels.pop(0), floors)
    _title(canvas, records[0])
    return canvas


def _weight_curves(axes: Any, name: str, members: Sequence[Row]) -> None:
    x = [row["x"] for row in members]
    for colour, modality in zip(_COLOURS, MODALITIES, strict=False):
        mean = [row["weights"][modality]["mean"] for row in members]
        sd = [row["weights"][modality]["sd"] or 0.0 for row in members]
        axes.plot(x, mean, marker="o", markersize=3.5, linewidth=1.4, color=colour, label=modality)
        _band(axes, x, mean, sd, colour)
    axes.set_ylim(0, 1)
    axes.set_xlabel(f"missing rate ({name})")
    axes.set_ylabel("mean weight")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _weight_bars(axes: Any, name: str, members: Sequence[Row]) -> None:
    start = [0.0] * len(members)
    for colour, modality in zip(_COLOURS, MODALITIES, strict=False):
        share = [row["weights"][modality]["mean"] for row in members]
        axes.barh(range(len(members)), share, left=start, color=colour, height=0.7, label=modality)
        for place, (left, width) in enumerate(zip(start, share, strict=True)):
            if width >= 0.12:
                axes.text(left + width / 2, place, f"{width:.2f}", ha="center", va="center", fontsize=8, color="white")
        start = [left + width for left, width in zip(start, share, strict=True)]
    axes.set_yticks(range(len(members)), [row["name"] for row in members], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"mean weight ({name})")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _floors(axes: Any, floors: Mapping[str, Sequence[float]]) -> None:
    for place, (name, values) in enumerate(floors.items()):
        colour = next((c for c, modality in zip(_COLOURS, MODALITIES, strict=False) if modality in name), _GREY)
        axes.plot(values, [place] * len(values), marker="o", markersize=4.5, alpha=0.55, linestyle="none", color=colour)
    axes.set_yticks(range(len(floors)), list(floors), fontsize=9)
    axes.set_ylim(len(floors) - 0.5, -0.5)
    axes.set_xlim(0, 1.1 * max((max(values, default=0.0) for values in floors.values()), default=0.0) or 1.0)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.set_xlabel("learned floors")
    axes.spines[["top", "right"]].set_visible(False)


def _groups(records: Sequence[Row]) -> dict[str, list[Row]]:
    """Group the rows of conditions."""
    found: dict[str, list[Row]] = {}
    for row in records:
        if row["kind"] == "condition":
            found.setdefault(row["group"], []).append(row)
    return found


def _curves(name: str, members: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Return a group as curves over the rate: one with its name, or one for each pattern of modalities, or none."""
    if _distinct(members):
        return [(name, sorted(members, key=lambda row: row["x"]))]
    patterns: dict[str, list[Row]] = {}
    for row in members:
        patterns.setdefault("+".join(row["condition"]["present"]), []).append(row)
    if not all(_distinct(rows) for rows in patterns.values()):
        return []
    return [(pattern, sorted(rows, key=lambda row: row["x"])) for pattern, rows in patterns.items()]


def _distinct(members: Sequence[Row]) -> bool:
    return len(members) >= 3 and len({row["x"] for row in members}) == len(members)


def _metrics(first: Row, most: int) -> list[tuple[str, str, float]]:
    return [panel for panel in _PANELS if panel[0] in first["metrics"]][:most]


def _cycle(count: int) -> list[str]:
    return [_COLOURS[place % (len(_COLOURS) - 1)] for place in range(count)]


def _line(axes: Any, curve: tuple[str, list[Row]], metric: str, scale: float, colour: str) -> None:
    name, members = curve
    kept = [row for row in members if row["metrics"][metric]["mean"] is not None]
    x = [row["x"] for row in kept]
    mean = [scale * row["metrics"][metric]["mean"] for row in kept]
    sd = [scale * (row["metrics"][metric]["sd"] or 0.0) for row in kept]
    axes.plot(x, mean, marker="o", markersize=3.5, linewidth=1.4, color=colour, label=name)
    _band(axes, x, mean, sd, colour)


def _band(axes: Any, x: Sequence[float], mean: Sequence[float], sd: Sequence[float], colour: str) -> None:
    low, high = ([m + sign * s for m, s in zip(mean, sd, strict=True)] for sign in (-1, 1))
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def _constant(axes: Any, first: Row, metric: str, scale: float, draw: Any) -> None:
    if metric in first["constant"]:
        draw(scale * first["constant"][metric], color=_GREY, linewidth=0.9, linestyle="--", label="best constant")


def _text(row: Row, metric: str, scale: float) -> str:
    value = row["metrics"][metric]["mean"]
    return "-" if value is None else f"{scale * value:.1f}" if scale > 1 else f"{value:.3f}"


def _title(canvas: Figure, first: Row) -> None:
    dataset = f" of {first['dataset']}" if first["dataset"] else ""
    canvas.suptitle(
        f"{first['module']}, {first['samples']} samples{dataset}, mean and standard deviation over "
        f"{first['mask_seeds']} mask seed(s), masks {first['masks']}",
        fontsize=10,
        color="#444444",
    )
