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
        A figure of two panels. Lossy decoders are hatched and labelled.
    """
    height = max(3.4, 1.4 + 0.55 * len(records))
    canvas = Figure(figsize=(11.5, height), layout="constrained")
    left, right = canvas.subplots(1, 2, width_ratios=(1.25, 1.0))
    colours = {row["name"]: _COLOURS[place % len(_COLOURS)] for place, row in enumerate(records)}
    _speed_panel(left, records, colours)
    _acceptance_panel(right, records, colours)
    first = records[0]
    canvas.suptitle(
        f"{first['prompts']} prompts, up to {first['max_new_tokens']} new tokens, "
        f"{'greedy' if first['greedy'] else 'sampling'}, {first['dtype']}, {first['ranks']} process(es)",
        fontsize=10,
        color="#444444",
    )
    return canvas


def _speed_panel(axes: Any, records: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    relative = all(row["speedup"] is not None for row in records)
    values = [row["speedup"] if relative else row["statistics"]["tokens_per_second"] for row in records]
    background = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    for place, (row, value) in enumerate(zip(records, values, strict=True)):
        hatch = None if row["lossless"] else "///"
        axes.barh(place, value, color=colours[row["name"]], hatch=hatch, edgecolor="white", height=0.66)
        speed = f"{row['statistics']['tokens_per_second']:.0f} tokens/s"
        label = f"{value:.2f}x, {speed}" if relative else speed
        axes.text(value + 0.015 * max(values), place, label, va="center", fontsize=9, bbox=background)
    names = [row["name"] + ("" if row["lossless"] else " (lossy)") for row in records]
    axes.set_yticks(range(len(records)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, max([*values, 1e-9]) * 1.42)
    axes.set_xlabel("speed-up over autoregressive" if relative else "tokens per second")
    if relative:
        axes.axvline(1.0, color="#444444", linewidth=0.8, linestyle="--", zorder=0)
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
