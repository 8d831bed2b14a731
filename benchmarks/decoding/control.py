"""What draft control costs and gains: every decoder with fixed lengths and with control, for each kind of prompt.

    python -m benchmarks.decoding.control --model TARGET [--draft DRAFT] [--skip FILE] [--prompts FILE ...]

The prompts are the built-in set of `saccade compare`, or files of the same form, in the chat form of the model. In each
run all decoders continue each prompt, greedily and up to EOS, in another order; the first run, in which graphs are
captured and costs are measured, is left out. The figure is the time of a token after the first, over all prompts of a
kind, and its ratio to autoregressive decoding in the same run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from statistics import median

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import PreTrainedModel

from benchmarks.decoding.coupling import loaded
from benchmarks.rows import existing, model_place, positive, replace, row
from saccade.datamodules import Prompts
from saccade.inference import AssistedDecoding, Autoregressive, Decoder, PromptLookup, SelfSpeculative

PLAIN = "Autoregressive"


def contenders(draft: PreTrainedModel | None, skip: str | None, lengths: Sequence[int]) -> dict[str, Decoder]:
    """Autoregressive decoding, and every decoder that drafts with each fixed length and with control."""
    found: dict[str, Decoder] = {PLAIN: Autoregressive()}
    for length in lengths:
        found[f"PromptLookup, {length}"] = PromptLookup(draft_length=length, control="fixed")
        if draft is not None:
            found[f"AssistedDecoding, {length}"] = AssistedDecoding(
                draft, length, confidence_threshold=0.0, control="fixed"
            )
    found["SelfSpeculative, fixed"] = SelfSpeculative(skip or "auto", control="fixed")
    found["PromptLookup, control"] = PromptLookup(draft_length=max(lengths))
    found["SelfSpeculative, control"] = SelfSpeculative(skip or "auto")
    if draft is not None:
        found["AssistedDecoding, control"] = AssistedDecoding(draft, max(lengths), confidence_threshold=0.0)
    return found


def measure(
    model: PreTrainedModel, decoders: dict[str, Decoder], prompts: dict[str, list[list[int]]], new: int, runs: int
) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Milliseconds a token, acceptance and equal texts, by decoder and kind of prompt, a value for each run."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    names = list(decoders)
    for run in track(range(runs + 1), description="runs", console=Console(stderr=True)):
        sums = {(name, kind): [0.0] * 5 for name in names for kind in prompts}
        for kind, texts in prompts.items():
            for place, ids in enumerate(texts):
                written = {}
                for turn in range(len(names)):
                    name = names[(turn + place + run) % len(names)]
                    out = decoders[name].generate(model, [ids], max_new_tokens=new, do_sample=False)
                    written[name] = out.tokens[0]
                    stats, total = out.stats, sums[name, kind]
                    later = (stats.seconds - stats.prefill_seconds, stats.new_tokens - 1)
                    for at, value in enumerate((*later, stats.drafted, stats.accepted)):
                        total[at] += value
                for name in names:
                    sums[name, kind][4] += written[name] == written[PLAIN]
        if run == 0:
            continue
        for (name, kind), (seconds, tokens, drafted, accepted, equal) in sums.items():
            values = found.setdefault((name, kind), {"ms": [], "ratio": [], "accepted": [], "drafted": [], "equal": []})
            values["ms"].append(1e3 * seconds / max(1, tokens))
            plain_seconds, plain_tokens = sums[PLAIN, kind][:2]
            values["ratio"].append((plain_seconds / plain_tokens) / (seconds / max(1, tokens)))
            values["accepted"].append(accepted / drafted if drafted else 0.0)
            values["drafted"].append(drafted / max(1, tokens))
            values["equal"].append(equal)
    return found


def main() -> None:
    """Measures, prints a table and stores the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=model_place, required=True, help="folder of the target, with its tokenizer")
    parser.add_argument("--draft", type=model_place, help="folder of a draft model with the same vocabulary")
    parser.add_argument("--skip", type=existing, help="skip_layers.json of the target; default: auto")
    parser.add_argument("--label", help="what the models are, in words, for the rows; default: their folders")
    parser.add_argument("--prompts", type=existing, nargs="+", metavar="FILE", help="default: the built-in set")
    parser.add_argument("--count", type=positive, default=4, help="prompts of each kind")
    parser.add_argument("--new-tokens", type=positive, default=128)
    parser.add_argument("--lengths", type=positive, nargs="+", default=[2, 4, 8])
    parser.add_argument("--runs", type=positive, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="bfloat16 on a GPU, else float32")
    chosen = parser.parse_args()
    dtype = chosen.dtype or ("bfloat16" if chosen.device.startswith("cuda") else "float32")
    model = loaded(chosen.model, dtype, chosen.device)
    draft = loaded(chosen.draft, dtype, chosen.device) if chosen.draft else None
    data = Prompts(chosen.prompts, tokenizer=chosen.model)
    data.setup("validate")
    prompts: dict[str, list[list[int]]] = {}
    for item, kind in enumerate(conversation.category for conversation in data.conversations):
        if len(prompts.setdefault(kind, [])) < chosen.count:
            prompts[kind].append(data.encode(item)[0])
    decoders = contenders(draft, chosen.skip, chosen.lengths)
    found = measure(model, decoders, prompts, chosen.new_tokens, chosen.runs)
    label = chosen.label or f"{chosen.model}{f' with {chosen.draft}' if chosen.draft else ''}"
    rows, table = [], Table("decoder", *prompts, title=f"{label}, {dtype}: times faster than {PLAIN}")
    for name in decoders:
        cells = []
        for kind, texts in prompts.items():
            values = found[name, kind]
            case = f"{label}, {dtype}, {kind}, {len(texts)} prompts, up to {chosen.new_tokens} new"
            extra = {
                "draft_acceptance_rate": median(values["accepted"]),
                "drafted_per_token": median(values["drafted"]),
                "equal_texts": int(min(values["equal"])),
                "texts": len(texts),
            }
            rows.append(row("control", case, name, "ms_per_token", values["ms"], "ms", extra=extra))
            rows.append(row("control", case, name, "speedup", values["ratio"], "x", extra=extra))
            cells.append(f"{median(values['ratio']):.2f} ({min(values['ratio']):.2f}-{max(values['ratio']):.2f})")
        table.add_row(name, *cells)
    replace(rows)
    Console(width=200).print(table)
    for made in rows:
        print(json.dumps(made))


if __name__ == "__main__":
    main()
