"""How often drafts are accepted when sampling: with noise that draft and target share, and by rejection sampling.

    python -m benchmarks.decoding.coupling --model TARGET --draft DRAFT --prompts questions.jsonl --temperatures 0.7 1

Every decoder continues the same prompts with fixed draft lengths, with ``coupling="gumbel"`` and with
``coupling="rejection"``, up to EOS. A run is a seed. With shared noise the texts are also compared with those of
autoregressive decoding: how many are equal, and in how many of the others rounding explains the first difference.

A prompt file has one JSON object a line with ``prompt``, or with ``turns`` or ``messages`` of which the first is read;
the model's chat template is applied where there is one. Without a file, prompts come from the embedded corpus.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from benchmarks.decoding.decode import distinct_4, held_out_prompts
from benchmarks.rows import by_method, equal_texts, existing, model_place, positive, replace, row, spread
from saccade.common.json_lines import read_json_lines
from saccade.inference import (
    AssistedDecoding,
    Autoregressive,
    Decoder,
    DecodingStats,
    PromptLookup,
    Sampling,
    SelfSpeculative,
)
from saccade.inference.sampling import Coupling
from saccade.inference.verification.near_ties import first_difference

COUPLINGS: tuple[Coupling, ...] = ("gumbel", "rejection")


@dataclass
class Measured:
    """What a decoder did: a value for each run, and the texts of the last run with the statistics behind them."""

    acceptance: list[float] = field(default_factory=list)
    length: list[float] = field(default_factory=list)
    pace: list[float] = field(default_factory=list)
    texts: list[list[int]] = field(default_factory=list)
    identical: int | None = None
    near_ties: int | None = None


def questions(path: str, tokenizer: Any, count: int, longest: int) -> list[list[int]]:
    """The first turns of a prompt file, spread over it, as token ids.

    Raises:
        SystemExit: A line has none of the known entries.
    """
    lines = [line for _, line in read_json_lines(path)]
    found = []
    for line in lines[:: max(1, len(lines) // count)][:count]:
        first = line.get("prompt") or next(iter(line.get("turns") or line.get("messages") or ()), None)
        text = first.get("content") if isinstance(first, dict) else first
        if not isinstance(text, str):
            raise SystemExit(f"--prompts must have prompt, turns or messages in every line, got {sorted(line)}.")
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
            )
        found.append(tokenizer(text, add_special_tokens=not tokenizer.chat_template).input_ids[-longest:])
    return found


def loaded(place: str, dtype: str, device: str) -> PreTrainedModel:
    """A model on its device, in evaluation mode."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, dtype))
    return model.eval().to(device)


def decoders(draft: PreTrainedModel | None, skip: str | None, lengths: Sequence[int]) -> dict[str, Decoder]:
    """The decoders that draft, by name, with every draft length."""
    found: dict[str, Decoder] = {}
    for length in lengths:
        found[f"PromptLookup {length}"] = PromptLookup(draft_length=length, control="fixed")
        if draft is not None:
            found[f"AssistedDecoding {length}"] = AssistedDecoding(
                draft, length, confidence_threshold=0.0, control="fixed"
            )
        if skip is not None:
            found[f"SelfSpeculative {length}"] = SelfSpeculative(
                skip, length, gamma=0.0, adaptive=False, control="fixed"
            )
    return found


def decoded(
    decoder: Decoder, model: PreTrainedModel, prompts: Sequence[list[int]], batch: int, new: int, sampling: Sampling
) -> tuple[list[list[int]], DecodingStats]:
    """The texts behind all prompts, each with its own number, and the statistics of all calls."""
    texts: list[list[int]] = []
    stats = DecodingStats()
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        drawn = Sampling(*sampling.warpers, sampling.seed, sampling.coupling, list(range(start, start + len(part))))
        out = decoder.generate(model, part, max_new_tokens=new, sampling=drawn)
        texts += out.tokens
        stats += out.stats
    return texts, stats


def measure(
    model: PreTrainedModel,
    contenders: dict[str, Decoder],
    prompts: Sequence[list[int]],
    batch: int,
    new: int,
    settings: Sampling,
    runs: int,
) -> dict[str, Measured]:
    """What every decoder does with both couplings, by ``decoder, coupling``; the decoders take turns in each run."""
    found: dict[str, Measured] = {f"{name}, {coupling}": Measured() for name in contenders for coupling in COUPLINGS}
    plain = Autoregressive()
    for seed in track(range(runs), description="seeds"):
        drawn = Sampling(*settings.warpers, seed)
        right, _ = decoded(plain, model, prompts, batch, new, drawn)
        for name, decoder in contenders.items():
            for coupling in COUPLINGS:
                made = found[f"{name}, {coupling}"]
                sampling = Sampling(*settings.warpers, seed, coupling)
                made.texts, stats = decoded(decoder, model, prompts, batch, new, sampling)
                made.acceptance.append(stats.draft_acceptance_rate)
                made.length.append(stats.mean_acceptance_length)
                made.pace.append(1e3 * stats.time_per_output_token)
                if coupling == "gumbel" and seed == runs - 1:
                    left = [at for at, text in enumerate(made.texts) if text != right[at]]
                    made.identical = len(prompts) - len(left)
                    made.near_ties = sum(
                        first_difference(model, prompts[at], made.texts[at], right[at], sampling=drawn, row=at).near
                        for at in left
                    )
    return found


def rows_of(case: str, found: dict[str, Measured], runs: int) -> list[dict[str, Any]]:
    """Three rows for each decoder and coupling: acceptance rate and length, and milliseconds a token."""
    made = []
    for name, item in found.items():
        extra = {
            "identical_rows": item.identical,
            "near_tie_rows": item.near_ties,
            "rows": len(item.texts),
            "distinct_4": round(distinct_4(item.texts), 4),
        }
        for metric, values, unit in (
            ("draft_acceptance_rate", item.acceptance, "share"),
            ("mean_acceptance_length", item.length, "tokens"),
            ("ms_per_token", item.pace, "ms"),
        ):
            made.append(row("coupling", case, name, metric, values, unit, seed=runs - 1, extra=extra))
    return made


def main() -> None:
    """Measures, prints a table and one line of JSON for each temperature, and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=model_place, required=True, help="folder of the target, with its tokenizer")
    parser.add_argument("--draft", type=model_place, help="folder of the draft; without one, prompt lookup alone")
    parser.add_argument("--skip", type=existing, help="skip_layers.json of the target, for self-speculation")
    parser.add_argument("--label", help="what the models are, in words, for the rows; default: their folders")
    parser.add_argument("--prompts", type=existing, metavar="FILE", help="JSON lines; default: the embedded corpus")
    parser.add_argument("--count", type=positive, default=24, help="number of prompts")
    parser.add_argument("--prompt-length", type=positive, default=512, help="longer prompts lose their beginning")
    parser.add_argument("--new-tokens", type=positive, default=128)
    parser.add_argument("--lengths", type=positive, nargs="+", default=[3, 8], help="draft lengths")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.7, 1.0])
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--runs", type=positive, default=3, help="number of seeds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float64", "float32", "bfloat16"), help="bfloat16 on a GPU, else float32")
    chosen = parser.parse_args()
    try:
        settings = [Sampling(heat, chosen.top_k, chosen.top_p) for heat in chosen.temperatures]
    except ValueError as error:
        parser.error(str(error))
    name = chosen.dtype or ("bfloat16" if chosen.device.startswith("cuda") else "float32")
    model = loaded(chosen.model, name, chosen.device)
    draft = loaded(chosen.draft, name, chosen.device) if chosen.draft else None
    tokenizer = AutoTokenizer.from_pretrained(chosen.model)
    if chosen.prompts:
        prompts = questions(chosen.prompts, tokenizer, chosen.count, chosen.prompt_length)
    else:
        texts, _ = held_out_prompts(chosen.model, chosen.count, chosen.prompt_length, chosen.new_tokens)
        prompts = [ids[0].tolist() for ids in texts]
    places = [Path(place).name for place in (chosen.model, chosen.draft) if place is not None]
    contenders = decoders(draft, chosen.skip, chosen.lengths)
    console = Console(width=140)
    for sampling in settings:
        warped = f"temperature {sampling.temperature:g}"
        warped += f", top-k {sampling.top_k}" * bool(sampling.top_k) + f", top-p {sampling.top_p:g}" * (
            sampling.top_p < 1
        )
        source = Path(chosen.prompts).stem if chosen.prompts else "Python sources"
        case = (
            f"{chosen.label or ' with '.join(places)}, {name}, {warped}, batch {chosen.batch}, {len(prompts)} prompts"
            f" of {source}, up to {chosen.new_tokens} new tokens"
        )
        found = measure(model, contenders, prompts, chosen.batch, chosen.new_tokens, sampling, chosen.runs)
        made = rows_of(case, found, chosen.runs)
        replace(made)
        table = Table("decoder, coupling", "acceptance", "tokens a round", "ms a token", "equal texts", title=case)
        for method, item in by_method(made).items():
            table.add_row(method, *map(spread, item.values()), equal_texts(item["draft_acceptance_rate"]))
        console.print(table)
        brief = {method: round(item["draft_acceptance_rate"]["value"], 4) for method, item in by_method(made).items()}
        Console(soft_wrap=True, highlight=False).print(json.dumps({"case": case, **brief}), markup=False)


if __name__ == "__main__":
    main()
