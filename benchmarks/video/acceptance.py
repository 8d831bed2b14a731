"""Acceptance of drafts that read a pruned video, and accuracy of relaxed rules, on a trained pair and held-out scenes.

    python -m benchmarks.video.acceptance --target RUN/model --draft RUN/model --videos 100 --frames 32

For SpecVLM: accepted drafts a round (without the bonus token, as in the paper) at every pruning ratio and selector,
over those of the same videos without pruning, with 95 % intervals that resample videos. For LVSpec and the rules that
it is compared with: accepted drafts, the share of tokens that the target would not have chosen, and how many of the
facts that the target tells are still told. A rule that relaxes more accepts more, so rules are also tuned to accept
equally many.

Videos are decoded in batches. ``--selectors``, ``--ratios`` and ``--rules`` measure a part of the study, for example
one part on each GPU; ``--rules`` without a name leaves the rules out. The rows of earlier calls are kept.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import PreTrainedModel

from benchmarks.rows import interval, model_place, positive, replace, row
from benchmarks.video.prompts import Batch, HeldOut, allow, default_config, load, ratio_interval
from saccade.inference import Autoregressive, Decoder, LVSpec, SpecVLM
from saccade.inference.verification.relaxed import (
    FLy,
    FLyPlus,
    RandomRelaxation,
    RelaxedRule,
    Strict,
    VisualRelaxation,
)

SEED = 0
CHAIN = 10
"""Drafted tokens of a chain, as in the paper."""
RATIOS = (0.5, 0.75, 0.9, 0.95)
GRIDLESS = ("random", "uniform", "window", "attention", "attention_reversed", "two_stage")
SELECTORS = (*GRIDLESS, "whole_frames", "frame_similarity", "temporal")
OURS = "LVSpec 0.7"
RULES: dict[str, RelaxedRule] = {
    "strict": Strict(),
    "LVSpec 0.5": VisualRelaxation(relaxation=0.5),
    "LVSpec 0.7, no shifts": VisualRelaxation(relaxation=0.7, pst_window=0),
    OURS: VisualRelaxation(relaxation=0.7),
    "LVSpec 0.9": VisualRelaxation(relaxation=0.9),
    "LVSpec 0.7, ratio 0.3": VisualRelaxation(relaxation=0.7, loose="ratio", ratio=0.3, pst_window=0),
    "LVSpec 0.9, ratio 0.3": VisualRelaxation(relaxation=0.9, loose="ratio", ratio=0.3, pst_window=0),
    "ratio 0.3 alone": VisualRelaxation(relaxation=1.0, loose="ratio", ratio=0.3, pst_window=0),
    "ratio 0.4 alone": VisualRelaxation(relaxation=1.0, loose="ratio", ratio=0.4, pst_window=0),
    "ratio 0.5 alone": VisualRelaxation(relaxation=1.0, loose="ratio", ratio=0.5, pst_window=0),
    "FLy": FLy(),
    "FLy+": FLyPlus(),
}
MATCHED: dict[str, tuple[str, Callable[[float], RelaxedRule]]] = {
    f"random as {OURS}": (OURS, lambda knob: RandomRelaxation(rate=knob)),
    f"FLy+ as {OURS}": (OURS, lambda knob: FLyPlus(threshold=(1 - knob) * math.log(3))),
    "LVSpec as FLy": ("FLy", lambda knob: VisualRelaxation(relaxation=knob)),
}
"""Rules with a setting from 0 to 1, and the rule whose acceptance each is tuned to; a higher value accepts more."""
_HALVINGS = 5  # the setting is found to 1/32


@dataclass
class Outcome:
    """The results of a decoder for every video.

    Args:
        accepted: Mean accepted drafts a round of each video.
        relaxed: Share of all tokens that the target would not have chosen.
        right: Facts of each video that its text tells.
        asked: Facts that each video has.
        texts: New tokens.
    """

    accepted: list[float]
    relaxed: float
    right: list[float]
    asked: list[float]
    texts: list[list[int]]


class Study:
    """A pair, its prompts and its rows.

    Args:
        target: The target.
        draft: The draft; with ``None`` the target drafts for itself.
        data: Where the prompts are from.
        new: Most new tokens of an answer.
        size: Prompts of a batch.
        case: Pair and data in words; the number of video tokens is added.
        length: Drafted tokens of a chain.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        draft: PreTrainedModel | None,
        data: HeldOut,
        new: int,
        size: int,
        case: str,
        length: int = CHAIN,
    ) -> None:
        self.target, self.draft, self.data, self.new, self.length = target, draft, data, new, length
        self.batches: list[Batch] = data.prepare(target, size)
        self.case = case.format(tokens=data.video_tokens)
        for model in (target, draft):
            if model is not None:
                allow(model, max(batch.inputs["input_ids"].shape[1] for batch in self.batches) + new)
        self.own = self.measured(Autoregressive())
        self.made: list[dict[str, Any]] = []

    def measured(self, decoder: Decoder) -> Outcome:
        """Decodes every video once."""
        items, texts, counts = [], [], []
        for batch in self.batches:
            out = decoder.generate(self.target, max_new_tokens=self.new, do_sample=False, **batch.inputs)
            items += batch.items
            texts += out.tokens
            counts += out.per_request
        decoder.pool.clear()  # no decoder is used twice
        scores = [self.data.score(item, text) for item, text in zip(items, texts, strict=True)]
        return Outcome(
            [stats.mean_accepted_draft_tokens for stats in counts],
            sum(counts[1:], counts[0]).relaxed_share,
            [float(score.right) for score in scores],
            [float(score.asked) for score in scores],
            texts,
        )

    def note(self, method: str, outcome: Outcome, reference: Outcome, **extra: Any) -> None:
        """Makes a row; a ratio whose denominator is 0 is ``None``."""
        kept = ratio_interval(outcome.accepted, reference.accepted, SEED) if any(reference.accepted) else None
        told = ratio_interval(outcome.right, self.own.right, SEED) if any(self.own.right) else None
        extra |= {
            "of_reference": kept and kept[0],
            "of_reference_interval": kept and kept[1:],
            "relaxed_share": outcome.relaxed,
            "slot_accuracy": sum(outcome.right) / max(1.0, sum(outcome.asked)),
            "retention": told and told[0],
            "retention_interval": told and told[1:],
            **self.data.variety(outcome.texts),
            "same_texts": sum(a == b for a, b in zip(outcome.texts, self.own.texts, strict=True)),
            "videos": len(outcome.texts),
            "video_tokens": self.data.video_tokens,
        }
        mean = float(np.mean(outcome.accepted))
        made = row("video_acceptance", self.case, method, "accepted", [mean], "drafts a round", seed=SEED, extra=extra)
        self.made.append(made)
        replace([made])  # a study that is stopped keeps what it has measured

    def selectors(self, names: Sequence[str], ratios: Sequence[float]) -> None:
        """SpecVLM without pruning, and with every selector at every ratio."""
        whole = self.measured(SpecVLM(self.draft, selector="none", control="fixed"))
        self.note("SpecVLM, none", whole, whole, prune_ratio=0.0)
        grid = "video_grid_thw" in self.batches[0].inputs
        settings = [(share, name) for share in ratios for name in names if grid or name in GRIDLESS]
        for share, name in track(settings, description="pruning"):
            outcome = self.measured(SpecVLM(self.draft, prune_ratio=share, selector=name, control="fixed"))
            self.note(f"SpecVLM, {name}, {share:g}", outcome, whole, prune_ratio=share)

    def relaxed(self, rule: RelaxedRule) -> LVSpec:
        """A decoder of chains under a rule."""
        return LVSpec(self.draft, rule=rule, draft_length=self.length, control="fixed")

    def rules(self, names: Sequence[str]) -> None:
        """Strict acceptance of chains, relaxed rules, and rules that are tuned to accept as much as one of these."""
        wanted = dict.fromkeys(("strict", *names))  # the others are compared with it
        outcomes = {name: self.measured(self.relaxed(RULES[name])) for name in track(wanted, "relaxing")}
        for name, outcome in outcomes.items():
            self.note(name, outcome, outcomes["strict"])
        for name, (model, make) in track(MATCHED.items(), "tuning"):
            if model in outcomes:
                knob, outcome = self.matched(make, float(np.mean(outcomes[model].accepted)))
                self.note(name, outcome, outcomes["strict"], knob=knob)

    def matched(self, make: Callable[[float], RelaxedRule], wanted: float) -> tuple[float, Outcome]:
        """Finds by bisection the setting at which a rule accepts nearly as many drafts a round as wanted."""
        low, high = 0.0, 1.0
        tried: list[tuple[float, float, Outcome]] = []
        for _ in range(_HALVINGS):
            knob = (low + high) / 2
            outcome = self.measured(self.relaxed(make(knob)))
            mean = float(np.mean(outcome.accepted))
            tried.append((abs(mean - wanted), knob, outcome))
            low, high = (knob, high) if mean < wanted else (low, knob)
        _, knob, outcome = min(tried, key=lambda item: item[0])
        return knob, outcome


def main() -> None:
    """Measures, prints a table and one line of JSON, and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=model_place, required=True, help="folder of the target, with its tokenizer")
    parser.add_argument(
        "--draft", type=model_place, help="folder of the draft; without one, the target drafts for itself"
    )
    parser.add_argument("--config", nargs="+", help="YAML files of the data; default: the one of the target's run")
    parser.add_argument("--videos", type=positive, default=100)
    parser.add_argument("--frames", type=positive, help="frames of a clip; default: the configuration's")
    parser.add_argument("--size", type=positive, help="height and width in pixels; default: the configuration's")
    parser.add_argument("--batch", type=positive, default=25, help="videos that are decoded together")
    parser.add_argument("--new-tokens", type=positive, default=192)
    parser.add_argument("--selectors", nargs="*", choices=SELECTORS, default=SELECTORS)
    parser.add_argument("--ratios", nargs="*", type=float, default=RATIOS)
    parser.add_argument("--rules", nargs="*", choices=tuple(RULES), default=tuple(RULES))
    parser.add_argument("--draft-length", type=positive, default=CHAIN, help="drafted tokens of a chain, for the rules")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args()
    dtype = torch.bfloat16 if torch.device(chosen.device).type == "cuda" else torch.float32
    target = load(chosen.target, dtype, chosen.device)
    draft = load(chosen.draft, dtype, chosen.device) if chosen.draft else None
    data = HeldOut(
        chosen.config or default_config(chosen.target), chosen.target, chosen.videos, chosen.frames, chosen.size
    )
    case = (
        f"{target.config.model_type}, {chosen.videos} held-out videos of {{tokens}} tokens, greedy, "
        f"{'draft of its own' if draft is None else 'smaller draft'}, up to {chosen.new_tokens} new tokens"
        + ("" if chosen.draft_length == CHAIN else f", chains of {chosen.draft_length}")
    )
    study = Study(target, draft, data, chosen.new_tokens, chosen.batch, case, chosen.draft_length)
    if chosen.selectors and chosen.ratios:
        study.selectors(chosen.selectors, chosen.ratios)
    if chosen.rules:
        study.rules(chosen.rules)
    report(study.made, study.case)


def report(made: Sequence[dict[str, Any]], case: str) -> None:
    """Prints the table, and the ratios as one line of JSON."""
    table = Table(title=case)
    for column in ("method", "accepted a round", "of reference (95 %)", "relaxed", "facts right", "retention (95 %)"):
        table.add_column(column)
    for item in made:
        table.add_row(
            item["method"],
            f"{item['value']:.2f}",
            interval(item, "of_reference"),
            f"{item['relaxed_share']:.0%}",
            f"{item['slot_accuracy']:.0%}",
            interval(item, "retention"),
        )
    Console(width=150).print(table)
    brief = {item["method"]: item["of_reference"] and round(item["of_reference"], 3) for item in made}
    Console(soft_wrap=True, highlight=False).print(json.dumps({"case": case, **brief}), markup=False)


if __name__ == "__main__":
    main()
