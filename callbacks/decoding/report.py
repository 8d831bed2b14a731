"""Rows and table of a decoding evaluation."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from saccade.callbacks.decoding.figures import figure
from saccade.callbacks.decoding.totals import DecodingTotals
from saccade.common.files import replacing, write_json
from saccade.common.progress import console
from saccade.common.provenance import provenance
from saccade.common.records import plain
from saccade.inference import Decoder

DEGENERATE_BELOW = 0.7
"""Generated text is degenerate if its share of distinct 4-grams is below this times the real text's. Repetitive text is
easy to draft, so the acceptance rates of such a row are too high."""


def rows(
    decoders: Mapping[str, Decoder],
    totals: Mapping[str, DecodingTotals],
    *,
    baseline: str | None,
    comparable: bool,
    context: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Make one self-contained record for each decoder.

    Args:
        decoders: Decoders by name.
        totals: Their totals over all ranks.
        baseline: Name of the decoder that speed-ups are relative to; ``None`` if there is none.
        comparable: Whether the texts were compared token by token with those of the baseline.
        context: Entries that all rows share: prompts, limits, ranks.

    Returns:
        The rows of ``decoding.json``, in the order of ``decoders``.
    """
    seed = os.environ.get("PL_GLOBAL_SEED")  # set by Lightning's seed_everything
    origin = provenance(None if seed is None else int(seed))
    reference = totals[baseline].stats.tokens_per_second if baseline is not None else 0.0
    records = []
    for name, decoder in decoders.items():
        total = totals[name]
        stats = total.stats
        agreement = None
        if baseline is not None and comparable:
            differing = stats.requests - total.counts["identical_rows"]
            agreement = {
                "identical_rows": total.counts["identical_rows"],
                "differing_rows": differing,
                "differing_tokens": total.counts["differing_tokens"],
                # of the differing rows of a lossless decoder: those that differ first where the target nearly ties, and
                # the largest difference of logits that counted as nearly
                "near_tie_rows": total.counts["near_tie_rows"] if decoder.lossless else None,
                "near_tie_limit": total.near_tie_limit or None,
            }
        real, generated = total.real_distinct_4, total.distinct_4
        records.append(
            {
                "name": name,
                "decoder": type(decoder).__name__,
                "lossless": decoder.lossless,
                "baseline": name == baseline,
                "settings": settings(decoder),
                "speedup": stats.tokens_per_second / reference if reference > 0 else None,
                "statistics": stats.to_dict()
                | {"tokens_per_target_forward": stats.new_tokens / max(stats.target_forwards, 1)},
                "per_request": total.request_means(),
                "agreement": agreement,
                "quality": {
                    "distinct_4": generated,
                    "distinct_4_real": real,
                    "degenerate": None if generated is None or not real else generated < DEGENERATE_BELOW * real,
                    "slot_accuracy": total.slot_accuracy,
                    "retention": _ratio(total.slot_accuracy, totals[baseline].slot_accuracy if baseline else None),
                },
                **context,
                **origin,
            }
        )
    return records


def settings(decoder: Decoder) -> dict[str, Any]:
    """Return the settings of a decoder as values that JSON can represent; a model is represented by its path or id."""
    return plain(decoder) if is_dataclass(decoder) else {}


def logged(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a row that are logged, by the last part of their name; unknown numbers are left out."""
    values = {key: value for key, value in row["statistics"].items() if not isinstance(value, Mapping)}
    values |= {"speedup": row["speedup"], **row["quality"], **(row["agreement"] or {})}
    return {key: float(value) for key, value in values.items() if value is not None and math.isfinite(value)}


def write(records: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write ``decoding.json`` and ``decoding.png``, each completely or not at all.

    Args:
        records: The rows.
        folder: An existing folder.
    """
    write_json(folder / "decoding.json", list(records))
    with replacing(folder / "decoding.png") as partial:
        figure(records).savefig(partial, dpi=150)


def show(records: Sequence[Mapping[str, Any]], trainer: Trainer | None = None) -> None:
    """Print the table, and below it notes on rows that need care."""
    screen = console(trainer)
    screen.print(table(records))
    for note in notes(records):
        screen.print(note, style="yellow", markup=False, highlight=False)


def table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Make the table that is printed."""
    first = records[0]
    greedy = "greedy" if first["greedy"] else "sampling"
    grid = Table(
        title=f"{first['prompts']} prompts of up to {first['prompt_length']} tokens, up to {first['max_new_tokens']} "
        f"new, {greedy}, {first['dtype']}, {first['ranks']} process(es)",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    grid.add_column("decoder")
    headings = [
        "speed-\nup",
        "tokens/\nsecond",
        "target\nforwards",
        "tokens/\nforward",
        "accept-\nance",
        "same as\nbase",
    ]
    scored = first["quality"]["slot_accuracy"] is not None
    headings += ["distinct\n4-grams", *["facts\nright"] * scored]
    for heading in headings:
        grid.add_column(heading, justify="right", no_wrap=True)
    for row in records:
        stats, quality = row["statistics"], row["quality"]
        grid.add_row(
            row["name"] + _loss(row),
            "-" if row["speedup"] is None else f"{row['speedup']:.2f}x",
            f"{stats['tokens_per_second']:.1f}",
            f"{stats['target_forwards']}",
            f"{stats['tokens_per_target_forward']:.2f}",
            f"{stats['draft_acceptance_rate']:.1%}" if stats["drafted"] else "-",
            _agreement(row),
            ("* " if quality["degenerate"] else "") + _percent(quality["distinct_4"]),
            *[_percent(quality["slot_accuracy"])] * scored,
        )
    grid.caption = f"distinct 4-grams of real text of the same length: {_percent(first['quality']['distinct_4_real'])}"
    return grid


def notes(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write one sentence for each result that needs care in its interpretation."""
    found = []
    for row in records:
        agreement = row["agreement"]
        if row["lossless"] and agreement and agreement["differing_rows"]:
            ties = agreement["near_tie_rows"]
            found.append(
                f"{row['name']}: {agreement['differing_rows']} of {row['statistics']['requests']} rows differ from the "
                f"baseline, in {agreement['differing_tokens']} tokens; in {ties} of them both tokens of the first "
                f"difference are as good within the rounding of {row['dtype']}"
                + (f" (logits up to {agreement['near_tie_limit']:.2g} apart)." if agreement["near_tie_limit"] else ".")
            )
    for row in records:
        if row["statistics"]["relaxed"]:
            share = f"{row['statistics']['relaxed_share']:.1%}"
            found.append(f"{row['name']}: {share} of its tokens are not those that the target itself would choose.")
    repeating = [row["name"] for row in records if row["quality"]["degenerate"]]
    if repeating:
        found.append(
            f"* degenerate: the texts of {', '.join(repeating)} are repetitive (under {DEGENERATE_BELOW:.0%} of the "
            "real text's distinct 4-grams), which makes acceptance rates too high. Train longer, or sample."
        )
    return found


def _loss(row: Mapping[str, Any]) -> str:
    """Label a decoder that is not lossless, with its share of relaxed tokens."""
    if row["lossless"]:
        return ""
    stats = row["statistics"]
    return f" (lossy, {stats['relaxed_share']:.0%})" if stats["relaxed"] else " (lossy)"


def _agreement(row: Mapping[str, Any]) -> str:
    if row["agreement"] is None:
        return "-"
    return f"{row['agreement']['identical_rows']}/{row['statistics']['requests']}"


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
