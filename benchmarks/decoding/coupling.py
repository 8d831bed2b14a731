"""How often drafts are accepted when sampling: with noise that draft and target share, and by rejection sampling.

    python -m benchmarks.decoding.coupling --model TARGET --draft DRAFT [--prompts FILE ...] --temperatures 0.7 1

Every decoder continues the same prompts with fixed draft lengths, with ``coupling="gumbel"`` and with
``coupling="rejection"``, up to EOS. A run is a seed. With shared noise the texts are also compared with those of
autoregressive decoding: how many are equal, and in how many of the others rounding explains the first difference.

The prompts are the built-in set of `saccade compare`, or files of the same form, in the chat form of the model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import PreTrainedModel

from benchmarks.decoding.decode import distinct_4
from benchmarks.decoding.real_prompts import add_arguments, fixed_decoders, label, loaded, prompts_by_kind
from benchmarks.rows import by_method, equal_texts, positive, replace, row, spread
from saccade.inference import (
    Autoregressive,
    Decoder,
    DecodingStats,
    Sampling,
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
    add_arguments(parser, count=3)
    parser.add_argument("--lengths", type=positive, nargs="+", default=[3, 8], help="draft lengths")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.7, 1.0])
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--runs", type=positive, default=3, help="number of seeds")
    chosen = parser.parse_args()
    try:
        settings = [Sampling(heat, chosen.top_k, chosen.top_p) for heat in chosen.temperatures]
    except ValueError as error:
        parser.error(str(error))
    model = loaded(chosen.model, chosen)
    draft = loaded(chosen.draft, chosen) if chosen.draft else None
    found = prompts_by_kind(chosen.prompts, chosen.model, chosen.count, chosen.longest, chosen.kinds)
    prompts = [ids for texts in found.values() for ids in texts]
    kinds = ", ".join(found)
    contenders = fixed_decoders(draft, chosen.skip, chosen.lengths)
    console = Console(width=140)
    for sampling in settings:
        warped = f"temperature {sampling.temperature:g}"
        warped += f", top-k {sampling.top_k}" * bool(sampling.top_k) + f", top-p {sampling.top_p:g}" * (
            sampling.top_p < 1
        )
        case = (
            f"{label(chosen)}, {warped}, batch {chosen.batch}, {len(prompts)} prompts ({kinds}), up to"
            f" {chosen.new_tokens} new tokens"
        )
        measured = measure(model, contenders, prompts, chosen.batch, chosen.new_tokens, sampling, chosen.runs)
        made = rows_of(case, measured, chosen.runs)
        replace(made)
        table = Table("decoder, coupling", "acceptance", "tokens a round", "ms a token", "equal texts", title=case)
        for method, item in by_method(made).items():
            table.add_row(method, *map(spread, item.values()), equal_texts(item["draft_acceptance_rate"]))
        console.print(table)
        brief = {method: round(item["draft_acceptance_rate"]["value"], 4) for method, item in by_method(made).items()}
        Console(soft_wrap=True, highlight=False).print(json.dumps({"case": case, **brief}), markup=False)


if __name__ == "__main__":
    main()
