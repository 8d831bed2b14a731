"""Speculation on compressed caches: is the speed-up of both the product of their speed-ups, and is the text the same?

Every prompt is continued greedily by every decoder on the whole cache and on each compressed one. The time of a token
is that of the decoding alone, behind the prefill, the median of the runs. Ways are measured in turn, so that a machine
that is busy for a while slows all of them; on a processor the time is that of the process. A decoder that drafts must
write what :class:`saccade.inference.Autoregressive` writes on the same cache; how many texts do is in the rows, as
rounding may part them where two tokens tie. Run:

    python -m benchmarks.compression.quality --model MODEL --length 1800 --count 1 --write-prompts PROMPTS
    python -m benchmarks.compression.speculation --model MODEL --prompts PROMPTS
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel

from benchmarks.decoding.real_prompts import fixed_decoders, label, loaded
from benchmarks.rows import existing, model_place, positive, replace, row
from saccade.common.timing import clock
from saccade.inference import Autoregressive, CacheCompressor, DecodingStats, HybridKV, SelfSpeculative, SnapKV
from saccade.inference.decoder import EngineDecoder

WHOLE = "whole cache"
CACHES: dict[str, Callable[[float], CacheCompressor | None]] = {
    WHOLE: lambda budget: None,
    "SnapKV": SnapKV,
    "HybridKV": HybridKV,
}
Way = tuple[str, str]  # decoder and cache


def decoders(model: PreTrainedModel, chosen: argparse.Namespace) -> dict[str, Any]:
    """The decoders by name, one token at a time first; drafts have a fixed length, so that they do not depend on time.

    Args:
        model: The target. Without a skip file, self-speculation skips every third attention of it.
        chosen: The arguments.
    """
    draft = loaded(chosen.draft, chosen) if chosen.draft else None
    found: dict[str, Any] = {"Autoregressive": Autoregressive()}
    found |= fixed_decoders(draft, chosen.skip, [chosen.draft_length])
    if chosen.skip is None:
        skip = {"attention": list(range(1, model.config.num_hidden_layers - 1, 3))}
        found[f"SelfSpeculative {chosen.draft_length}"] = SelfSpeculative(
            skip, chosen.draft_length, gamma=0.0, adaptive=False, control="fixed"
        )
    return found


def measured(
    model: PreTrainedModel, ways: dict[Way, EngineDecoder], prompt: Sequence[int], new_tokens: int, runs: int
) -> dict[Way, tuple[list[float], list[int], DecodingStats]]:
    """Milliseconds a token of every run, the text, and the statistics of the last run.

    Args:
        model: The target.
        ways: The decoders.
        prompt: Token ids.
        new_tokens: To write.
        runs: Of each way; on a GPU one more warms up.
    """
    times: dict[Way, list[float]] = {way: [] for way in ways}
    last: dict[Way, tuple[list[int], DecodingStats]] = {}
    warm_up = int(model.device.type == "cuda")
    for run in range(runs + warm_up):
        for way, decoder in ways.items():
            with decoder.start(model, [list(prompt)], max_new_tokens=new_tokens, eos_token_id=()) as steps:
                steps.prefill()
                begin = _seconds(model.device)
                while not steps.finished:
                    steps.step()
                taken = _seconds(model.device) - begin
                out = steps.output()
            last[way] = out.tokens[0], out.stats
            if run >= warm_up:
                times[way].append(1e3 * taken / (new_tokens - 1))
    return {way: (times[way], *last[way]) for way in ways}


def made(case: str, found: Sequence[dict[Way, tuple[list[float], list[int], DecodingStats]]]) -> list[dict[str, Any]]:
    """One row for each way; its runs are the prompts.

    Args:
        case: Model, tokens and budget.
        found: Of every prompt, by :func:`measured`.
    """
    result = []
    base = next(iter(found[0]))[0]
    pace = [{way: median(times) for way, (times, _, _) in each.items()} for each in found]
    for decoder, cache in found[0]:
        own = decoder, cache
        alone = [(each[base, WHOLE] / each[decoder, WHOLE], each[base, WHOLE] / each[base, cache]) for each in pace]
        both = [each[base, WHOLE] / each[own] for each in pace]
        product = [first * second for first, second in alone]
        extra = {
            "decoder": decoder,
            "cache": cache,
            "speedup": _middle(both),
            "product": _middle(product),
            "same_text": sum(each[own][1] == each[base, cache][1] for each in found),
            "acceptance": fmean(each[own][2].mean_acceptance_length for each in found),
            "run_spread": median((max(each[own][0]) - min(each[own][0])) / median(each[own][0]) for each in found),
            "repeats": len(found[0][own][0]),
        }
        values = [each[own] for each in pace]
        result.append(
            row("compression_speculation", case, f"{decoder}, {cache}", "ms_per_token", values, "ms", extra=extra)
        )
    return result


def _seconds(device: torch.device) -> float:
    """The time on a GPU; on a processor that of this process, which others on the same machine lengthen less."""
    return clock(device) if device.type == "cuda" else time.process_time()


def _middle(values: Sequence[float]) -> list[float]:
    return [median(values), min(values), max(values)]


def main() -> None:
    """Measures all prompts and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=model_place, required=True, help="folder or name of the target")
    parser.add_argument("--draft", type=model_place, help="a draft model, for assisted decoding")
    parser.add_argument("--skip", type=existing, help="skip_layers.json of the target; default: every third attention")
    parser.add_argument("--label", help="what the models are, in words, for the rows; default: their folders")
    parser.add_argument("--prompts", type=existing, required=True, help="that quality --write-prompts wrote")
    parser.add_argument("--tasks", nargs="+", help="prompts of these tasks; default: all")
    parser.add_argument("--count", type=positive, default=6, help="prompts, the first ones")
    parser.add_argument("--caches", nargs="+", choices=CACHES, metavar="CACHE", default=list(CACHES))
    parser.add_argument("--budget", type=float, default=0.1)
    parser.add_argument("--draft-length", type=positive, default=4)
    parser.add_argument("--new-tokens", type=positive, default=64)
    parser.add_argument("--runs", type=positive, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float64", "float32", "bfloat16"), help="bfloat16 on a GPU, else float32")
    chosen = parser.parse_args()
    model = loaded(chosen.model, chosen)
    items = [json.loads(line) for line in Path(chosen.prompts).read_text(encoding="utf-8").splitlines()]
    items = [item for item in items if not chosen.tasks or item["task"] in chosen.tasks][: chosen.count]
    if not items:
        parser.error(f"--prompts must have prompts of --tasks, got none in {chosen.prompts}: name others.")
    ways: dict[Way, EngineDecoder] = {}
    for cache in dict.fromkeys([WHOLE, *chosen.caches]):
        for name, decoder in decoders(model, chosen).items():
            decoder.compressor = CACHES[cache](chosen.budget)
            ways[name, cache] = decoder
    console = Console(soft_wrap=True, highlight=False)
    tokens = round(median(len(item["prompt"]) for item in items))
    case = f"{label(chosen)}, {tokens} tokens, budget {chosen.budget}"
    found = []
    for item in items:
        found.append(measured(model, ways, item["prompt"], chosen.new_tokens, chosen.runs))
        lines = made(case, found)
        replace(lines)  # what is measured stays if the rest is cut off
        console.print(f"{item['task']} {item['number']}", markup=False)
    for line in lines:
        console.print(
            f"{line['method']}: {line['value']:.2f} ms, {line['speedup'][0]:.2f} times, product"
            f" {line['product'][0]:.2f}, {line['same_text']} of {line['runs']} texts the same",
            markup=False,
        )


if __name__ == "__main__":
    main()
