"""Quality of every compressor on a pretrained model: does a compressed cache still know what stood in a long prompt?

Every prompt is read once; each compressor then gets the same whole cache at every budget, and goes on with the known
answer (:mod:`benchmarks.compression.long_prompts`). So all differences are paired. A line is written for each prompt,
method and budget as soon as it is measured; the rows follow from these lines. Run:

    python -m benchmarks.compression.quality --model MODEL --length 8192 --raw smol.jsonl
    python -m benchmarks.compression.quality --read smol.jsonl kvpress.jsonl
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer

from benchmarks.compression.long_prompts import TASKS, LongPrompt, Maker, Sources
from benchmarks.compression.quality_rows import publish
from benchmarks.compression.reading import WIDEST, Reading
from benchmarks.decoding.real_prompts import dtype, loaded
from benchmarks.rows import existing, model_place, positive
from saccade.common.provenance import provenance
from saccade.inference import (
    AdaKV,
    CacheCompressor,
    FullKV,
    HeadKV,
    HybridKV,
    LookM,
    PyramidKV,
    Quest,
    RandomKV,
    SnapKV,
    StreamingLLM,
    VLCache,
)
from saccade.inference.compression.allocation import BudgetTooSmallError
from saccade.inference.compression.baselines.head_kv import needle_scores

BUDGETS = (0.05, 0.1, 0.2, 0.5)
CALIBRATION = 1_000_000  # prompts from this number on are those that heads are scored on

METHODS: dict[str, Callable[[float, list[list[float]]], CacheCompressor]] = {
    "HybridKV": lambda budget, scores: HybridKV(budget),
    "HybridKV, 8 bits": lambda budget, scores: HybridKV(budget, host_bits=8),
    "HybridKV, 4 bits": lambda budget, scores: HybridKV(budget, host_bits=4),
    "HybridKV, all in 4 bits": lambda budget, scores: HybridKV(budget, host_bits=4, kept_bits=4),
    "HybridKV, chunk 8": lambda budget, scores: HybridKV(budget, chunk=8),
    "HybridKV, nothing pinned": lambda budget, scores: HybridKV(budget, pinned=0.0),
    "HybridKV, threshold 0.9": lambda budget, scores: HybridKV(
        budget, window=64, theta=0.9, sparsity="threshold", ratio=4.0, pinned=0.0
    ),
    "HybridKV, all static": lambda budget, scores: HybridKV(budget, theta=0),
    "SnapKV": lambda budget, scores: SnapKV(budget),
    "PyramidKV": lambda budget, scores: PyramidKV(budget),
    "AdaKV": lambda budget, scores: AdaKV(budget),
    "HeadKV": lambda budget, scores: HeadKV(scores, budget),
    "LOOK-M": lambda budget, scores: LookM(budget),
    "VL-Cache": lambda budget, scores: VLCache(budget),
    "StreamingLLM": lambda budget, scores: StreamingLLM(budget),
    "Quest": lambda budget, scores: Quest(budget),
    "random": lambda budget, scores: RandomKV(budget),
}
"""The compressors by name, for a budget and the scores of heads that :class:`HeadKV` needs."""


def head_scores(model: nn.Module, maker: Maker, samples: int = 4) -> list[list[float]]:
    """Scores of heads on prompts with a needle that are not among the measured ones.

    Args:
        model: The model.
        maker: Makes the prompts.
        samples: How many.
    """
    found = []
    for sample in range(samples):
        item = maker.make("needle", CALIBRATION + sample)
        with Reading(model, item.prompt, 1) as reading:
            found.append((reading.observation(SnapKV()), torch.tensor(item.planted)))
    return needle_scores(found)


def measured(
    reading: Reading, item: LongPrompt, arms: Iterator[tuple[str, float, CacheCompressor]], later: bool
) -> Iterator[dict[str, Any]]:
    """One line for each compressor: what its cache makes of the answer.

    Args:
        reading: The prompt in the whole cache.
        item: The prompt.
        arms: Method, budget and compressor.
        later: Whether the question is read behind the compression.
    """
    asked = item.prompt[-item.question :] if later else []
    length = len(item.prompt) - len(asked)
    for method, budget, compressor in arms:
        began = time.perf_counter()
        seen = reading.observation(compressor, length)
        try:
            plan = compressor.plan(seen)
        except BudgetTooSmallError:
            continue
        static = None
        if isinstance(compressor, HybridKV):
            static = float(compressor.roles(seen).static.float().mean())
        found = reading.outcome(reading.cache(plan, length), item.answer, asked)
        yield {
            "task": item.task, "number": item.number, "tokens": len(item.prompt), "later": later, "method": method,
            "budget": budget, **asdict(found), "static": static,
            "entries": plan.entries / (seen.units * length), "seconds": round(time.perf_counter() - began, 4),
        }  # fmt: skip


def arms(
    methods: list[str], budgets: list[float], scores: list[list[float]]
) -> Iterator[tuple[str, float, CacheCompressor]]:
    """The whole cache, and every method at every budget."""
    yield "full", 1.0, FullKV()
    for method in methods:
        for budget in budgets:
            yield method, budget, METHODS[method](budget, scores)


def run(chosen: argparse.Namespace) -> None:
    """Measures all prompts, and writes their lines to the raw file.

    Args:
        chosen: The arguments.
    """
    began = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(chosen.model)
    maker = Maker(Sources.at_hand(chosen.texts or (), chosen.problems), tokenizer, chosen.length, chosen.seed)
    tasks = chosen.tasks or maker.tasks
    if missing := [task for task in tasks if task not in maker.tasks]:
        raise SystemExit(f"--problems must name a file for the task {missing[0]}, got none: name one.")
    items = [maker.make(task, number) for number in range(chosen.count) for task in tasks]
    if chosen.write_prompts:
        Path(chosen.write_prompts).write_text("".join(json.dumps(asdict(item)) + "\n" for item in items))
    if chosen.raw is None:
        return
    model = loaded(chosen.model, chosen)
    origin = provenance(chosen.seed)
    shared = {"model": f"{chosen.label or Path(chosen.model).name}, {dtype(chosen)}", "length": chosen.length}
    shared["origin"] = {key: value for key, value in origin.items() if key != "command"}
    scores = head_scores(model, maker) if "HeadKV" in chosen.methods else []
    longest = 0.0
    with Path(chosen.raw).open("a", encoding="utf-8") as raw:
        for item in items:
            start = time.monotonic()
            if chosen.seconds and start + 1.2 * longest - began > chosen.seconds:
                print(f"{chosen.seconds} seconds are over before {item.task} {item.number}")
                break
            widest = WIDEST + chosen.later * item.question
            with Reading(model, item.prompt, len(item.answer), widest) as reading:
                for later in (False, True) if chosen.later else (False,):
                    for line in measured(reading, item, arms(chosen.methods, chosen.budgets, scores), later):
                        raw.write(json.dumps({**shared, **line}) + "\n")
            raw.flush()
            longest = max(longest, time.monotonic() - start)
            print(f"{item.task} {item.number}: {len(item.prompt)} tokens, {time.monotonic() - start:.1f} s", flush=True)


def main() -> None:
    """Measures, or makes the rows and the figure of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=model_place, help="folder or name of a language model, with its tokenizer")
    parser.add_argument("--label", help="what the model is, in words; default: its folder")
    parser.add_argument("--length", type=positive, default=8192, help="tokens of a prompt")
    parser.add_argument("--count", type=positive, default=6, help="prompts of each task")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="default: all that there is text for")
    parser.add_argument("--texts", nargs="+", type=existing, help="files of prose; default: the pages of help()")
    parser.add_argument("--problems", type=existing, help="JSON lines with question and answer, for the task problem")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", default=list(METHODS))
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS))
    parser.add_argument("--later", action="store_true", help="also with the question read behind the compression")
    parser.add_argument("--seconds", type=positive, help="begin no prompt that would end later than this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float64", "float32", "bfloat16"), help="bfloat16 on a GPU, else float32")
    parser.add_argument("--raw", help="file that a line is added to for each prompt, method and budget")
    parser.add_argument("--write-prompts", help="file for the prompts, as kvpress_rows reads them")
    parser.add_argument(
        "--read", nargs="+", type=existing, metavar="RAW", help="make rows of raw files, and the figure"
    )
    chosen = parser.parse_args()
    if chosen.read:
        publish(chosen.read)
    elif chosen.model is None or not (chosen.raw or chosen.write_prompts):
        parser.error("--model and --raw must be given, or --read: name a model and a file for its lines.")
    else:
        run(chosen)


if __name__ == "__main__":
    main()
