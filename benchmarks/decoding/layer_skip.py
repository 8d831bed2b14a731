"""The speed-up of Draft & Verify, beside the prediction of its cost model and what the layer search has promised.

    python -m benchmarks.decoding.layer_skip --model RUN/model --label "sub-layer dropout 0.7"
    python -m benchmarks.decoding.layer_skip --model CHAT_MODEL --label "SmolLM2-135M-Instruct as published" --chat

Searches the skip set, then continues other prompts one token at a time and by self-speculation, in rotating order, on
the same engine. The prompts are held-out texts of the embedded corpus, or with ``--chat`` the built-in prompts of
``saccade compare``, or with ``--files`` those of files, both in the chat form of the model and up to its EOS. Besides
drafts of fixed lengths, the decoder is measured as users have it: ``SelfSpeculative(skip=FILE)``, whose ratio to the
speed-up in the file is the error of the search, and ``SelfSpeculative()``, which chooses what to skip itself.

A round that drafts K tokens and emits E costs K draft steps and a verification. So the cost model predicts
``E / (K c + v)``, where c is the time of a draft step and v that of a verification, both over the time of a token
decoded by itself; the paper's ``E / (K c + 1)`` takes v as 1. Both are printed beside the measured speed-up. A small
model that decodes greedily repeats itself, which makes any draft look good: ``--temperatures 0 0.7 1`` also samples,
and the rows say which texts are degenerate.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from benchmarks.decoding.decode import distinct_4, held_out_prompts
from benchmarks.rows import existing, model_place, positive, replace, row
from benchmarks.video.rounds import play
from saccade.callbacks import search_layers
from saccade.callbacks.decoding.report import DEGENERATE_BELOW
from saccade.callbacks.layer_skip.saved_model import chat_prompts, held_out_files, prompts_of
from saccade.common.timing import medians_in_turn
from saccade.datamodules.text.tokenization import load_tokenizer
from saccade.inference import Autoregressive, Decoder, Sampling, SelfSpeculative, Session
from saccade.inference.request import Request
from saccade.inference.state import GenerationState
from saccade.inference.statistics import DecodingStats

SEED = 0
AS_USED = "SelfSpeculative"
"""The decoder with the searched set and otherwise as it comes, with draft control."""
LENGTHS = (2, 3, 4, 6)
"""Draft lengths without a threshold; the adaptive threshold with up to 12 tokens is measured beside them."""
Measured = tuple[dict[str, list[float]], dict[str, DecodingStats], dict[str, list[list[int]]]]


@dataclass(frozen=True)
class RoundTimes:
    """Seconds of the decoder's own code on a text that does not grow, medians of calls that took turns.

    Args:
        draft: A draft alone, up to the end of its work on the device.
        whole: A round with that draft. The device is waited for once, so the rest of it is the verification.
    """

    draft: float
    whole: float


def round_times(
    model: PreTrainedModel,
    prompt: Tensor,
    decoder: SelfSpeculative,
    width: int,
    temperature: float,
    repeats: int = 40,
) -> RoundTimes:
    """Times rounds of a decoder.

    Args:
        model: The model on its device.
        prompt: ``[1, length]`` ids before the steps.
        decoder: The decoder whose rounds are timed.
        width: Drafted tokens of a round.
        temperature: 0 chooses the best token, others draw.
        repeats: Number of calls of which the median is taken.
    """
    fixed = SelfSpeculative(
        skip=decoder.skip_set(model), draft_length=width, gamma=0.0, adaptive=False, engine=decoder.engine
    )
    sampling = Sampling(temperature=temperature, seed=SEED) if temperature else None
    request = Request.read(model, prompt, None, width + 1, None, (), None, sampling=sampling, do_sample=False)
    with Session(model, request.positions + width, skip=fixed.skipped(model), pool=fixed.pool) as session:
        session.prefill([prompt[0, :-1].tolist()])
        state = GenerationState.of(session, request)
        drafter = fixed.drafter(model, request)

        def drafting() -> None:
            drafter.draft(state, [width])

        def a_round() -> None:
            play(fixed.verifier(model, request), state, drafter.draft(state, [width]), [0])
            session.truncate([prompt.shape[1] - 1])

        return RoundTimes(*medians_in_turn([drafting, a_round], repeats, session.device))


def decoded(
    decoders: dict[str, Decoder],
    model: PreTrainedModel,
    prompts: list[Tensor],
    new: int,
    runs: int,
    temperature: float,
    to_the_end: bool,
) -> Measured:
    """By decoder: seconds for each token after the first of every run; pooled counts and texts of the last run."""
    paces: dict[str, list[float]] = {name: [] for name in decoders}
    counts: dict[str, DecodingStats] = {}
    texts: dict[str, list[list[int]]] = {}
    names = list(decoders)
    for attempt in track(range(runs + 1), description="runs (the first warms up)"):
        counts = {name: DecodingStats() for name in names}
        texts = {name: [] for name in names}
        for at, ids in enumerate(prompts):
            for turn in range(len(names)):
                name = names[(turn + at + attempt) % len(names)]
                seed = attempt * len(prompts) + at
                made = decoders[name].generate(
                    model,
                    ids,
                    max_new_tokens=new,
                    eos_token_id=None if to_the_end else (),
                    do_sample=False,
                    generation_config=GenerationConfig(),
                    sampling=Sampling(temperature=temperature, seed=seed) if temperature else None,
                )
                counts[name] += made.stats
                texts[name].append(made.tokens[0])
        if attempt:
            for name in names:
                paces[name].append(counts[name].time_per_output_token)
    return paces, counts, texts


def main() -> None:
    """Searches, measures, prints a table and one line of JSON, and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=model_place, required=True, help="folder of the model, with its tokenizer")
    parser.add_argument("--label", required=True, help="what the model is and how it was trained, for the rows")
    parser.add_argument("--chat", action="store_true", help="the built-in prompts, in the chat form of the model")
    parser.add_argument("--files", type=existing, nargs="+", metavar="FILE", help="files of prompts, in the chat form")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="bfloat16 on a GPU, else float32")
    parser.add_argument("--engine", default="auto", choices=("auto", "eager", "graph"))
    parser.add_argument("--trials", type=positive, default=200)
    parser.add_argument("--finalists", type=positive, default=10)
    parser.add_argument("--prompts", type=positive, default=16)
    parser.add_argument("--prompt-length", type=positive, default=128, help="of prompts from texts")
    parser.add_argument("--new-tokens", type=positive, default=128)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0], help="0 is greedy; others sample")
    parser.add_argument("--runs", type=positive, default=5)
    chosen = parser.parse_args()
    if not (Path(chosen.model) / "config.json").is_file():
        raise SystemExit(f"--model must be a folder with a model, got {chosen.model}: give an exported one, RUN/model.")
    torch.manual_seed(SEED)
    device = torch.device(chosen.device)
    dtype = getattr(torch, chosen.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    model = AutoModelForCausalLM.from_pretrained(chosen.model, dtype=dtype).eval().to(device)
    chat = chosen.chat or chosen.files is not None
    length, new, kind = chosen.prompt_length, chosen.new_tokens, chosen.engine
    real_distinct = None
    if chat:
        texts = [ids[None] for ids in chat_prompts(chosen.model, chosen.files, chosen.prompts)]
        searched = chat_prompts(chosen.model, chosen.files, 8, without=chosen.prompts)
    else:
        texts, real = held_out_prompts(chosen.model, chosen.prompts, length, new)
        real_distinct = distinct_4([real[start : start + new] for start in range(0, len(real), new)])
        searched = prompts_of(held_out_files(), load_tokenizer(chosen.model), 8, length)
    prompts = [ids.to(device) for ids in texts]
    with tempfile.TemporaryDirectory() as folder:
        found = search_layers(
            model,
            searched,
            Path(folder) / "skip_layers.json",
            trials=chosen.trials,
            finalists=chosen.finalists,
            max_new_tokens=new,
            seed=SEED,
        )
    print(found.verdict)
    skip = {"attention": list(found.skip.attention), "mlp": list(found.skip.mlp)}
    decoders: dict[str, Decoder] = {"Autoregressive": Autoregressive(engine=kind)}
    decoders[AS_USED] = SelfSpeculative(skip=skip, engine=kind)
    decoders["SelfSpeculative, skip auto"] = SelfSpeculative(engine=kind)
    decoders["SelfSpeculative, up to 12, adaptive"] = SelfSpeculative(
        skip=skip, carry=False, engine=kind, control="fixed"
    )
    for width in LENGTHS:
        decoders[f"SelfSpeculative, {width} drafted"] = SelfSpeculative(
            skip=skip, draft_length=width, gamma=0.0, adaptive=False, carry=False, engine=kind, control="fixed"
        )
    parameters = sum(weight.numel() for weight in model.parameters()) / 1e6
    facts = {
        "skip": skip,
        "search_trials": found.trials,
        "match_rate": found.match_rate,
        "search_speedup": found.speedup,
        "search_spread": [found.lowest_speedup, found.highest_speedup],
    }
    if chat:
        asked = "built-in" if chosen.files is None else ", ".join(Path(file).stem for file in chosen.files)
        about = f"{chosen.label}, batch 1, up to {new} new tokens, {len(prompts)} {asked} prompts in chat form"
    else:
        about = (
            f"trained on Python sources, {chosen.label}, batch 1, prompt {length}, {new} new tokens, "
            f"{len(prompts)} held-out prompts"
        )
    for temperature in chosen.temperatures:
        case = (
            f"{model.config.model_type} {model.config.num_hidden_layers} layers {parameters:.0f}M "
            f"{str(dtype).removeprefix('torch.')}, {about}"
            + ("" if temperature == 0 else f", sampling at temperature {temperature:g}")
        )
        measured = decoded(decoders, model, prompts, new, chosen.runs, temperature, to_the_end=chat)
        made = rows_of(case, decoders, model, prompts, measured, real_distinct, temperature, facts)
        replace(made)
        report(made, case)


def rows_of(
    case: str,
    decoders: dict[str, Decoder],
    model: PreTrainedModel,
    prompts: list[Tensor],
    measured: Measured,
    real_distinct: float | None,
    temperature: float,
    facts: dict[str, Any],
) -> list[dict[str, Any]]:
    """Two rows for each decoder: the speed-up over one token at a time, and milliseconds a token."""
    paces, counts, written = measured
    token = median(paces["Autoregressive"])
    # rows of chats have no real text beside them, and a table of their own
    benchmark = "layer_skip" if real_distinct is not None else "layer_skip_chat"
    made = []
    for name, decoder in decoders.items():
        distinct = distinct_4(written[name])
        equal = sum(a == b for a, b in zip(written[name], written["Autoregressive"], strict=True))
        extra: dict[str, Any] = {
            "distinct_4": round(distinct, 4),
            "distinct_4_real": None if real_distinct is None else round(real_distinct, 4),
            "degenerate": None if real_distinct is None else distinct < DEGENERATE_BELOW * real_distinct,
            "identical_rows": None if temperature else equal,
            "rows": len(prompts),
            "drafted_per_token": counts[name].drafted / max(1, counts[name].new_tokens),
        }
        gains = [base / pace for base, pace in zip(paces["Autoregressive"], paces[name], strict=True)]
        if isinstance(decoder, SelfSpeculative):
            extra |= facts | {"skip": decoder.skip_set(model)}
            if counts[name].drafted:
                extra |= cost_model(model, prompts[0], decoder, counts[name], temperature, token)
        if name == AS_USED:
            extra["over_search"] = median(gains) / facts["search_speedup"]
        made.append(row(benchmark, case, name, "speedup", gains, "times Autoregressive", seed=SEED, extra=extra))
        pace = [1e3 * seconds for seconds in paces[name]]
        made.append(row(benchmark, case, name, "ms_per_token", pace, "ms", seed=SEED, extra=extra))
    return made


def cost_model(
    model: PreTrainedModel,
    prompt: Tensor,
    decoder: SelfSpeculative,
    counts: DecodingStats,
    temperature: float,
    token: float,
) -> dict[str, float]:
    """The prediction of the cost model for a decoder whose counts are known.

    Args:
        model: The model.
        prompt: ``[1, length]`` ids.
        decoder: The decoder.
        counts: Its counts over all prompts.
        temperature: 0 is greedy.
        token: Seconds of a token of one-at-a-time decoding.

    Returns:
        ``E`` tokens and ``K`` drafted tokens of a round, costs ``c`` of a draft step and ``v`` of the rest of a round
        over a token of one-at-a-time decoding, ``predicted`` ``E / (K c + v)``, and ``predicted_paper``
        ``E / (K c' + 1)`` where c' is a draft step over that rest.
    """
    emitted, drafted = counts.mean_acceptance_length, counts.drafted / counts.verify_steps
    width = max(1, round(drafted))
    times = round_times(model, prompt, decoder, width, temperature)
    c, v = times.draft / width / token, (times.whole - times.draft) / token
    return {
        "E": emitted,
        "K": drafted,
        "c": c,
        "v": v,
        "predicted": emitted / (drafted * c + v),
        "predicted_paper": emitted / (drafted * c / v + 1),
    }


def report(made: list[dict[str, Any]], case: str) -> None:
    """Prints the table, and all of it as one line of JSON."""
    table = Table(title=case)
    for column in (
        "method",
        "ms/token",
        "speed-up",
        "search",
        "E/(Kc+v)",
        "E/(Kc'+1)",
        "E",
        "K",
        "c",
        "v",
        "distinct-4",
    ):
        table.add_column(column)
    for gain, pace in zip(made[::2], made[1::2], strict=True):
        numbers = [f"{gain[key]:.2f}" if key in gain else "" for key in ("predicted", "predicted_paper", *"EKcv")]
        table.add_row(
            gain["method"],
            f"{pace['value']:.3f}",
            f"{gain['value']:.2f} ({gain['spread']['min']:.2f} to {gain['spread']['max']:.2f})",
            f"{gain['search_speedup']:.2f}, off by {gain['over_search'] - 1:+.1%}" if "over_search" in gain else "",
            *numbers,
            f"{gain['distinct_4']:.2f}"
            + ("" if gain["distinct_4_real"] is None else f" (real {gain['distinct_4_real']:.2f})"),
        )
    Console(width=170).print(table)
    brief = {item["method"]: round(item["value"], 3) for item in made[::2]}
    Console(soft_wrap=True, highlight=False).print(json.dumps({"case": case, **brief}), markup=False)


if __name__ == "__main__":
    main()
