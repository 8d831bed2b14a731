"""Tokens per second of every decoder beside what a transformers user would call instead, on one processor.

    python -m benchmarks.decode_cpu --model RUN/model --draft RUN/model [--skip RUN/skip_layers.json]

All methods continue the same held-out prompts one by one (batch 1) within one process, in turn, so that a change in
the machine's load meets all of them; one round warms up, each further round is a run. Greedy outputs are compared
token by token with ``model.generate``; with ``--temperature`` all methods sample, which keeps a small model from
repeating itself. The bound is the reading speed of the weights (measured by a large copy) times
the tokens a forward yields at most without drafting: 1.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.rows import replace, row
from saccade.callbacks.decoding_report import DEGENERATE_BELOW
from saccade.callbacks.decoding_totals import distinct_grams
from saccade.datamodules import TextCorpus
from saccade.inference import AssistedDecoding, Autoregressive, Decoder, PromptLookup, Sampling, SelfSpeculative
from saccade.inference.provenance import device_names

SEED = 0


def held_out_prompts(tokenizer: str, count: int, length: int, new_tokens: int) -> tuple[list[torch.Tensor], list[int]]:
    """The beginnings of packed sequences of the embedded corpus' test files, and their real continuations."""
    corpus = TextCorpus(tokenizer=tokenizer, sequence_length=length + new_tokens, batch_size=1)
    corpus.prepare_data()
    corpus.setup()
    sequences = [batch["input_ids"] for batch, _ in zip(corpus.test_dataloader(), range(count * 7), strict=False)][::7]
    return [ids[:, :length] for ids in sequences], [token for ids in sequences for token in ids[0, length:].tolist()]


def distinct_4(texts: list[list[int]]) -> float:
    """Share of distinct 4-grams within each text, averaged: 1 is text without repetition."""
    counts = [distinct_grams(text) for text in texts]
    return sum(distinct / max(1, grams) for distinct, grams in counts) / len(counts)


def copy_bandwidth(megabytes: int = 512) -> float:
    """Bytes per second that this process reads, measured by copying (bytes read and written, halved)."""
    source = torch.rand(megabytes * 2**18)
    target = torch.empty_like(source)
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - begin)
    return source.nbytes / median(times)


def methods(
    model: PreTrainedModel, draft: PreTrainedModel, skip: str, new_tokens: int, temperature: float
) -> dict[str, Callable]:
    """Every measured method: a function from a prompt ``[1, length]`` to new tokens and target forwards (or None)."""
    plain = {"max_new_tokens": new_tokens, "do_sample": temperature > 0, "eos_token_id": None, "pad_token_id": 0}
    if temperature > 0:
        plain |= {"temperature": temperature, "top_k": 0}
    sampling = Sampling(temperature=temperature) if temperature > 0 else None

    def peer(**settings: object) -> Callable:
        def run(ids: torch.Tensor) -> tuple[list[int], None]:
            out = model.generate(ids, attention_mask=torch.ones_like(ids), **plain, **settings)
            return out[0, ids.shape[1] :].tolist(), None

        return run

    def ours(decoder: Decoder) -> Callable:
        def run(ids: torch.Tensor) -> tuple[list[int], object]:
            out = decoder.generate(model, ids, max_new_tokens=new_tokens, eos_token_id=(), sampling=sampling)
            return out.tokens[0], out.stats

        return run

    return {
        "transformers generate": peer(),
        "transformers prompt_lookup": peer(prompt_lookup_num_tokens=8),
        "transformers assistant_model": peer(assistant_model=draft),
        "saccade Autoregressive": ours(Autoregressive()),
        "saccade PromptLookup": ours(PromptLookup()),
        "saccade AssistedDecoding": ours(AssistedDecoding(draft)),
        "saccade SelfSpeculative": ours(SelfSpeculative(skip=skip)),
    }


def main() -> None:
    """Measures, prints a table, writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the target, with its tokenizer")
    parser.add_argument("--draft", required=True, help="folder of the draft model")
    parser.add_argument("--skip", default="auto", help="skip_layers.json of the target")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--prompt-length", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_pretrained(arguments.model).eval()
    draft = AutoModelForCausalLM.from_pretrained(arguments.draft).eval()
    new = arguments.new_tokens
    prompts, real = held_out_prompts(arguments.model, arguments.prompts, arguments.prompt_length, new)
    real_distinct = distinct_4([real[i : i + new] for i in range(0, len(real), new)])
    contenders = methods(model, draft, arguments.skip, new, arguments.temperature)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    outputs: dict[str, list] = {}
    for _ in track(range(arguments.runs + 1), description="runs (the first warms up)"):
        for name, run in contenders.items():
            begin = time.perf_counter()
            outputs[name] = [run(ids) for ids in prompts]
            seconds[name].append(time.perf_counter() - begin)
    parameters = sum(weight.numel() for weight in model.parameters())
    bandwidth = copy_bandwidth()
    bound = bandwidth / sum(weight.nbytes for weight in model.parameters())
    layers = model.config.num_hidden_layers
    case = (
        f"{model.config.model_type} {layers} layers {parameters / 1e6:.1f}M float32, trained on Python sources, "
        f"batch 1, prompt {arguments.prompt_length}, {new} new tokens, {len(prompts)} held-out prompts, "
        f"{arguments.threads} thread(s)"
    )
    greedy = arguments.temperature == 0
    if not greedy:
        case += f", sampling at temperature {arguments.temperature:g}"
    table = Table("method", "tokens/s", "spread", "equal rows", "target forwards/token", "distinct-4", title=case)
    rows, reference = [], [tokens for tokens, _ in outputs["transformers generate"]]
    for name in contenders:
        tokens = [tokens for tokens, _ in outputs[name]]
        equal = sum(mine == theirs for mine, theirs in zip(tokens, reference, strict=True))
        speeds = [len(prompts) * new / value for value in seconds[name][1:]]
        distinct = distinct_4(tokens)
        extra = {
            "identical_rows": equal if greedy else None,
            "rows": len(prompts),
            "distinct_4": round(distinct, 4),
            "distinct_4_real": round(real_distinct, 4),
            "degenerate": distinct < DEGENERATE_BELOW * real_distinct,
            "bytes_per_second": bandwidth,
        }
        stats = [stats for _, stats in outputs[name] if stats is not None]
        if stats:
            pooled = sum(stats[1:], stats[0])
            extra |= {
                "target_forwards_per_token": round(pooled.target_forwards / pooled.new_tokens, 4),
                "mean_acceptance_length": round(pooled.mean_acceptance_length, 4),
                "draft_acceptance_rate": round(pooled.draft_acceptance_rate, 4),
            }
        result = row(
            "decode_cpu", case, name, "tokens_per_second", speeds, "tokens/s", bound=bound, seed=SEED, extra=extra
        )
        rows.append(result)
        table.add_row(
            name,
            f"{result['value']:.1f}",
            f"{min(speeds):.1f} to {max(speeds):.1f}",
            f"{equal}/{len(prompts)}" if greedy else "",
            f"{extra.get('target_forwards_per_token', '')}",
            f"{distinct:.2f} (real {real_distinct:.2f})",
        )
    replace(rows)
    Console(width=160).print(table)
    Console().print(f"device: {', '.join(device_names())}; weights can be read {bound:.0f} times a second")


if __name__ == "__main__":
    main()
