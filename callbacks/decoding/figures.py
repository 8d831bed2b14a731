"""Figure of a decoding evaluation: speeds and accepted draft tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")


def figure(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the speed of each decoder, and beside it the number of draft tokens accepted in a round.

    Args:
        records: The rows.

    Returns:
        A figure of two panels, and of a third with the speeds in each category if there are categories. Lossy decoders
        are hatched and labelled. Lines at the ends of bars are the lowest and the highest of several passes.
    """
    rows = [row for row in records if row["category"] is None]
    categories = list(dict.fromkeys(row["category"] for row in records if row["category"] is not None))
    height = max(3.4, 1.4 + 0.55 * len(rows), 1.4 + 0.42 * len(categories))
    panels = 3 if categories else 2
    canvas = Figure(figsize=(11.5 if panels == 2 else 16.5, height), layout="constrained")
    axes = canvas.subplots(1, panels, width_ratios=(1.25, 1.0, 1.1)[:panels])
    colours = {row["name"]: _COLOURS[place % len(_COLOURS)] for place, row in enumerate(rows)}
    _speed_panel(axes[0], rows, colours)
    _acceptance_panel(axes[1], rows, colours)
    if categories:
        _category_panel(axes[2], records, categories, colours)
    first = rows[0]
    passes = f", {first['repeats']} passes" if first["repeats"] > 1 else ""
    ranks = f", {first['ranks']} processes" if first["ranks"] > 1 else ""
    canvas.suptitle(
        f"{first['prompts']} prompts, up to {first['max_new_tokens']} new tokens, "
        f"{'greedy' if first['greedy'] else 'sampling'}, {first['dtype']}{ranks}{passes}",
        fontsize=10,
        color="#444444",
    )
    return canvas


def _speed_panel(axes: Any, records: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    relative = all(row["speedup"] is not None for row in records)
    values = [row["speedup"] if relative else row["statistics"]["tokens_per_second"] for row in records]
    ends = [row["speedup_range"] if relative else None for row in records]
    background = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    for place, (row, value, end) in enumerate(zip(records, values, ends, strict=True)):
        hatch = None if row["lossless"] else "///"
        axes.barh(place, value, color=colours[row["name"]], hatch=hatch, edgecolor="white", height=0.66)
        if end is not None:
            axes.hlines(place, *end, color="#222222", linewidth=1.2)
            axes.plot(end, [place, place], linestyle="none", marker="|", markersize=7, color="#222222")
        speed = f"{row['statistics']['tokens_per_second']:.0f} tokens/s"
        label = f"{value:.2f}x, {speed}" if relative else speed
        at = max(value, *(end or ())) if end else value
        axes.text(at + 0.015 * max(values), place, label, va="center", fontsize=9, bbox=background)
    names = [row["name"] + ("" if row["lossless"] else " (lossy)") for row in records]
    axes.set_yticks(range(len(records)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, max([*values, *(end[1] for end in ends if end), 1e-9]) * 1.42)
    axes.set_xlabel("speed-up over autoregressive" if relative else "tokens per second")
    if relative:
        axes.axvline(1.0, color="#444444", linewidth=0.8, linestyle="--", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def _category_panel(
    axes: Any, records: Sequence[Mapping[str, Any]], categories: Sequence[str], colours: Mapping[str, str]
) -> None:
    relative = all(row["speedup"] is not None for row in records)
    for name, colour in colours.items():
        rows = [row for row in records if row["name"] == name and row["category"] is not None]
        if relative and rows and rows[0]["baseline"]:
            continue
        values = [row["speedup"] if relative else row["statistics"]["tokens_per_second"] for row in rows]
        places = [categories.index(row["category"]) for row in rows]
        axes.plot(values, places, linestyle="none", marker="o", markersize=5.5, color=colour, label=name)
    axes.set_yticks(range(len(categories)), categories)
    axes.set_ylim(len(categories) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("speed-up by category" if relative else "tokens per second by category")
    if relative:
        axes.axvline(1.0, color="#444444", linewidth=0.8, linestyle="--", zorder=0)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _acceptance_panel(axes: Any, records: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    drafting = [row for row in records if row["statistics"]["drafted"]]
    longest = 1
    for row in drafting:
        histogram = {int(key): count for key, count in row["statistics"]["acceptance_histogram"].items()}
        rounds = sum(histogram.values())
        longest = max(longest, *histogram)
        accepted = range(max(histogram) + 1)
        axes.plot(
            accepted,
            [100 * histogram.get(count, 0) / rounds for count in accepted],
            marker="o",
            markersize=3.5,
            linewidth=1.4,
            linestyle="-" if row["lossless"] else ":",
            color=colours[row["name"]],
            label=f"{row['name']}: {row['statistics']['tokens_per_target_forward']:.2f} tokens per target forward",
        )
    if drafting:
        axes.legend(frameon=False, fontsize=8)
        axes.set_xlim(-0.3, longest + 0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(0)
    else:
        axes.text(0.5, 0.5, "no decoder drafted tokens", ha="center", va="center", transform=axes.transAxes)
    axes.set_xlabel("draft tokens accepted in a round")
    axes.set_ylabel("share of rounds (%)")
    axes.spines[["top", "right"]].set_visible(False)
