"""Figure of a decoding evaluation: speeds and accepted draft tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")


def figure(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the speed of each decoder, and beside it the number of draft tokens accepted in a round.

    Args:
        records: The rows.

    Returns:
        A figure of two panels, of a third with the sizes of caches if some are compressed, and of one more with the
        speeds in each category if there are categories. Decoders whose text need not be the model's own are hatched,
        lossy ones and those on a compressed cache. Lines at the ends of bars are the lowest and the highest of several
        passes. A decoder has one colour on all caches, and a cache one marker.
    """
    rows = [row for row in records if row["category"] is None]
    categories = list(dict.fromkeys(row["category"] for row in records if row["category"] is not None))
    compressed = any(row["compression"] for row in rows)
    height = max(3.4, 1.4 + (0.4 if compressed else 0.55) * len(rows), 1.4 + 0.42 * len(categories))
    widths = [1.25, *[0.9] * compressed, 1.0, *[1.1] * bool(categories)]
    canvas = Figure(figsize=(1.5 + 5 * (len(widths) - bool(compressed)) + 4 * compressed, height), layout="constrained")
    axes = list(canvas.subplots(1, len(widths), width_ratios=widths))
    styles = _styles(rows)
    _speed_panel(axes.pop(0), rows, styles)
    if compressed:
        _cache_panel(axes.pop(0), rows, styles)
    _acceptance_panel(axes.pop(0), rows, styles)
    if categories:
        _category_panel(axes.pop(0), records, categories, styles)
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


def _styles(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """By the name of a row, the colour of its decoder and the marker of its cache."""
    places = [(row["compression"] or {"decoder": row["name"], "compressor": None}) for row in rows]
    decoders = list(dict.fromkeys(place["decoder"] for place in places))
    caches = list(dict.fromkeys(place["compressor"] for place in places))
    return {
        row["name"]: (
            _COLOURS[decoders.index(place["decoder"]) % len(_COLOURS)],
            _MARKERS[caches.index(place["compressor"]) % len(_MARKERS)],
        )
        for row, place in zip(rows, places, strict=True)
    }


def size(amount: float) -> str:
    """A number of bytes in a unit that suits it; ``-`` for none.

    >>> size(0), size(1536), size(8 * 2**30)
    ('-', '1.5 KiB', '8.0 GiB')

    Args:
        amount: Bytes.
    """
    if not amount:
        return "-"
    power = min(3, max(1, int(math.log2(amount) // 10)))
    return f"{amount / 2 ** (10 * power):.1f} {' KMG'[power]}iB"


def _cache_panel(axes: Any, records: Sequence[Mapping[str, Any]], styles: Mapping[str, tuple[str, str]]) -> None:
    """Bytes on the device and on the host, with the share of tokens that are those of the full cache."""
    largest = max(row["statistics"]["kv_cache_bytes"] + row["statistics"]["kv_host_bytes"] for row in records)
    for place, row in enumerate(records):
        colour, stats = styles[row["name"]][0], row["statistics"]
        device, host = stats["kv_cache_bytes"], stats["kv_host_bytes"]
        hatch = None if row["lossless"] else "///"
        axes.barh(place, device, color=colour, hatch=hatch, edgecolor="white", height=0.66)
        axes.barh(place, host, left=device, color=colour, alpha=0.3, edgecolor="white", height=0.66)
        label = size(device) + (f" + {size(host)}" if host else "") if device else "not known"
        if row["compression"] and row["compression"]["tokens_as_full"] is not None:
            label += f", {row['compression']['tokens_as_full']:.0%} as full"
        axes.text(device + host + 0.015 * largest, place, label, va="center", fontsize=9)
    axes.set_yticks(range(len(records)), [""] * len(records))
    axes.invert_yaxis()
    axes.set_xlim(0, max(largest, 1) * 1.9)
    axes.set_xticks([])
    axes.set_xlabel("key-value cache: device + host (light)\ntokens as on the full cache")
    axes.spines[["top", "right"]].set_visible(False)


def _speed_panel(axes: Any, records: Sequence[Mapping[str, Any]], styles: Mapping[str, tuple[str, str]]) -> None:
    relative = all(row["speedup"] is not None for row in records)
    values = [row["speedup"] if relative else row["statistics"]["tokens_per_second"] for row in records]
    ends = [row["speedup_range"] if relative else None for row in records]
    background = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    for place, (row, value, end) in enumerate(zip(records, values, ends, strict=True)):
        hatch = None if row["lossless"] else "///"
        axes.barh(place, value, color=styles[row["name"]][0], hatch=hatch, edgecolor="white", height=0.66)
        if end is not None:
            axes.hlines(place, *end, color="#222222", linewidth=1.2)
            axes.plot(end, [place, place], linestyle="none", marker="|", markersize=7, color="#222222")
        speed = f"{row['statistics']['tokens_per_second']:.0f} tokens/s"
        label = f"{value:.2f}x, {speed}" if relative else speed
        at = max(value, *(end or ())) if end else value
        axes.text(at + 0.015 * max(values), place, label, va="center", fontsize=9, bbox=background)
    names = [row["name"] + ("" if row["lossless"] or row["compression"] else " (lossy)") for row in records]
    axes.set_yticks(range(len(records)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, max([*values, *(end[1] for end in ends if end), 1e-9]) * 1.42)
    axes.set_xlabel("speed-up over autoregressive" if relative else "tokens per second")
    if relative:
        axes.axvline(1.0, color="#444444", linewidth=0.8, linestyle="--", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def _category_panel(
    axes: Any,
    records: Sequence[Mapping[str, Any]],
    categories: Sequence[str],
    styles: Mapping[str, tuple[str, str]],
) -> None:
    relative = all(row["speedup"] is not None for row in records)
    for name, (colour, marker) in styles.items():
        rows = [row for row in records if row["name"] == name and row["category"] is not None]
        if relative and rows and rows[0]["baseline"]:
            continue
        values = [row["speedup"] if relative else row["statistics"]["tokens_per_second"] for row in rows]
        places = [categories.index(row["category"]) for row in rows]
        axes.plot(values, places, linestyle="none", marker=marker, markersize=5.5, color=colour, label=name)
    axes.set_yticks(range(len(categories)), categories)
    axes.set_ylim(len(categories) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("speed-up by category" if relative else "tokens per second by category")
    if relative:
        axes.axvline(1.0, color="#444444", linewidth=0.8, linestyle="--", zorder=0)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _acceptance_panel(axes: Any, records: Sequence[Mapping[str, Any]], styles: Mapping[str, tuple[str, str]]) -> None:
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
            marker=styles[row["name"]][1],
            markersize=3.5,
            linewidth=1.4,
            linestyle="-" if row["lossless"] else ":",
            color=styles[row["name"]][0],
            label=f"{row['name']}: {row['statistics']['tokens_per_target_forward']:.2f}",
        )
    if drafting:
        axes.legend(frameon=False, fontsize=8, title="tokens per target forward", loc="upper right", title_fontsize=8)
        axes.set_xlim(-0.3, longest + 0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(0)
    else:
        axes.text(0.5, 0.5, "no decoder drafted tokens", ha="center", va="center", transform=axes.transAxes)
    axes.set_xlabel("draft tokens accepted in a round")
    axes.set_ylabel("share of rounds (%)")
    axes.spines[["top", "right"]].set_visible(False)
