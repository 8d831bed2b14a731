"""Time to the first token and per token, for every decoder and for the matching calls of transformers.

    python -m benchmarks.decoding.decode --model RUN/model --draft RUN/model [--skip RUN/skip_layers.json]
    python -m benchmarks.decoding.decode --model RUN/model --shape 7B --prompt-length 512 --device cuda --engine graph

All methods continue the same held-out prompts within one process, in turn, so that a change in the machine's load
affects all of them. The first round warms up, each further round is a run. Greedy outputs are compared token by token
with ``model.generate``. With ``--temperature`` all methods sample, which keeps a small model from repeating itself.
``--shape`` grows the model first (:mod:`benchmarks.decoding.grow`): the same text at the cost of a larger model.

The bound of a token is the time to read, at the device's measured copy bandwidth, the weights that a forward needs and
the keys and values of the text when half of the new tokens are there. ``--tree`` also times steps of one token and of a
26-node tree.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.decoding.grow import SHAPES, grow, weight_bytes
from benchmarks.rows import by_method, equal_texts, model_place, positive, replace, row
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
from saccade.inference.verification.near_ties import first_difference

SEED = 0
COPIED_MIB = {"cuda": 2048, "cpu": 512}
"""Size of the copy that measures the bandwidth; much larger than caches."""
# 26 nodes as in SpecVLM and EAGLE-2: wide at the top, one deep path
TREE = TokenTree((-1, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 5, 5, 6, 8, 11, 11, 12, 13, 15, 15, 17, 19, 19, 22, 24))
STEPS = {"step of 1 token": None, "step of a 26-node tree": TREE}


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


Method = Callable[[torch.Tensor], Result]
"""What is measured: a function from prompts ``[batch, length]`` to a result."""

Judge = Callable[[int, list[int], list[int]], bool]
"""Whether rounding explains that the text of a row is not the reference: ``judge(row, text, reference)``."""


@dataclass(frozen=True)
class Facts:
    """What the rows of all methods have in common.

    Args:
        benchmark: Name of the benchmark, and of the file that its rows go to.
        case: What was continued, in words.
        bytes_per_second: Measured copy bandwidth of the device.
        needed: Bytes that a forward for one token of each row reads.
        greedy: Whether texts are to equal those of ``model.generate``.
        grown: Whether the model was grown.
        distinct_4_real: Share of distinct 4-grams in the real continuations; ``None`` where there are none.
    """

    benchmark: str
    case: str
    bytes_per_second: float
    needed: int
    greedy: bool
    grown: bool
    distinct_4_real: float | None

    @property
    def bound(self) -> float:
        """Milliseconds in which the needed bytes can be read."""
        return 1e3 * self.needed / self.bytes_per_second


def held_out_prompts(tokenizer: str, count: int, length: int, new_tokens: int) -> tuple[list[torch.Tensor], list[int]]:
    """Prompts from the test files of the embedded corpus, and the tokens that really follow them.

    Raises:
        SystemExit: The corpus has too few texts of this length.
    """
    corpus = TextCorpus(tokenizer=tokenizer, sequence_length=length + new_tokens, batch_size=1)
    corpus.prepare_data()
    corpus.setup()
    apart = 7 if length < 1024 else 1  # there are few long sequences
    taken = zip(corpus.test_dataloader(), range(count * apart), strict=False)
    sequences = [batch["input_ids"] for batch, _ in taken][::apart]
    if len(sequences) < count:
        raise SystemExit(
            f"--prompts must be at most {len(sequences)} at these lengths, got {count}: lower it, or the lengths."
        )
    return [ids[:, :length] for ids in sequences], [token for ids in sequences for token in ids[0, length:].tolist()]


def distinct_4(texts: list[list[int]]) -> float:
    """Share of distinct 4-grams within each text, averaged over texts; 1 means that nothing is repeated."""
    counts = [distinct_grams(text) for text in texts]
    return sum(distinct / max(1, grams) for distinct, grams in counts) / len(counts)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second of a large copy: bytes read and written on a GPU, bytes read on a processor."""
    source = torch.rand(COPIED_MIB["cuda" if device.type == "cuda" else "cpu"] * 2**18, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(12):
        begin = clock(device)
        target.copy_(source)
        times.append(clock(device) - begin)
    return (2 if device.type == "cuda" else 1) * source.nbytes / median(times[2:])


def peer(model: PreTrainedModel, new: int, temperature: float = 0.0, **settings: object) -> Method:
    """``model.generate`` with further settings of its own; a text ends at ``new`` tokens only.

    It runs twice, once for one token, because it does not tell when the first token is there.
    """
    plain: dict[str, Any] = {"do_sample": temperature > 0, "eos_token_id": None, "pad_token_id": 0, **settings}
    if temperature > 0:
        plain |= {"temperature": temperature, "top_k": 0}

    generate: Any = model.generate

    def run(ids: torch.Tensor) -> Result:
        seconds, out = [], ids
        for count in (1, new):
            begin = clock(ids.device)
            out = generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, **plain)
            seconds.append(clock(ids.device) - begin)
        return Result(out[:, ids.shape[1] :].tolist(), *seconds)

    return run


def ours(decoder: Decoder, model: PreTrainedModel, new: int, temperature: float = 0.0) -> Method:
    """A decoder of this library; a text ends at ``new`` tokens only."""
    sampling = Sampling(temperature=temperature) if temperature > 0 else None

    def run(ids: torch.Tensor) -> Result:
        out = decoder.generate(model, ids, max_new_tokens=new, eos_token_id=(), sampling=sampling)
        return Result(out.tokens, out.stats.prefill_seconds, out.stats.seconds, out.stats)

    return run


def methods(
    model: PreTrainedModel,
    draft: PreTrainedModel | None,
    skip: str,
    new: int,
    temperature: float,
    engines: list[str],
    batch: int = 1,
) -> dict[str, Method]:
    """Every measured method by name."""
    found = {"transformers generate": peer(model, new, temperature)}
    if next(model.parameters()).is_cuda:
        found["transformers static cache, compiled"] = peer(model, new, temperature, cache_implementation="static")
    if batch == 1:  # transformers drafts for one row only
        found["transformers prompt_lookup"] = peer(model, new, temperature, prompt_lookup_num_tokens=8)
        if draft is not None:
            found["transformers assistant_model"] = peer(model, new, temperature, assistant_model=draft)
    for name in engines:
        suffix = "" if name == "auto" else f", {name}"
        kind: Any = name
        decoders: dict[str, Decoder] = {
            "Autoregressive": Autoregressive(engine=kind),
            "PromptLookup": PromptLookup(engine=kind),
        }
        if draft is not None:
            decoders["AssistedDecoding"] = AssistedDecoding(draft, engine=kind)
        decoders["SelfSpeculative"] = SelfSpeculative(skip=skip, engine=kind)
        found |= {f"saccade {key}{suffix}": ours(item, model, new, temperature) for key, item in decoders.items()}
    return found


def only(contenders: dict[str, Method], words: Sequence[str] | None) -> dict[str, Method]:
    """The methods whose name contains one of some words; all of them where there are no words.

    Raises:
        SystemExit: No name contains a word.
    """
    found = {name: run for name, run in contenders.items() if not words or any(word in name for word in words)}
    if not found:
        raise SystemExit(f"--only must be part of one of {', '.join(contenders)}, got {' '.join(words or [])}.")
    return found


def measure(
    contenders: dict[str, Method], prompts: Sequence[torch.Tensor], runs: int, peers_may_fail: bool = False
) -> dict[str, list[list[Result]]]:
    """The results of every method, for each run those of all prompts; the methods take turns in each run.

    Args:
        contenders: The methods by name.
        prompts: ``[batch, length]`` ids.
        runs: How many runs count; one more before them warms up.
        peers_may_fail: Whether a method of transformers that fails is left out, with the reason printed, and does not
            end the measurement.
    """
    found: dict[str, list[list[Result]]] = {name: [] for name in contenders}
    for _ in track(range(runs + 1), description="runs (the first warms up)"):
        for name in list(found):
            try:
                found[name].append([contenders[name](ids) for ids in prompts])
            except Exception as error:
                if not (peers_may_fail and name.startswith("transformers")):
                    raise
                del found[name]
                reason = (str(error).splitlines() or [""])[0]
                console = Console(soft_wrap=True, highlight=False)
                console.print(f"{name} is left out: {type(error).__name__} {reason}", markup=False)
    return {name: made[1:] for name, made in found.items()}


def step_seconds(
    model: PreTrainedModel,
    prompt: torch.Tensor,
    kind: Any,
    runs: int,
    trees: Mapping[str, TokenTree | None] = STEPS,
) -> dict[str, list[float]]:
    """Seconds of a step of every tree after a prompt, whose tokens it reads again; ``None`` is a step of one token."""
    found: dict[str, list[float]] = {}
    pool = EnginePool(EngineConfig(kind))
    with Session(model, prompt.shape[1] + 64, pool=pool) as session:
        session.prefill(prompt.tolist())
        for name, tree in trees.items():
            nodes = 1 if tree is None else len(tree)
            tokens = prompt.repeat(1, -(-nodes // prompt.shape[1]))[:, -nodes:]
            times = []
            for _ in range(3 + 10 * runs):
                begin = clock(prompt.device)
                session.forward(tokens, tree)
                times.append(clock(prompt.device) - begin)
            found[name] = times[3:]
    return found


def near_tie(model: PreTrainedModel, prompts: Sequence[torch.Tensor]) -> Judge:
    """Judges greedy texts with a forward of the model."""
    texts = [row_ for ids in prompts for row_ in ids.tolist()]
    return lambda at, text, right: first_difference(model, texts[at], text, right).near


def rows_of(facts: Facts, found: dict[str, list[list[Result]]], near: Judge | None = None) -> list[dict[str, Any]]:
    """The rows of all methods: tokens a second, milliseconds a token and until the first one.

    Args:
        facts: What the rows have in common.
        found: For every method its runs, for every run the results of all batches of prompts. Texts are compared with
            those of ``transformers generate``, or of the first method where that is missing.
        near: Judges texts that differ; ``None`` counts no near ties.
    """
    first = found.get("transformers generate") or next(iter(found.values()))
    reference = [tokens for item in first[-1] for tokens in item.tokens]
    return [row_ for name, results in found.items() for row_ in _rows_of_method(facts, name, results, reference, near)]


def _rows_of_method(
    facts: Facts, name: str, results: Sequence[Sequence[Result]], reference: list[list[int]], near: Judge | None
) -> list[dict[str, Any]]:
    tokens = [row_ for item in results[-1] for row_ in item.tokens]
    new, batch = len(tokens[0]), len(results[-1][0].tokens)
    later = (new - 1) * len(results[-1])
    distinct = distinct_4(tokens)
    left = [(at, a, b) for at, (a, b) in enumerate(zip(tokens, reference, strict=True)) if a != b]
    real = facts.distinct_4_real
    extra: dict[str, Any] = {
        "identical_rows": len(tokens) - len(left) if facts.greedy else None,
        "near_tie_rows": sum(near(*each) for each in left) if facts.greedy and near is not None else None,
        "rows": len(tokens),
        "distinct_4": round(distinct, 4),
        "distinct_4_real": None if real is None else round(real, 4),
        "degenerate": None if real is None else distinct < DEGENERATE_BELOW * real,
        "bytes_per_second": facts.bytes_per_second,
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
    settings: dict[str, Any] = {"grown": facts.grown, "seed": SEED, "extra": extra}
    return [
        row(facts.benchmark, facts.case, name, metric, values, unit, bound=bound, **settings)
        for metric, values, unit, bound in (
            ("tokens_per_second", speeds, "tokens/s", 1e3 * batch / facts.bound),
            ("ms_per_token", paces, "ms", facts.bound),
            ("time_to_first_token", firsts, "ms", None),
        )
    ]


def main() -> None:
    """Measures, prints a table and one line of JSON, and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=model_place, required=True, help="folder of the target, with its tokenizer")
    parser.add_argument(
        "--draft", type=model_place, help="folder of the draft model; without one, assisted decoding is left out"
    )
    parser.add_argument("--skip", default="auto", help="skip_layers.json of the target")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="grow the target to this shape")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="bfloat16 on a GPU, else float32")
    parser.add_argument("--engine", nargs="+", default=["auto"], choices=("auto", "eager", "graph"))
    parser.add_argument("--only", nargs="+", help="measure the methods whose name contains one of these words")
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--prompts", type=positive, default=12, help="number of prompts, a multiple of --batch")
    parser.add_argument("--prompt-length", type=positive, default=64)
    parser.add_argument("--new-tokens", type=positive, default=96)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--runs", type=positive, default=5)
    parser.add_argument("--tree", action="store_true", help="also time steps of one token and of a 26-node tree")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    chosen = parser.parse_args()
    if not 0 <= chosen.temperature < math.inf:
        parser.error(f"--temperature must be at least 0 and finite, got {chosen.temperature}: 0 is greedy.")
    if chosen.prompts % chosen.batch:
        parser.error(
            f"--prompts must be a multiple of --batch ({chosen.batch}), got {chosen.prompts}: change one of them."
        )
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(SEED)
    device = torch.device(chosen.device)
    dtype = getattr(torch, chosen.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    model = AutoModelForCausalLM.from_pretrained(chosen.model, dtype=dtype).eval()
    trained = f"{model.config.num_hidden_layers} layers {sum(w.numel() for w in model.parameters()) / 1e6:.1f}M"
    model = grow(model, SHAPES[chosen.shape], dtype=dtype, device=device) if chosen.shape else model.to(device)
    length, new = chosen.prompt_length, chosen.new_tokens
    # beyond the trained context the text has no meaning, and its speed is the same
    model.config.max_position_embeddings = max(model.config.max_position_embeddings, length + new + 64)
    draft = None
    if chosen.draft:
        draft = AutoModelForCausalLM.from_pretrained(chosen.draft, dtype=dtype).eval().to(device)
    texts, real = held_out_prompts(chosen.model, chosen.prompts, length, new)
    prompts = [ids.to(device) for ids in torch.cat(texts).split(chosen.batch)]
    greedy = chosen.temperature == 0
    contenders = methods(model, draft, chosen.skip, new, chosen.temperature, chosen.engine, chosen.batch)
    found = measure(only(contenders, chosen.only), prompts, chosen.runs)
    case = (
        f"{model.config.model_type} {trained} {str(dtype).removeprefix('torch.')}, trained on Python sources"
        + (f", grown to {chosen.shape}" if chosen.shape else "")
        + f", batch {chosen.batch}, prompt {length}, {new} new tokens, {len(texts)} held-out prompts"
        + (f", {chosen.threads} thread(s)" if device.type == "cpu" else "")
        + ("" if greedy else f", sampling at temperature {chosen.temperature:g}")
    )
    facts = Facts(
        benchmark="decode",
        case=case,
        bytes_per_second=copy_bandwidth(device),
        needed=weight_bytes(model) + cache_bytes(model, chosen.batch, length + new // 2),
        greedy=greedy,
        grown=bool(chosen.shape),
        distinct_4_real=distinct_4([real[i : i + new] for i in range(0, len(real), new)]),
    )
    made = rows_of(facts, found, near_tie(model, prompts))
    if chosen.tree:
        for kind in chosen.engine:
            for name, seconds in step_seconds(model, prompts[0], kind, chosen.runs).items():
                values = [1e3 * item for item in seconds]
                made.append(
                    row("decode", case, f"{name}, {kind}", "ms_per_step", values, "ms", grown=bool(chosen.shape))
                )
    replace(made)
    report(made, facts)


def report(made: list[dict[str, Any]], facts: Facts) -> None:
    """Prints the table, the bytes behind its bound, and all figures as one line of JSON."""
    table = Table(title=facts.case)
    for column in ("method", "ms/token", "of the bound", "first token, ms", "tokens/s", "equal rows", "distinct-4"):
        table.add_column(column)
    real = facts.distinct_4_real
    for name, found in by_method(made).items():
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
            equal_texts(pace),
            f"{pace['distinct_4']:.2f}" + ("" if real is None else f" (real {real:.2f})"),
        )
    Console(width=170).print(table)
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"device: {', '.join(device_names())}; a token needs {facts.needed:,} bytes, which are read at "
        f"{facts.bytes_per_second:,.0f} bytes/s"
    )
    brief = {f"{item['method']} {item['metric']}": round(item["value"], 4) for item in made}
    head = {"case": facts.case, "bytes": facts.needed, "bytes_per_second": round(facts.bytes_per_second)}
    console.print(json.dumps(head | brief), markup=False)


if __name__ == "__main__":
    main()
