"""Time to first token and per token of every decoder beside what a transformers user would call instead.

    python -m benchmarks.decoding.decode --model RUN/model --draft RUN/model [--skip RUN/skip_layers.json]
    python -m benchmarks.decoding.decode --model RUN/model --shape 7B --prompt-length 512 --device cuda --engine graph

All methods continue the same held-out prompts within one process, in turn, so that a change in the machine's load meets
all of them; one round warms up, each further round is a run. Greedy outputs are compared token by token with
``model.generate``; with ``--temperature`` all methods sample, which keeps a small model from repeating itself.
``--shape`` grows the model first (:mod:`benchmarks.decoding.grow`): the same text at the cost of a larger model.

The bound of a token is the time to read, at the device's measured copy bandwidth, the weights that a forward needs and
the keys and values of the text at half of its growth. ``--tree`` also times steps of one token and of a 26-node tree.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.decoding.grow import SHAPES, grow, weight_bytes
from benchmarks.rows import model_place, positive, replace, row
from saccade.callbacks.decoding.report import DEGENERATE_BELOW
from saccade.callbacks.decoding.totals import distinct_grams
from saccade.common.provenance import device_names
from saccade.common.timing import clock
from saccade.datamodules import TextCorpus
from saccade.inference import (
    AssistedDecoding,
    Autoregressive,
    Decoder,
    PromptLookup,
    Sampling,
    SelfSpeculative,
    Session,
    TokenTree,
)
from saccade.inference.engine.config import EngineConfig
from saccade.inference.engine.pool import EnginePool
from saccade.inference.huggingface.models import cache_bytes

SEED = 0
# 26 nodes as SpecVLM and EAGLE-2 verify them: wide at the top, one deep path
TREE = TokenTree((-1, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 5, 5, 6, 8, 11, 11, 12, 13, 15, 15, 17, 19, 19, 22, 24))


@dataclass
class Result:
    """What one method did with one batch of prompts in one run.

    Args:
        tokens: New tokens of every row.
        first: Seconds until the first token.
        whole: Seconds until the last.
        stats: The decoder's own counts; ``None`` for a peer.
    """

    tokens: list[list[int]]
    first: float
    whole: float
    stats: Any = None


def held_out_prompts(tokenizer: str, count: int, length: int, new_tokens: int) -> tuple[list[torch.Tensor], list[int]]:
    """The beginnings of packed sequences of the embedded corpus' test files, and their real continuations."""
    corpus = TextCorpus(tokenizer=tokenizer, sequence_length=length + new_tokens, batch_size=1)
    corpus.prepare_data()
    corpus.setup()
    apart = 7 if length < 1024 else 1  # long sequences are few
    taken = zip(corpus.test_dataloader(), range(count * apart), strict=False)
    sequences = [batch["input_ids"] for batch, _ in taken][::apart]
    if len(sequences) < count:
        raise SystemExit(
            f"the embedded corpus has {len(sequences)} texts of this length: lower --prompts or the lengths"
        )
    return [ids[:, :length] for ids in sequences], [token for ids in sequences for token in ids[0, length:].tolist()]


def distinct_4(texts: list[list[int]]) -> float:
    """Share of distinct 4-grams within each text, averaged: 1 is text without repetition."""
    counts = [distinct_grams(text) for text in texts]
    return sum(distinct / max(1, grams) for distinct, grams in counts) / len(counts)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second: those read and written by a large copy on a GPU, half of that on a processor (reads alone)."""
    source = torch.rand((2048 if device.type == "cuda" else 512) * 2**18, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(12):
        begin = clock(device)
        target.copy_(source)
        times.append(clock(device) - begin)
    return (2 if device.type == "cuda" else 1) * source.nbytes / median(times[2:])


def methods(
    model: PreTrainedModel,
    draft: PreTrainedModel | None,
    skip: str,
    new: int,
    temperature: float,
    engines: list[str],
    batch: int = 1,
) -> dict[str, Callable[[torch.Tensor], Result]]:
    """Every measured method: a function from prompts ``[batch, length]`` to a result."""
    plain: dict[str, Any] = {"do_sample": temperature > 0, "eos_token_id": None, "pad_token_id": 0}
    if temperature > 0:
        plain |= {"temperature": temperature, "top_k": 0}
    sampling = Sampling(temperature=temperature) if temperature > 0 else None

    def peer(**settings: object) -> Callable[[torch.Tensor], Result]:
        def run(ids: torch.Tensor) -> Result:
            seconds, out = [], ids
            for count in (1, new):
                begin = clock(ids.device)
                out = model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, **plain, **settings
                )
                seconds.append(clock(ids.device) - begin)
            return Result(out[:, ids.shape[1] :].tolist(), *seconds)

        return run

    def ours(decoder: Decoder) -> Callable[[torch.Tensor], Result]:
        def run(ids: torch.Tensor) -> Result:
            out = decoder.generate(model, ids, max_new_tokens=new, eos_token_id=(), sampling=sampling, do_sample=False)
            return Result(out.tokens, out.stats.prefill_seconds, out.stats.seconds, out.stats)

        return run

    found = {"transformers generate": peer()}
    if next(model.parameters()).is_cuda:
        found["transformers static cache, compiled"] = peer(cache_implementation="static")
    if batch == 1:  # transformers drafts for one row only
        found["transformers prompt_lookup"] = peer(prompt_lookup_num_tokens=8)
        if draft is not None:
            found["transformers assistant_model"] = peer(assistant_model=draft)
    for name in engines:
        suffix = "" if name == "auto" else f", {name}"
        kind: Any = name
        found[f"saccade Autoregressive{suffix}"] = ours(Autoregressive(engine=kind))
        found[f"saccade PromptLookup{suffix}"] = ours(PromptLookup(engine=kind))
        if draft is not None:
            found[f"saccade AssistedDecoding{suffix}"] = ours(AssistedDecoding(draft, engine=kind))
        found[f"saccade SelfSpeculative{suffix}"] = ours(SelfSpeculative(skip=skip, engine=kind))
    return found


def step_seconds(model: PreTrainedModel, prompt: torch.Tensor, kind: Any, runs: int) -> dict[str, list[float]]:
    """Seconds of a step of one token and of one that verifies a 26-node tree, behind a prompt."""
    found: dict[str, list[float]] = {}
    floor = EnginePool(EngineConfig(kind))
    with Session(model, prompt.shape[1] + 64, floor=floor) as session:
        session.prefill(prompt.tolist())
        for name, tree in (("step of 1 token", None), ("step of a 26-node tree", TREE)):
            tokens = prompt[:, -1:].expand(-1, 1 if tree is None else len(tree))
            times = []
            for _ in range(3 + 10 * runs):
                begin = clock(prompt.device)
                session.forward(tokens, tree)
                times.append(clock(prompt.device) - begin)
            found[name] = times[3:]
    return found


def rows_of(
    case: str, name: str, results: Sequence[Sequence[Result]], reference: list[list[int]], facts: dict[str, Any]
) -> list[dict[str, Any]]:
    """The rows of one method: tokens a second, milliseconds a token and until the first one.

    Args:
        case: What was continued.
        name: Of the method.
        results: For every run the results of all batches of prompts.
        reference: New tokens of ``model.generate``.
        facts: ``bytes_per_second``, ``bound`` (ms a token), ``greedy``, ``grown``, ``distinct_4_real``.
    """
    tokens = [row_ for item in results[-1] for row_ in item.tokens]
    new, batch = len(tokens[0]), len(results[-1][0].tokens)
    later = (new - 1) * len(results[-1])
    distinct, equal = distinct_4(tokens), sum(a == b for a, b in zip(tokens, reference, strict=True))
    extra: dict[str, Any] = {
        "identical_rows": equal if facts["greedy"] else None,
        "rows": len(tokens),
        "distinct_4": round(distinct, 4),
        "distinct_4_real": round(facts["distinct_4_real"], 4),
        "degenerate": distinct < DEGENERATE_BELOW * facts["distinct_4_real"],
        "bytes_per_second": facts["bytes_per_second"],
    }
    counts = [item.stats for item in results[-1] if item.stats is not None]
    if counts:
        pooled = sum(counts[1:], counts[0])
        extra |= {
            "target_forwards_per_token": round(batch * pooled.target_forwards / pooled.new_tokens, 4),
            "mean_acceptance_length": round(pooled.mean_acceptance_length, 4),
            "draft_acceptance_rate": round(pooled.draft_acceptance_rate, 4),
            "peak_memory_bytes": pooled.peak_memory_bytes,
        }
    speeds = [len(tokens) * new / sum(item.whole for item in run) for run in results]
    paces = [1e3 * sum(item.whole - item.first for item in run) / later for run in results]
    firsts = [1e3 * sum(item.first for item in run) / len(run) for run in results]
    bound = facts["bound"]
    made = []
    for metric, values, unit, limit in (
        ("tokens_per_second", speeds, "tokens/s", 1e3 * batch / bound),
        ("ms_per_token", paces, "ms", bound),
        ("time_to_first_token", firsts, "ms", None),
    ):
        made.append(
            row("decode", case, name, metric, values, unit, bound=limit, grown=facts["grown"], seed=SEED, extra=extra)
        )
    return made


def main() -> None:
    """Measures, prints a table and one line of JSON, writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=model_place, required=True, help="folder of the target, with its tokenizer")
    parser.add_argument(
        "--draft", type=model_place, help="folder of the draft model; none leaves assisted decoding out"
    )
    parser.add_argument("--skip", default="auto", help="skip_layers.json of the target")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="grow the target to this shape")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="bfloat16 on a GPU, float32 elsewhere")
    parser.add_argument("--engine", nargs="+", default=["auto"], choices=("auto", "eager", "graph"))
    parser.add_argument("--only", nargs="+", help="methods whose name contains one of these words")
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--prompts", type=positive, default=12, help="prompts in all, a multiple of --batch")
    parser.add_argument("--prompt-length", type=positive, default=64)
    parser.add_argument("--new-tokens", type=positive, default=96)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--runs", type=positive, default=5)
    parser.add_argument("--tree", action="store_true", help="also time steps of one token and of a 26-node tree")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    chosen = parser.parse_args()
    if not 0 <= chosen.temperature < math.inf:
        parser.error(f"--temperature: must be at least 0, but is {chosen.temperature}")
    if chosen.prompts % chosen.batch:
        parser.error(f"--prompts: must be a multiple of --batch, but {chosen.prompts} is none of {chosen.batch}")
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(SEED)
    device = torch.device(chosen.device)
    dtype = getattr(torch, chosen.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    model = AutoModelForCausalLM.from_pretrained(chosen.model, dtype=dtype).eval()
    trained = f"{model.config.num_hidden_layers} layers {sum(w.numel() for w in model.parameters()) / 1e6:.1f}M"
    model = grow(model, SHAPES[chosen.shape], dtype=dtype, device=device) if chosen.shape else model.to(device)
    length, new = chosen.prompt_length, chosen.new_tokens
    # rotation goes on behind the trained context; what a grown model says there does not matter, what it costs does
    model.config.max_position_embeddings = max(model.config.max_position_embeddings, length + new + 64)
    draft = None
    if chosen.draft:
        draft = AutoModelForCausalLM.from_pretrained(chosen.draft, dtype=dtype).eval().to(device)
    texts, real = held_out_prompts(chosen.model, chosen.prompts, length, new)
    prompts = [ids.to(device) for ids in torch.cat(texts).split(chosen.batch)]
    greedy = chosen.temperature == 0
    contenders = methods(model, draft, chosen.skip, new, chosen.temperature, chosen.engine, chosen.batch)
    if chosen.only:
        contenders = {name: run for name, run in contenders.items() if any(word in name for word in chosen.only)}
    runs: dict[str, list[list[Result]]] = {name: [] for name in contenders}
    for _ in track(range(chosen.runs + 1), description="runs (the first warms up)"):
        for name, run in contenders.items():
            runs[name].append([run(ids) for ids in prompts])
    bandwidth = copy_bandwidth(device)
    needed = weight_bytes(model) + cache_bytes(model, chosen.batch, length + new // 2)
    case = (
        f"{model.config.model_type} {trained} {str(dtype).removeprefix('torch.')}, trained on Python sources"
        + (f", grown to {chosen.shape}" if chosen.shape else "")
        + f", batch {chosen.batch}, prompt {length}, {new} new tokens, {len(texts)} held-out prompts"
        + (f", {chosen.threads} thread(s)" if device.type == "cpu" else "")
        + ("" if greedy else f", sampling at temperature {chosen.temperature:g}")
    )
    facts = {
        "bytes_per_second": bandwidth,
        "bound": 1e3 * needed / bandwidth,
        "greedy": greedy,
        "grown": bool(chosen.shape),
        "distinct_4_real": distinct_4([real[i : i + new] for i in range(0, len(real), new)]),
    }
    first = next(iter(runs))
    reference = [tokens for item in runs.get("transformers generate", runs[first])[-1] for tokens in item.tokens]
    made = [item for name in contenders for item in rows_of(case, name, runs[name][1:], reference, facts)]
    if chosen.tree:
        for kind in chosen.engine:
            for name, seconds in step_seconds(model, prompts[0], kind, chosen.runs).items():
                values = [1e3 * item for item in seconds]
                made.append(
                    row("decode", case, f"{name}, {kind}", "ms_per_step", values, "ms", grown=bool(chosen.shape))
                )
    replace(made)
    report(made, case, needed, bandwidth)


def report(made: list[dict[str, Any]], case: str, needed: int, bandwidth: float) -> None:
    """Prints the table, what bounds it, and all of it as one line of JSON."""
    table = Table(title=case)
    for column in ("method", "ms/token", "of the bound", "first token, ms", "tokens/s", "equal rows", "distinct-4"):
        table.add_column(column)
    by_method: dict[str, dict[str, dict[str, Any]]] = {}
    for item in made:
        by_method.setdefault(item["method"], {})[item["metric"]] = item
    for name, found in by_method.items():
        if "ms_per_step" in found:
            table.add_row(name, f"{found['ms_per_step']['value']:.3f} a step")
            continue
        pace, speed = found["ms_per_token"], found["tokens_per_second"]
        table.add_row(
            name,
            f"{pace['value']:.3f} ({pace['spread']['min']:.3f} to {pace['spread']['max']:.3f})",
            f"{pace['bound'] / pace['value']:.0%}",
            f"{found['time_to_first_token']['value']:.1f}",
            f"{speed['value']:.1f}",
            "" if pace["identical_rows"] is None else f"{pace['identical_rows']}/{pace['rows']}",
            f"{pace['distinct_4']:.2f} (real {pace['distinct_4_real']:.2f})",
        )
    Console(width=170).print(table)
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"device: {', '.join(device_names())}; a token needs {needed:,} bytes, {bandwidth:,.0f} bytes/s read")
    brief = {f"{item['method']} {item['metric']}": round(item["value"], 4) for item in made}
    console.print(
        json.dumps({"case": case, "bytes": needed, "bytes_per_second": round(bandwidth), **brief}), markup=False
    )


if __name__ == "__main__":
    main()
