"""The speed-up of SpecVLM and LVSpec at full size: a trained pair, grown to the shapes of large models, on long videos.

    python -m benchmarks.video.speed --target RUN/model --draft RUN/model --target-shape 32B --draft-shape 7B

Both models are grown first (:mod:`benchmarks.decoding.grow`): the same text at the cost of larger models. Without
shapes they stay as they are. All methods answer the same held-out prompts within one process, in turn. The first round
warms up, each further round is a run.

Times are those of whole calls and, as in the paper, of decoding alone: after the prefill of both models, with the first
draft.

A round costs as much as R tokens of autoregressive decoding. It is timed with the decoder's own code on a text that
does not grow, so that R does not depend on how many drafts happen to be accepted (:mod:`benchmarks.video.rounds`). The
cost model predicts that decoding is (T + 1) / R times as fast when T drafts of a round are accepted; the prediction is
printed beside the measured speed-up.

``--clips`` names frames and size: 128x112 has 4,096 tokens, with 14 pixels to a token and two frames to a step.
``--selectors`` and ``--ratios`` measure SpecVLM with every selector at every share of removed tokens.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from benchmarks import rows
from benchmarks.decoding.decode import copy_bandwidth
from benchmarks.decoding.grow import SHAPES, grow, weight_bytes
from benchmarks.video.prompts import HeldOut, allow, default_config, load
from benchmarks.video.rounds import RoundCost, round_cost
from saccade.common.provenance import device_names
from saccade.common.timing import clock
from saccade.inference import Autoregressive, Decoder, LVSpec, SpecVLM
from saccade.inference.huggingface.generation_config import end_of_text_ids
from saccade.inference.huggingface.models import cache_bytes, language_part, text_config
from saccade.inference.reduction.selectors import SELECTORS
from saccade.inference.statistics import DecodingStats

SEED = 0
BASE, NAIVE, RELAXED = "Autoregressive", "naive speculation", "LVSpec 0.7"
UNIT = f"times {BASE}"
PEERS = ("transformers generate", "transformers assistant_model")


@dataclass
class Result:
    """The result of one method for one prompt.

    Args:
        tokens: New tokens.
        ready: Seconds until both models have read the prompt and the first tokens are there.
        whole: Seconds until the last token.
        first: Tokens that came with the prefill.
        stats: The decoder's own counts; ``None`` for transformers.
        rounds: Tokens of each later round of transformers.
    """

    tokens: list[int]
    ready: float
    whole: float
    first: int = 1
    stats: DecodingStats | None = None
    rounds: tuple[int, ...] = ()

    @property
    def later(self) -> int:
        """Tokens after the prefill."""
        return len(self.tokens) - self.first


class Marks(BaseStreamer):
    """Records when ``model.generate`` gives tokens, and how many."""

    def __init__(self) -> None:
        self.notes: list[tuple[float, int]] = []

    def put(self, value: Tensor) -> None:
        """Records tokens, which are on the host already."""
        self.notes.append((time.perf_counter(), value.numel()))

    def end(self) -> None:
        """Does nothing."""


Method = Callable[[dict[str, Any]], Result]
"""What is measured: a function from the inputs of one prompt to a result."""


def decoders(
    draft: PreTrainedModel, engine: Any, selectors: Sequence[str] = ("two_stage",), ratios: Sequence[float] = (0.9,)
) -> dict[str, Decoder]:
    """The measured decoders: the reference, and those that draft with the smaller model, always as much as they can.

    Args:
        draft: The smaller model.
        engine: How forwards run.
        selectors: Selectors of SpecVLM; the method's own is not in the names of the decoders.
        ratios: Shares of the video tokens that it removes.
    """
    fixed: dict[str, Any] = {"engine": engine, "control": "fixed"}
    pruned: dict[str, Decoder] = {
        f"SpecVLM {share:g}{'' if name == 'two_stage' else f', {name}'}": SpecVLM(
            draft, prune_ratio=share, selector=name, **fixed
        )
        for name in selectors
        for share in ratios
    }
    return {
        BASE: Autoregressive(engine=engine),
        NAIVE: SpecVLM(draft, selector="none", prune_ratio=0.0, **fixed),
        **pruned,
        RELAXED: LVSpec(draft, **fixed),
    }


def ours(decoder: Decoder, model: PreTrainedModel, new: int) -> Method:
    """A decoder of this library as a method."""

    def run(inputs: dict[str, Any]) -> Result:
        out = decoder.generate(model, max_new_tokens=new, do_sample=False, **inputs)
        ready = out.stats.prefill_seconds + out.stats.draft_prefill_seconds
        return Result(out.tokens[0], ready, out.stats.seconds, stats=out.stats)

    return run


def peer(model: PreTrainedModel, new: int, **settings: object) -> Method:
    """``model.generate`` as a method.

    With an assistant the first round is counted as prefill, because both models read the prompt in it.
    """

    def run(inputs: dict[str, Any]) -> Result:
        device, marks = inputs["input_ids"].device, Marks()
        generate: Any = model.generate
        begin = clock(device)
        out = generate(**inputs, max_new_tokens=new, do_sample=False, pad_token_id=0, streamer=marks, **settings)
        whole = clock(device) - begin
        length = inputs["input_ids"].shape[1]
        _, (first, count), *later = marks.notes  # the prompt itself comes out first
        return Result(
            out[0, length:].tolist(), first - begin, whole, count, rounds=tuple(number for _, number in later)
        )

    return run


def measure(
    methods: dict[str, Method], prompts: Sequence[dict[str, Tensor]], runs: int, warm_ups: int = 1
) -> dict[str, list[list[Result]]]:
    """The results of every method, for each run those of all prompts; the methods take turns.

    A whole round warms up this library's decoders: they capture every width of step in it.
    """
    found: dict[str, list[list[Result]]] = {name: [] for name in methods}
    for attempt in track(range(runs + warm_ups), description=f"runs of {len(methods)} methods"):
        for name, method in methods.items():
            made = [method(inputs) for inputs in prompts]
            if attempt >= warm_ups:
                found[name].append(made)
    return {name: made for name, made in found.items() if made}


def measure_peers(
    methods: dict[str, Method], prompts: Sequence[dict[str, Tensor]], runs: int
) -> dict[str, list[list[Result]]]:
    """The same for transformers, without a warm-up; a method that fails is left out, and the reason is printed."""
    found: dict[str, list[list[Result]]] = {}
    for name, method in methods.items():
        try:
            found |= measure({name: method}, prompts, runs, warm_ups=0)
        except Exception as error:  # whatever happens there, the other rows are written
            reason = str(error).splitlines()[0] if str(error) else ""
            Console(soft_wrap=True).print(f"{name} is left out: {type(error).__name__} {reason}", markup=False)
    return found


class Report:
    """Makes the rows of one pair at one length of video.

    Args:
        case: In words.
        found: The runs of every method.
        data: Where the prompts are from.
        costs: The cost of a round of every decoder.
        bounds: ``bytes_per_second`` of the device and ``bound``, the ms of an autoregressive token at that speed.
        grown: Whether the models were grown.
    """

    def __init__(
        self,
        case: str,
        found: dict[str, list[list[Result]]],
        data: HeldOut,
        costs: dict[str, RoundCost],
        bounds: dict[str, float],
        grown: bool,
    ) -> None:
        self.grown = grown
        self.case, self.found, self.data, self.costs, self.bounds = case, found, data, costs, bounds
        self.one = median(pace(run) for run in found[BASE])

    def rows(self) -> list[dict[str, Any]]:
        """All rows: speed-ups, milliseconds a token and tokens a second of every method, and the cost of relevance."""
        made = []
        for name, runs in self.found.items():
            extra = self.facts(name, runs[-1])
            base = self.found[BASE][: len(runs)]
            for metric, values, unit in (
                ("decode_speedup", [pace(b) / pace(a) for a, b in zip(runs, base, strict=True)], UNIT),
                ("whole_speedup", [rate(a) / rate(b) for a, b in zip(runs, base, strict=True)], UNIT),
                ("ms_per_token", [1e3 * pace(run) for run in runs], "ms"),
                ("tokens_per_second", [rate(run) for run in runs], "tokens/s"),
                ("ready_seconds", [sum(item.ready for item in run) / len(run) for run in runs], "s"),
            ):
                bound = self.bounds["bound"] if (name, metric) == (BASE, "ms_per_token") else None
                made.append(self.row(name, metric, values, unit, extra, bound))
        for name, cost in self.costs.items():
            if cost.relevance is not None:
                shares = [cost.relevance / cost.whole]
                made.append(self.row(name, "relevance_share", shares, "of a round", {"ms": 1e3 * cost.relevance}))
        return made

    def row(
        self,
        name: str,
        metric: str,
        values: list[float],
        unit: str,
        extra: dict[str, Any],
        bound: float | None = None,
    ) -> dict[str, Any]:
        """One row."""
        return rows.row(
            "video_speed",
            self.case,
            name,
            metric,
            values,
            unit,
            bound=bound,
            grown=self.grown,
            seed=SEED,
            extra=dict(extra),
        )

    def facts(self, name: str, results: Sequence[Result]) -> dict[str, Any]:
        """The entries of a method's rows beside its times, from one of its runs."""
        texts = [item.tokens for item in results]
        own = [item.tokens for item in self.found[BASE][-1]]
        extra: dict[str, Any] = {
            **self.data.variety(texts),
            "identical_rows": sum(a == b for a, b in zip(texts, own, strict=True)),
            "rows": len(texts),
            "new_tokens": sum(len(text) for text in texts),
            "slot_accuracy": self.slots(texts),
            "video_tokens": self.data.video_tokens,
            "bytes_per_second": self.bounds["bytes_per_second"],
        }
        rounds = [number for item in results for number in item.rounds]
        counts = [item.stats for item in results if item.stats is not None]
        if rounds:
            extra["T"] = sum(rounds) / len(rounds) - 1
        if counts:
            pooled = sum(counts[1:], counts[0])
            extra |= {
                "T": pooled.mean_accepted_draft_tokens,
                "relaxed_share": pooled.relaxed_share,
                "peak_memory_bytes": pooled.peak_memory_bytes,
            }
        if name in self.costs:
            extra |= self.predicted(name, extra["T"])
        return extra

    def predicted(self, name: str, accepted: float) -> dict[str, Any]:
        """The prediction of the cost model, and the memory that the draft's prompt takes."""
        cost = self.costs[name]
        extra: dict[str, Any] = {
            "R": cost.whole / self.one,
            "draft_share": cost.draft / cost.whole,
            "predicted": (accepted + 1) * self.one / cost.whole,
        }
        if cost.draft_prompt:
            unpruned = self.costs.get(NAIVE)
            extra |= {
                "draft_prompt_tokens": cost.draft_prompt,
                "draft_kv_bytes": cost.draft_kv_bytes,
                "draft_buffer_bytes": cost.draft_buffer_bytes,
                "draft_kv_of_unpruned": unpruned and cost.draft_kv_bytes / unpruned.draft_kv_bytes,
            }
        return extra

    def slots(self, texts: Sequence[Sequence[int]]) -> float:
        """Share of the clips' facts that the texts tell."""
        scores = [self.data.score(item, text) for item, text in enumerate(texts)]
        return sum(score.right for score in scores) / sum(score.asked for score in scores)


def pace(run: Sequence[Result]) -> float:
    """Seconds for each token after the prefill."""
    return sum(item.whole - item.ready for item in run) / max(1, sum(item.later for item in run))


def rate(run: Sequence[Result]) -> float:
    """Tokens a second of whole calls."""
    return sum(len(item.tokens) for item in run) / sum(item.whole for item in run)


def clip(text: str) -> tuple[int, int]:
    """Reads frames and size from a text such as ``128x112``."""
    try:
        frames, size = (int(part) for part in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be FRAMESxSIZE with two whole numbers, got {text}: give for example 128x112"
        ) from None
    return frames, size


def grown(path: str, name: str | None, vocabulary: int | None, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A trained model, grown to a named shape; a draft gets the target's vocabulary, which speculation needs.

    Without a name the model stays as it is.
    """
    if name is None:
        return load(path, dtype, device)
    shape = SHAPES[name] if vocabulary is None else replace(SHAPES[name], vocab_size=vocabulary)
    return grow(load(path, torch.float32), shape, dtype=dtype, device=device)


def size_of(model: PreTrainedModel) -> str:
    """Weights of the language part without the head, as a model's name has them: ``1.5B``."""
    count = sum(weight.numel() for weight in language_part(model).parameters())
    return f"{count / 1e9:.1f}B" if count >= 5e7 else f"{count / 1e6:.1f}M"


def main() -> None:
    """Measures, prints for each clip a table and one line of JSON, and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--target", type=rows.model_place, required=True, help="folder of the trained target, with its tokenizer"
    )
    parser.add_argument("--draft", type=rows.model_place, required=True, help="folder of the trained draft")
    parser.add_argument("--target-shape", choices=sorted(SHAPES), help="what both are grown to; default: no growth")
    parser.add_argument("--draft-shape", choices=sorted(SHAPES))
    parser.add_argument("--config", nargs="+", help="YAML files of the data; the target's run has one")
    parser.add_argument("--clips", nargs="+", type=clip, default=[(128, 112), (512, 112)], metavar="FRAMESxSIZE")
    parser.add_argument("--selectors", nargs="+", choices=sorted(SELECTORS), default=["two_stage"], help="of SpecVLM")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.9], help="of tokens that SpecVLM removes")
    parser.add_argument("--prompts", type=rows.positive, default=4)
    parser.add_argument("--new-tokens", type=rows.positive, default=128, help="most new tokens; answers may be shorter")
    parser.add_argument("--runs", type=rows.positive, default=3)
    parser.add_argument("--peer-runs", type=int, default=1, help="runs of transformers; 0 leaves it out")
    parser.add_argument("--repeats", type=rows.positive, default=20, help="rounds that are timed for R")
    parser.add_argument("--engine", default="auto", choices=("auto", "eager", "graph"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="bfloat16 on a GPU, else float32")
    chosen = parser.parse_args()
    if (chosen.target_shape is None) != (chosen.draft_shape is None):
        parser.error("--target-shape and --draft-shape must be given together, got one of them: add the other")
    torch.manual_seed(SEED)
    on_gpu = torch.device(chosen.device).type == "cuda"
    dtype = getattr(torch, chosen.dtype or ("bfloat16" if on_gpu else "float32"))
    target = grown(chosen.target, chosen.target_shape, None, dtype, chosen.device)
    draft = grown(chosen.draft, chosen.draft_shape, text_config(target).vocab_size, dtype, chosen.device)
    bandwidth = copy_bandwidth(torch.device(chosen.device))
    reports = []
    for frames, size in chosen.clips:
        data = HeldOut(chosen.config or default_config(chosen.target), chosen.target, chosen.prompts, frames, size)
        prompts = [batch.inputs for batch in data.prepare(target, 1)]
        case = (
            f"{target.config.model_type} {chosen.target_shape or size_of(target)} with draft "
            f"{chosen.draft_shape or size_of(draft)}, {'grown' if chosen.target_shape else 'as trained'}, "
            f"{str(dtype).removeprefix('torch.')}, batch 1, greedy, {data.video_tokens} video tokens "
            f"({frames} frames of {size} pixels), up to {chosen.new_tokens} new tokens, "
            f"{chosen.prompts} held-out prompts"
        )
        made = measured(case, target, draft, data, prompts, bandwidth, chosen)
        rows.replace(made.rows())
        report(made.rows(), case)
        reports.append((made, prompts))
    # transformers takes minutes, so the other rows are written first
    theirs = peer(target, chosen.new_tokens), peer(target, chosen.new_tokens, assistant_model=draft)
    peers = dict(zip(PEERS, theirs, strict=True))
    for made, prompts in reports:
        made.found |= measure_peers(peers, prompts, chosen.peer_runs)
        rows.replace(made.rows())
        report(made.rows(), made.case)


def measured(
    case: str,
    target: PreTrainedModel,
    draft: PreTrainedModel,
    data: HeldOut,
    prompts: Sequence[dict[str, Any]],
    bandwidth: float,
    chosen: argparse.Namespace,
) -> Report:
    """Measures the decoders at one length of video."""
    new, longest = chosen.new_tokens, max(inputs["input_ids"].shape[1] for inputs in prompts)
    for model in (target, draft):
        allow(model, longest + new)
        if not end_of_text_ids(model):
            raise SystemExit("--target and --draft must name an end-of-text token, got none: take exported models.")
    kept = decoders(draft, chosen.engine, chosen.selectors, chosen.ratios)
    methods = {name: ours(decoder, target, new) for name, decoder in kept.items()}
    found = measure(methods, prompts, chosen.runs)
    costs = {}
    for name, decoder in kept.items():
        results = found[name][-1]
        counts = [item.stats for item in results if item.stats is not None]
        accepted = round(sum(counts[1:], counts[0]).mean_accepted_draft_tokens)
        costs[name] = round_cost(decoder, target, prompts[0], found[BASE][-1][0].tokens, new, accepted, chosen.repeats)
        decoder.pool.clear()  # the next length needs the memory
    needed = weight_bytes(target) + cache_bytes(target, 1, longest + new // 2)
    bounds = {"bytes_per_second": bandwidth, "bound": 1e3 * needed / bandwidth}
    return Report(case, found, data, costs, bounds, chosen.target_shape is not None)


def report(made: Sequence[dict[str, Any]], case: str) -> None:
    """Prints the table, and the speed-ups as one line of JSON."""
    table = Table(title=case)
    for column in ("method", "decoding", "(T+1)/R", "T", "R", "whole", "ms/token", "ready, s", "relaxed", "equal",
                   "distinct-4"):  # fmt: skip
        table.add_column(column)
    by_name: dict[str, dict[str, dict[str, Any]]] = {}
    for item in made:
        by_name.setdefault(item["method"], {})[item["metric"]] = item
    for name, found in by_name.items():
        gain = found["decode_speedup"]
        table.add_row(
            name,
            rows.spread(gain),
            *(f"{gain[key]:.2f}" if key in gain else "" for key in ("predicted", "T", "R")),
            rows.spread(found["whole_speedup"]),
            f"{found['ms_per_token']['value']:.2f}",
            f"{found['ready_seconds']['value']:.2f}",
            f"{gain['relaxed_share']:.0%}" if gain.get("relaxed_share") else "",
            f"{gain['identical_rows']}/{gain['rows']}",
            f"{gain['distinct_4']:.2f} (real {gain['distinct_4_real']:.2f})",
        )
    Console(width=170).print(table)
    console = Console(soft_wrap=True, highlight=False)
    pace = by_name[BASE]["ms_per_token"]
    console.print(
        f"device: {', '.join(device_names())}; the bound of an autoregressive token is {pace['bound']:.2f} ms"
    )
    brief = {
        f"{item['method']} {item['metric']}": round(item["value"], 4)
        for item in made
        if item["metric"] in ("decode_speedup", "whole_speedup", "relevance_share")
    }
    console.print(json.dumps({"case": case, **brief}), markup=False)


if __name__ == "__main__":
    main()
