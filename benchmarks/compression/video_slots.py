"""What a vision-language model still tells of a video when its cache is compressed.

The model describes held-out clips of its run's ``config.yaml`` greedily, with the whole cache and with every compressor
at every budget; the facts that it tells right are counted, and compared clip by clip. Run:

    python -m benchmarks.compression.video_slots --model RUN/model
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import PreTrainedModel

from benchmarks.compression import quality
from benchmarks.rows import model_place, positive, read, replace, row
from benchmarks.video.prompts import HeldOut, allow, default_config, load
from saccade.inference import Autoregressive, CacheCompressor, HybridKV
from saccade.inference.compression.allocation import BudgetTooSmallError
from saccade.inference.huggingface.models import text_config
from saccade.retrieval.measures import paired_bootstrap

BUDGETS = (0.05, 0.1, 0.2, 0.5)
METHODS: dict[str, Callable[[float], CacheCompressor]] = {
    # a clip's prompt is short: 10 % of it has no room for the default's 36 first and last tokens and chunks of 16
    "HybridKV, short prompts": lambda budget: HybridKV(budget, chunk=4, recent=12),
    "HybridKV, short prompts, all static": lambda budget: HybridKV(budget, chunk=4, recent=12, theta=0),
} | {
    name: lambda budget, make=make: make(budget, [])  # type: ignore[misc]
    for name, make in quality.METHODS.items()
    if name not in ("HeadKV", "HybridKV, chunk 8")  # HeadKV needs heads that are scored on text with needles
}
"""The compressors by name, for a budget."""


@dataclass
class Told:
    """What the texts of all clips tell.

    Args:
        shares: Share of each clip's facts, by the clip's number.
        texts: New tokens of each clip.
        variety: ``distinct_4`` of the texts and of the clips' own captions.
    """

    shares: dict[str, float]
    texts: list[list[int]]
    variety: dict[str, Any]


def told(model: PreTrainedModel, data: HeldOut, size: int, new: int, compressor: CacheCompressor | None) -> Told:
    """Describes every clip once.

    Args:
        model: The model.
        data: The clips.
        size: Clips that are decoded together.
        new: Most new tokens of an answer.
        compressor: What compresses the cache; ``None`` keeps the whole.

    Raises:
        BudgetTooSmallError: The prompts are too short for the compressor's budget.
    """
    decoder = Autoregressive(compressor=compressor)
    batches = data.prepare(model, size)
    allow(model, max(batch.inputs["input_ids"].shape[1] for batch in batches) + new)
    shares: dict[str, float] = {}
    texts: list[list[int]] = []
    for batch in batches:
        made = decoder.generate(model, max_new_tokens=new, do_sample=False, **batch.inputs).tokens
        for item, text in zip(batch.items, made, strict=True):
            score = data.score(item, text)
            shares[str(item)] = score.right / max(1, score.asked)
        texts += made
    decoder.pool.clear()  # no decoder is used twice
    return Told(shares, texts, data.variety(texts))


def rows_of(case: str, found: dict[tuple[str, float], Told], tokens: int) -> list[dict[str, Any]]:
    """One row for each method and budget: the mean share of facts, and the difference from the whole cache.

    Args:
        case: The model and its clips in words.
        found: By method and budget; that of ``full`` at 1.0 is the reference.
        tokens: Video tokens of a prompt.
    """
    whole = found["full", 1.0]
    made = []
    for (method, budget), mine in found.items():
        against = paired_bootstrap(mine.shares, whole.shares)
        values = list(mine.shares.values())
        extra = {
            "budget": budget,
            "slot_accuracy": sum(values) / len(values),
            "minus_full": against.difference,
            "minus_full_interval": [against.low, against.high],
            "same_texts": sum(a == b for a, b in zip(mine.texts, whole.texts, strict=True)),
            "videos": len(values),
            "video_tokens": tokens,
            **mine.variety,
        }
        name = f"{case}, budget {budget:.0%}"
        value = [extra["slot_accuracy"]]
        made.append(row("compression_video", name, method, "slot_accuracy", value, "facts told right", extra=extra))
    return made


def compression_video() -> str:
    """Facts of held-out clips that are told with a compressed cache, one table for each case."""
    rows = read("compression_video")
    if not rows:
        return "No rows yet: run `python -m benchmarks.compression.video_slots --model RUN/model`."
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for item in rows:
        groups.setdefault((item["case"].rsplit(", budget", 1)[0], item["device"]), []).append(item)
    return "\n\n".join(_one_case(case, device, group) for (case, device), group in groups.items())


def _one_case(case: str, device: str, rows: Sequence[dict[str, Any]]) -> str:
    budgets = sorted({item["budget"] for item in rows if item["method"] != "full"})
    by_arm = {(item["method"], item["budget"]): item for item in rows}
    full = by_arm["full", 1.0]
    lines = [
        "| method | " + " | ".join(f"{budget:.0%}" for budget in budgets) + " |",
        "| --- |" + " --- |" * len(budgets),
        f"| whole cache: {100 * full['slot_accuracy']:.1f} |" + " |" * len(budgets),
    ]
    for method in dict.fromkeys(item["method"] for item in rows if item["method"] != "full"):
        arms = (by_arm.get((method, budget)) for budget in budgets)
        lines.append(f"| {method} | " + " | ".join("" if arm is None else _cell(arm) for arm in arms) + " |")
    commits = ", ".join(sorted({str(item["commit"])[:8] for item in rows if item["commit"]}))
    note = (
        f"Facts told right of 100, less those with the whole cache, with the paired 95 % interval (bootstrap over"
        f" {full['videos']} clips); {case}; {device}, torch {full['versions']['torch']}; commit {commits}."
    )
    return "\n".join([*lines, "", note])


def _cell(item: dict[str, Any]) -> str:
    low, high = item["minus_full_interval"]
    return f"{100 * item['minus_full']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def main() -> None:
    """Measures, prints a table, and writes the rows after every method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=model_place, required=True, help="exported model of a run, RUN/model")
    parser.add_argument("--config", nargs="+", help="YAML files of the data; default: the one of the model's run")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", default=list(METHODS))
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS))
    parser.add_argument("--videos", type=positive, default=100)
    parser.add_argument("--batch", type=positive, default=50, help="videos that are decoded together")
    parser.add_argument("--new-tokens", type=positive, default=208)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args()
    dtype = torch.bfloat16 if torch.device(chosen.device).type == "cuda" else torch.float32
    model = load(chosen.model, dtype, chosen.device)
    data = HeldOut(chosen.config or default_config(chosen.model), chosen.model, chosen.videos)
    found = {("full", 1.0): told(model, data, chosen.batch, chosen.new_tokens, None)}
    language = text_config(model)
    case = (
        f"{model.config.model_type}, language part of {language.num_hidden_layers} layers and width"
        f" {language.hidden_size:,}, {chosen.videos} held-out videos of {data.video_tokens} tokens"
    )
    settings = [(budget, name) for budget in chosen.budgets for name in chosen.methods]
    for budget, name in track(settings, description="compressing", console=Console(stderr=True)):
        try:
            found[name, budget] = told(model, data, chosen.batch, chosen.new_tokens, METHODS[name](budget))
        except BudgetTooSmallError as error:
            print(f"{name} is left out at {budget:.0%}: {error}")
            continue
        replace(rows_of(case, found, data.video_tokens))  # what is measured stays when the run is stopped
    table = Table("method", "budget", "facts told right, less those with the whole cache")
    for item in rows_of(case, found, data.video_tokens):
        table.add_row(item["method"], f"{item['budget']:.0%}", _cell(item))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
