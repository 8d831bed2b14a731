"""The ceiling of parallel speculation: a perfect draft, targets of growing cost, with and without look-up.

    python -m benchmarks.decoding.ceiling --model MODEL [--shapes 3B 7B 14B 32B-48-heads] [--prompts FILE ...]
        [--figure FILE]

The draft is a pretrained model, the targets are the same model grown to larger shapes: they write the same text at the
cost of the shape, so every draft is right. ``c`` is how many steps of the draft take as long as one of the target.
Where a draft runs beside its target and each of its forwards gives one token, no text can be written more than ``c``
times as fast, however good the draft is (PEARL). With look-up a forward of the draft gives more (Double), so ``c`` is
no ceiling. For each target the number of draft forwards in a round is ``c``, rounded, and at most ``--most``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.decoding.grow import SHAPES, grow
from benchmarks.decoding.real_prompts import add_arguments, dtype, label, loaded, prompts_by_kind
from benchmarks.decoding.speculation import PLAIN, Measured, Prompts, measure, ours, step_ms
from benchmarks.rows import positive, replace, row
from saccade.common.files import replacing
from saccade.inference import Autoregressive, Double, Pearl


def measured(
    target: PreTrainedModel, draft: PreTrainedModel, prompts: Prompts, new: int, runs: int, most: int
) -> tuple[float, int, dict[tuple[str, str], Measured]]:
    """How many times as fast as autoregressive decoding PEARL and Double are with a target.

    Returns:
        Steps of the draft in the time of one of the target, draft forwards in a round, and what was measured.
    """
    some = next(iter(prompts.values()))[0]
    ratio = step_ms(target, some, [1])[0] / step_ms(draft, some, [1])[0]
    gamma = min(most, max(1, round(ratio)))
    decoders = {
        PLAIN: Autoregressive(),
        "Pearl": Pearl(draft, gamma, control="fixed"),
        "Double": Double(draft, gamma, control="fixed"),
    }
    written_by = {name: ours(decoder, target, new) for name, decoder in decoders.items()}
    found = measure(written_by, prompts, runs)
    for decoder in decoders.values():
        decoder.release()
    return ratio, gamma, found


def rows_of(
    case: str, ratio: float, gamma: int, found: dict[tuple[str, str], Measured], grown: bool = True
) -> list[dict[str, Any]]:
    """A row for each method and kind of prompts: the speed-up, with the ratio that bounds parallel speculation."""
    made = []
    for (name, kind), item in found.items():
        if name == PLAIN:
            continue
        same = item.texts == found[PLAIN, kind].texts
        extra = {"ratio": ratio, "gamma": gamma, "same_texts": same}
        if item.stats is not None:
            extra["tokens_a_round"] = item.stats.mean_acceptance_length
        made.append(
            row("ceiling", f"{case}, {kind}", name, "speedup", item.speedup, "x", bound=ratio, grown=grown, extra=extra)
        )
    return made


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws speed-ups over the ratio of speeds, with the ceiling of parallel speculation.

    Args:
        rows: Of :func:`rows_of`.
        path: The picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.add_subplot()
    kinds = list(dict.fromkeys(item["case"].rsplit(", ", 1)[1] for item in rows))
    for kind, mark in zip(kinds, "osv^D*PX<>" * len(kinds), strict=False):
        for name, colour in (("Pearl", "tab:gray"), ("Double", "tab:blue")):
            points = sorted(
                (item["ratio"], item["value"])
                for item in rows
                if item["method"] == name and item["case"].endswith(f", {kind}")
            )
            axes.plot(*zip(*points, strict=True), marker=mark, color=colour, label=f"{name}, {kind}")
    most = max(item["ratio"] for item in rows)
    axes.plot([1, most], [1, most], "k--", label="ceiling without look-up")
    axes.set(xlabel="draft steps in the time of one target step", ylabel="times faster than autoregressive")
    axes.legend(fontsize=7)
    with replacing(path) as temporary:
        drawn.savefig(temporary, dpi=150)


def main() -> None:
    """Measures all shapes, stores the rows and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, count=3)
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=["3B", "7B", "14B", "32B-48-heads"])
    parser.add_argument("--most", type=positive, default=16, help="most draft forwards in a round")
    parser.add_argument("--runs", type=positive, default=3)
    parser.add_argument("--figure", type=Path, help="where the figure goes")
    chosen = parser.parse_args()
    draft = loaded(chosen.model, chosen)
    prompts = prompts_by_kind(chosen.prompts, chosen.model, chosen.count, chosen.longest, chosen.kinds)
    rows: list[dict[str, Any]] = []
    for shape in chosen.shapes:
        small = loaded(chosen.model, argparse.Namespace(**vars(chosen) | {"device": "cpu"}))
        target = grow(small, SHAPES[shape], dtype=getattr(torch, dtype(chosen)), device=chosen.device)
        ratio, gamma, found = measured(target, draft, prompts, chosen.new_tokens, chosen.runs, chosen.most)
        made = rows_of(f"{label(chosen)}, grown to {shape}", ratio, gamma, found)
        replace(made)
        rows += made
        for item in made:
            print(json.dumps({key: item[key] for key in ("case", "method", "value", "ratio", "gamma", "same_texts")}))
        del target
    if chosen.figure:
        figure(rows, chosen.figure)


if __name__ == "__main__":
    main()
