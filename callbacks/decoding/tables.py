"""The tables of a decoding evaluation that are printed, and the notes below them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from saccade.callbacks.decoding.figures import size
from saccade.callbacks.decoding.report import DEGENERATE_BELOW
from saccade.common.progress import console

_MOST_NAMES = 5
_MEASURES = {"exact_match": "exact", "numeric_match": "number", "token_f1": "F1 of\nwords", "rouge_l": "ROUGE-L"}

Records = Sequence[Mapping[str, Any]]


def show(records: Records, trainer: Trainer | None = None) -> None:
    """Print the tables, and below them notes on rows that need care."""
    screen = console(trainer)
    screen.print(table(records))
    further = {
        "compressed caches": compression_table(records),
        "agreement with known answers": quality_table(records),
        "speed by category": category_table(records),
    }
    for title, grid in further.items():
        if grid is not None:
            screen.print(f"\n{title}", style="italic", highlight=False)
            screen.print(grid)
    for note in notes(records):
        screen.print(note, style="yellow", markup=False, highlight=False)


def _grid(title: str | None = None) -> Table:
    return Table(title=title, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def _of_all(records: Records) -> list[Mapping[str, Any]]:
    """The rows of all prompts."""
    return [row for row in records if row["category"] is None]


def _uncompressed(records: Records) -> Records:
    """The rows of decoders on the full cache, or if there are none all rows."""
    return [row for row in records if row["compression"] is None] or records


def table(records: Records) -> Table:
    """Make the table of all prompts, with a row for each decoder on the full cache, or if there are none for all."""
    rows = _of_all(_uncompressed(records))
    first = rows[0]
    greedy = "greedy" if first["greedy"] else "sampling"
    repeated = first["repeats"] > 1
    passes = f", {first['repeats']} passes" if repeated else ""
    ranks = f", {first['ranks']} processes" if first["ranks"] > 1 else ""
    grid = _grid(
        f"{first['prompts']} prompts of up to {first['prompt_length']} tokens, up to {first['max_new_tokens']} new, "
        f"{greedy}, {first['dtype']}{ranks}{passes}"
    )
    grid.add_column("decoder")
    scored = first["quality"]["slot_accuracy"] is not None
    headings = [
        "speed-\nup",
        "lowest-\nhighest" if repeated else "tokens/\nsecond",
        "ms a\ntoken",
        "tokens/\nforward",
        "accept-\nance",
        "same as\nbase",
        "distinct\n4-grams",
        *["facts\nright"] * scored,
    ]
    for heading in headings:
        grid.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        stats, quality = row["statistics"], row["quality"]
        grid.add_row(
            row["name"] + _loss(row),
            _times(row["speedup"]),
            _range(row["speedup_range"]) if repeated else f"{stats['tokens_per_second']:.1f}",
            "-" if row["ms_per_token"] is None else f"{row['ms_per_token']:.2f}",
            f"{stats['tokens_per_target_forward']:.2f}",
            f"{stats['draft_acceptance_rate']:.1%}" if stats["drafted"] else "-",
            _agreement(row),
            ("* " if quality["degenerate"] else "") + _percent(quality["distinct_4"]),
            *[_percent(quality["slot_accuracy"])] * scored,
        )
    grid.caption = f"distinct 4-grams of real text of the same length: {_percent(first['quality']['distinct_4_real'])}"
    return grid


def compression_table(records: Records) -> Table | None:
    """Make the table of decoders on full and on compressed caches; ``None`` if no cache is compressed."""
    rows = _of_all(records)
    if all(row["compression"] is None for row in rows):
        return None
    grid = _grid()
    grid.add_column("cache and decoder")
    headings = [
        "ms a\ntoken", "speed-\nup",
        "KV on\ndevice", "KV on\nhost", "tokens\nas full", "same as\nbase", "accept-\nance",
    ]  # fmt: skip
    for heading in headings:
        grid.add_column(heading, justify="right", no_wrap=True)
    cache = None
    for row in rows:
        made, stats = row["compression"], row["statistics"]
        kind = "full" if made is None else made["compressor"]
        if kind != cache:
            grid.add_row(kind, style="bold")
            cache = kind
        lossy = made is not None and not made["lossless_on_it"]
        grid.add_row(
            f"  {row['name'] + _loss(row) if made is None else made['decoder']}{' (lossy)' * lossy}",
            "-" if row["ms_per_token"] is None else f"{row['ms_per_token']:.2f}",
            _times(row["speedup"]),
            size(stats["kv_cache_bytes"]),
            size(stats["kv_host_bytes"]),
            "-" if made is None else _percent(made["tokens_as_full"]),
            _agreement(row),
            f"{stats['draft_acceptance_rate']:.1%}" if stats["drafted"] else "-",
        )
    grid.caption = "base: autoregressive decoding on the same cache; as full: the text of the full cache"
    return grid


def quality_table(records: Records) -> Table | None:
    """Make the table of how well answers agree with known ones; ``None`` if none are known."""
    rows = _of_all(records)
    if not rows[0]["quality"]["answers"]:
        return None
    grid = _grid()
    grid.add_column("decoder")
    for heading in _MEASURES.values():
        grid.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        grid.add_row(row["name"], *(_percent(row["quality"][measure]) for measure in _MEASURES))
    return grid


def category_table(records: Records) -> Table | None:
    """Make the table of speed-ups, or without a baseline of milliseconds a token; ``None`` without categories.

    Decoders on compressed caches are left out, as in the first table.
    """
    records = _uncompressed(records)
    named = [row for row in records if row["category"] is not None]
    if not named:
        return None
    relative = all(row["speedup"] is not None for row in records)
    names = [row["name"] for row in _of_all(records) if not (relative and row["baseline"])]
    if not names:
        return None
    grid = _grid()
    grid.add_column("category")
    for name in names:
        grid.add_column(name.replace("_", "_\n"), justify="right")
    by_place = {(row["category"], row["name"]): row for row in named}
    for category in dict.fromkeys(row["category"] for row in named):
        found = (by_place.get((category, name)) for name in names)
        grid.add_row(category, *("-" if row is None else _speed(row, relative) for row in found))
    return grid


def _speed(row: Mapping[str, Any], relative: bool) -> str:
    if relative:
        return _times(row["speedup"])
    return "-" if row["ms_per_token"] is None else f"{row['ms_per_token']:.2f}"


def notes(records: Records) -> list[str]:
    """Write one sentence for each result that needs care in its interpretation."""
    rows = _of_all(records)
    found = []
    for row in rows:
        agreement = row["agreement"]
        made = row["compression"]
        exact, base = (row["lossless"], "the baseline") if made is None else (made["lossless_on_it"], made["reference"])
        if exact and agreement and agreement["differing_rows"]:
            ties = agreement["near_tie_rows"]
            found.append(
                f"{row['name']}: {agreement['differing_rows']} of {row['statistics']['requests']} rows differ from "
                f"{base}, in {agreement['differing_tokens']} tokens; in {ties} of them both tokens of the first "
                f"difference are as good within the rounding of {row['dtype']}"
                + (f" (logits up to {agreement['near_tie_limit']:.2g} apart)." if agreement["near_tie_limit"] else ".")
                + _named(agreement.get("differing_prompts"))
            )
    for row in rows:
        if row["statistics"]["relaxed"]:
            share = f"{row['statistics']['relaxed_share']:.1%}"
            found.append(f"{row['name']}: {share} of its tokens are not those that the target itself would choose.")
    first = rows[0]
    known, asked = first["quality"]["answers"], first["statistics"]["requests"]
    if 0 < known < asked:
        known, asked = known // first["repeats"], asked // first["repeats"]
        found.append(f"Right answers are known to {known} of {asked} questions: agreement is measured on these.")
    if left_out := first["quality"]["turns_left_out"]:
        found.append(f"{left_out} later turns are left out, because the model's context has no room for them.")
    repeating = [row["name"] for row in rows if row["quality"]["degenerate"]]
    if repeating:
        found.append(
            f"* degenerate: the texts of {', '.join(repeating)} are repetitive (under {DEGENERATE_BELOW:.0%} of the "
            "real text's distinct 4-grams), which makes acceptance rates too high. Train longer, or sample."
        )
    return found


def _named(prompts: Sequence[str] | None) -> str:
    if not prompts:
        return ""
    more = f" and {len(prompts) - _MOST_NAMES} more" if len(prompts) > _MOST_NAMES else ""
    return f" Prompts: {', '.join(prompts[:_MOST_NAMES])}{more}."


def _loss(row: Mapping[str, Any]) -> str:
    """Label a decoder that is not lossless, with its share of relaxed tokens."""
    if row["lossless"] or row["compression"]:
        return ""
    stats = row["statistics"]
    return f" (lossy, {stats['relaxed_share']:.0%})" if stats["relaxed"] else " (lossy)"


def _agreement(row: Mapping[str, Any]) -> str:
    if row["agreement"] is None:
        return "-"
    return f"{row['agreement']['identical_rows']}/{row['statistics']['requests']}"


def _times(speedup: float | None) -> str:
    return "-" if speedup is None else f"{speedup:.2f}x"


def _range(ends: Sequence[float] | None) -> str:
    return "-" if ends is None or ends == [1.0, 1.0] else f"{ends[0]:.2f}-{ends[1]:.2f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
