"""Decoders on real models and prompts: fixed draft lengths, draft control, and what transformers offers.

    python -m benchmarks.decoding.speculation --model TARGET [--draft DRAFT] [--skip FILE] [--prompts FILE ...]
        [--gammas 4 8]

The prompts are the built-in set of `saccade compare`, or files of the same form (Spec-Bench, HumanEval), in the chat
form of the model. In each run all decoders continue each prompt, greedily and up to EOS, in another order; a first pass
over all prompts, in which graphs of every length are captured and costs are measured, is left out (transformers, which
captures no graphs by itself, warms up on one prompt of each kind). The figure is the time of a token after the first,
over all prompts of a kind, and its ratio to autoregressive decoding in the same run.
``--shape`` grows the target: the same text at the cost of a larger model. Assisted decoding of a fixed length also has
the prediction of the cost model, ``E / (K c + v)``: ``E`` tokens and ``K`` drafted tokens of a round, a draft step
costs ``c`` and a verification ``v`` steps of the target. ``--gammas`` adds parallel speculation with these numbers of
draft forwards in a round: PEARL, and Double with look-up on both sides and on each, with what their rounds did.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import PreTrainedModel, StaticCache, StoppingCriteria, StoppingCriteriaList

from benchmarks.decoding.decode import distinct_4
from benchmarks.decoding.grow import SHAPES, grow
from benchmarks.decoding.real_prompts import add_arguments, dtype, fixed_decoders, label, loaded, prompts_by_kind
from benchmarks.rows import positive, replace, row
from saccade.common.timing import clock, medians_in_turn
from saccade.inference import (
    AssistedDecoding,
    Autoregressive,
    Decoder,
    DecodingStats,
    Double,
    Pearl,
    PromptLookup,
    SelfSpeculative,
    Session,
)
from saccade.inference.parallel.counts import ParallelCounts
from saccade.inference.verification.near_ties import first_difference

PLAIN = "Autoregressive"
Prompts = dict[str, list[list[int]]]


@dataclass(frozen=True)
class Written:
    """What a contender wrote behind a prompt.

    Args:
        tokens: The new tokens.
        later: How many of them came after the first time stamp.
        seconds: Time from that stamp to the end.
        stats: Counts of our own decoders.
        details: What a method counts besides.
    """

    tokens: list[int]
    later: int
    seconds: float
    stats: DecodingStats | None = None
    details: dict[str, float] = field(default_factory=dict)


Contender = Callable[[list[int]], Written]


@dataclass
class Measured:
    """A contender on the prompts of a kind: a value for each run, the last run's texts, and its counts."""

    ms: list[float] = field(default_factory=list)
    speedup: list[float] = field(default_factory=list)
    texts: list[list[int]] = field(default_factory=list)
    stats: DecodingStats | None = None
    details: dict[str, float] = field(default_factory=dict)


def contenders(
    draft: PreTrainedModel | None, skip: str | None, lengths: Sequence[int], gammas: Sequence[int] = ()
) -> dict[str, Decoder]:
    """Autoregressive decoding, and every decoder that drafts with each fixed length and with control."""
    found: dict[str, Decoder] = {PLAIN: Autoregressive()}
    found |= {name.replace(" ", ", "): one for name, one in fixed_decoders(draft, skip, lengths).items()}
    found["PromptLookup, control"] = PromptLookup(draft_length=max(lengths))
    found["SelfSpeculative, control"] = SelfSpeculative()
    if skip is not None:
        found["SelfSpeculative, searched set, control"] = SelfSpeculative(skip, max(lengths))
    if draft is not None:
        found["AssistedDecoding, control"] = AssistedDecoding(draft, max(lengths), confidence_threshold=0.0)
        for gamma in gammas:
            found[f"Pearl, {gamma}"] = Pearl(draft, gamma, control="fixed")
            for side in ("draft", "target"):
                found[f"Double, {side} only, {gamma}"] = Double(draft, gamma, retrieval=side, control="fixed")
            found[f"Double, {gamma}"] = Double(draft, gamma, control="fixed")
        if gammas:
            found["Pearl, control"] = Pearl(draft, max(gammas))
            found["Double, control"] = Double(draft, max(gammas))
    return found


def ours(decoder: Decoder, model: PreTrainedModel, new: int) -> Contender:
    """A decoder of this library."""

    def write(ids: list[int]) -> Written:
        out = decoder.generate(model, [ids], max_new_tokens=new, do_sample=False)
        stats = out.stats
        later = stats.seconds - stats.prefill_seconds
        return Written(out.tokens[0], stats.new_tokens - 1, later, stats, out.details)

    return write


class _FirstStamp(StoppingCriteria):
    """Notes when the first forward of the answer has ended; it never stops a text."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.length, self.time = device, 0, 0.0

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        if not self.length:
            self.length, self.time = input_ids.shape[1], clock(self.device)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def peer(model: PreTrainedModel, new: int, cache: StaticCache | None = None, **settings: Any) -> Contender:
    """``model.generate`` of transformers, with a static cache where one is given."""
    generate: Any = model.generate

    def write(ids: list[int]) -> Written:
        text = torch.tensor([ids], device=model.device)
        given = dict(settings)
        if cache is not None:
            cache.reset()
            given["past_key_values"] = cache
        stamp = _FirstStamp(model.device)
        out = generate(
            text, attention_mask=torch.ones_like(text), max_new_tokens=new, do_sample=False, pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([stamp]), **given,
        )  # fmt: skip
        return Written(out[0, len(ids) :].tolist(), out.shape[1] - stamp.length, clock(model.device) - stamp.time)

    return write


def peers(model: PreTrainedModel, draft: PreTrainedModel | None, new: int, longest: int) -> dict[str, Contender]:
    """What transformers offers: plain, with a compiled static cache, with prompt lookup, with a draft model."""
    found = {"transformers generate": peer(model, new)}
    if model.device.type == "cuda":
        cache = StaticCache(config=model.config, max_cache_len=longest + new + 8)
        found["transformers static cache, compiled"] = peer(model, new, cache)
    found["transformers prompt_lookup"] = peer(model, new, prompt_lookup_num_tokens=8)
    if draft is not None:
        found["transformers assistant_model"] = peer(model, new, assistant_model=draft)
    return found


def measure(written_by: dict[str, Contender], prompts: Prompts, runs: int) -> dict[tuple[str, str], Measured]:
    """What every contender needs for the prompts of every kind, in turn.

    A contender of transformers that fails is left out, with the reason printed.
    """
    written_by = dict(written_by)
    for name in list(written_by):
        try:
            for texts in prompts.values():
                # graphs are captured for lengths: a longer prompt of the same kind would capture in a measured run
                for ids in texts[:1] if name.startswith("transformers") else texts:
                    written_by[name](ids)
        except Exception as error:
            if not name.startswith("transformers"):
                raise
            print(f"{name} is left out: {type(error).__name__} {(str(error).splitlines() or [''])[0]}")
            del written_by[name]
    names = list(written_by)
    found = {(name, kind): Measured() for kind in prompts for name in names}
    for run in track(range(runs), description="runs", console=Console(stderr=True)):
        for kind, texts in prompts.items():
            made: dict[str, list[Written]] = {name: [] for name in names}
            for place, ids in enumerate(texts):
                for turn in range(len(names)):
                    name = names[(turn + place + run) % len(names)]
                    made[name].append(written_by[name](ids))
            paces = {
                name: 1e3 * sum(item.seconds for item in mine) / max(1, sum(item.later for item in mine))
                for name, mine in made.items()
            }
            for name, mine in made.items():
                item = found[name, kind]
                item.ms.append(paces[name])
                item.speedup.append(paces[PLAIN] / paces[name])
                item.texts = [each.tokens for each in mine]
                counts = [each.stats for each in mine if each.stats is not None]
                item.stats = sum(counts[1:], counts[0]) if counts else None
                if sums := [ParallelCounts.sums(each.details) for each in mine if each.details]:
                    item.details = sum(sums[1:], sums[0]).to_dict()
    return found


def step_ms(model: PreTrainedModel, ids: list[int], widths: Sequence[int]) -> list[float]:
    """Milliseconds of a step of the model with each number of tokens behind a text, medians of steps in turn."""
    decoder = Autoregressive()
    with Session(model, len(ids) + max(widths) + 8, pool=decoder.pool) as session:
        session.prefill([ids])
        tokens = torch.tensor([ids[-1:] * max(widths)], device=model.device)

        def step(width: int) -> Callable[[], Any]:
            return lambda: session.forward(tokens[:, :width])

        return [1e3 * seconds for seconds in medians_in_turn([step(width) for width in widths], 20, session.device)]


def cost_model(stats: DecodingStats, target: Sequence[float], draft: float) -> dict[str, float]:
    """The prediction ``E / (K c + v)`` for counts of a draft of fixed length.

    Args:
        stats: The counts.
        target: Milliseconds of a step of the target with one token, and of one that verifies.
        draft: Milliseconds of a step of the draft model.
    """
    emitted, drafted = stats.mean_acceptance_length, stats.drafted / max(1, stats.verify_steps)
    c, v = draft / target[0], target[1] / target[0]
    return {"E": emitted, "K": drafted, "c": c, "v": v, "predicted": emitted / (drafted * c + v)}


def rows_of(
    case: Callable[[str], str],
    found: dict[tuple[str, str], Measured],
    prompts: Prompts,
    model: PreTrainedModel,
    draft: PreTrainedModel | None,
    grown: bool,
) -> list[dict[str, Any]]:
    """Two rows for each contender and kind: milliseconds a token, and the speed-up."""
    names = list(dict.fromkeys(name for name, _ in found))
    widths = [int(name.rsplit(", ")[1]) for name in names if name.startswith("Assisted") and name[-1].isdigit()]
    some = next(iter(prompts.values()))[0]
    target = step_ms(model, some, [1, *(width + 1 for width in widths)]) if widths else []
    step = step_ms(draft, some, [1])[0] if draft is not None and widths else 0.0
    made = []
    for kind, texts in prompts.items():
        right = found[PLAIN, kind].texts
        for name in names:
            item = found[name, kind]
            other = [at for at, text in enumerate(item.texts) if text != right[at]]
            extra: dict[str, Any] = {
                "identical_rows": len(texts) - len(other),
                "near_tie_rows": sum(
                    first_difference(model, texts[at], item.texts[at], right[at]).near for at in other
                ),
                "rows": len(texts),
                "new_tokens": sum(map(len, item.texts)),
                "distinct_4": round(distinct_4(item.texts), 4),
            }
            extra |= {count: value for count, value in item.details.items() if isinstance(value, float)}
            if item.stats is not None:
                extra["draft_acceptance_rate"] = item.stats.draft_acceptance_rate
                extra["mean_acceptance_length"] = item.stats.mean_acceptance_length
                extra["drafted_per_token"] = item.stats.drafted / max(1, item.stats.new_tokens)
                if name.startswith("Assisted") and name[-1].isdigit():
                    at = 1 + widths.index(int(name.rsplit(", ")[1]))
                    extra |= cost_model(item.stats, [target[0], target[at]], step)
            for metric, values, unit in (("ms_per_token", item.ms, "ms"), ("speedup", item.speedup, "x")):
                made.append(row("speculation", case(kind), name, metric, values, unit, grown=grown, extra=extra))
    return made


def main() -> None:
    """Measures, prints a table and stores the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, count=4)
    parser.add_argument("--shape", choices=sorted(SHAPES), help="grow the target to this shape")
    parser.add_argument("--lengths", type=positive, nargs="+", default=[2, 4, 8], help="fixed draft lengths")
    parser.add_argument("--gammas", type=positive, nargs="+", default=[], help="draft forwards of parallel rounds")
    parser.add_argument("--peers", action="store_true", help="also measure what transformers offers")
    parser.add_argument("--only", nargs="+", help=f"measure {PLAIN} and those whose name contains one of these words")
    parser.add_argument("--runs", type=positive, default=3)
    chosen = parser.parse_args()
    model = loaded(chosen.model, chosen)
    if chosen.shape:
        model = grow(model.cpu(), SHAPES[chosen.shape], dtype=getattr(torch, dtype(chosen)), device=chosen.device)
    draft = loaded(chosen.draft, chosen) if chosen.draft else None
    prompts = prompts_by_kind(chosen.prompts, chosen.model, chosen.count, chosen.longest, chosen.kinds)
    decoders = contenders(draft, chosen.skip, chosen.lengths, chosen.gammas)
    written_by = {name: ours(decoder, model, chosen.new_tokens) for name, decoder in decoders.items()}
    if chosen.peers:
        written_by |= peers(model, draft, chosen.new_tokens, chosen.longest)
    if chosen.only:
        written_by = {
            name: write
            for name, write in written_by.items()
            if name == PLAIN or any(word in name for word in chosen.only)
        }
    found = measure(written_by, prompts, chosen.runs)
    head = label(chosen) + (f", grown to {chosen.shape}" if chosen.shape else "")

    def case(kind: str) -> str:
        return f"{head}, {kind}, {len(prompts[kind])} prompts, up to {chosen.new_tokens} new"

    rows = rows_of(case, found, prompts, model, draft, bool(chosen.shape))
    replace(rows)
    table = Table("decoder", *prompts, title=f"{head}: times faster than {PLAIN} (lowest-highest), acceptance")
    for name in dict.fromkeys(name for name, _ in found):
        cells = []
        for kind in prompts:
            item = found[name, kind]
            rate = "" if item.stats is None or not item.stats.drafted else f" {item.stats.draft_acceptance_rate:.2f}"
            cells.append(f"{median(item.speedup):.2f} ({min(item.speedup):.2f}-{max(item.speedup):.2f}){rate}")
        table.add_row(name, *cells)
    Console(width=240).print(table)
    brief = {kind: round(median(found[PLAIN, kind].ms), 3) for kind in prompts}
    print(json.dumps({"case": head, f"{PLAIN} ms": brief}))


if __name__ == "__main__":
    main()
