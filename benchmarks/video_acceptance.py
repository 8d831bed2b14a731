"""How much of a video a draft needs, and what relaxed rules cost, on a trained pair and held-out scenes.

    python -m benchmarks.video_acceptance --target RUN/model --draft RUN/model --videos 100 --frames 32 --size 224

SpecVLM's accepted drafts a round (the bonus token not counted, as the paper has it) at every pruning ratio and
selector, over those of the same videos without pruning, with 95 % intervals that resample videos. LVSpec and the rules
it is compared with: accepted drafts, the share of tokens that are not the target's own, and how many of the facts that
the target tells are still told. Random relaxation is also tuned to accept as much as LVSpec does, because whatever
relaxes more accepts more.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from benchmarks.decode import distinct_4
from benchmarks.rows import replace, row
from saccade.callbacks.prompts import rows_of_visual
from saccade.datamodules import VideoCaptions
from saccade.inference import Autoregressive, Decoder, LVSpec, SpecVLM
from saccade.inference.relaxation import FLy, FLyPlus, RandomRelaxation, RelaxedRule, Strict, VisualRelaxation

SEED = 0
RATIOS = (0.5, 0.75, 0.9, 0.95)
SELECTORS = (
    "random", "uniform", "window", "attention", "attention_reversed", "two_stage", "whole_frames", "frame_similarity",
    "temporal",
)  # fmt: skip
GRIDLESS = ("random", "uniform", "window", "attention", "attention_reversed", "two_stage")
RULES: dict[str, RelaxedRule] = {
    "strict": Strict(),
    "LVSpec 0.5": VisualRelaxation(relaxation=0.5),
    "LVSpec 0.7, no shifts": VisualRelaxation(relaxation=0.7, pst_window=0),
    "LVSpec 0.7": VisualRelaxation(relaxation=0.7),
    "LVSpec 0.9": VisualRelaxation(relaxation=0.9),
    "FLy": FLy(),
    "FLy+": FLyPlus(),
}
_HALVINGS = 6  # of the rate of random relaxation: to 1/64


@dataclass
class Clip:
    """One held-out video and its question.

    Args:
        ids: ``[1, length]`` the prompt.
        visual: Its video.
        item: Its index in the test part.
    """

    ids: Tensor
    visual: dict[str, Tensor]
    item: int


@dataclass
class Outcome:
    """What a decoder did with every video.

    Args:
        accepted: Mean accepted drafts a round of each video.
        relaxed: Share of all tokens that are not the target's own choice.
        right: Facts told of each video.
        asked: Facts that each video has.
        texts: New tokens.
    """

    accepted: list[float]
    relaxed: float
    right: list[float]
    asked: list[float]
    texts: list[list[int]]


def held_out(data: VideoCaptions, videos: int, device: torch.device, dtype: torch.dtype) -> list[Clip]:
    """The first videos of the test part, their prompts without answers."""
    clips = []
    for batch, _ in zip(data.test_dataloader(), range(videos), strict=False):
        visual = {
            name: (value.to(dtype) if value.is_floating_point() else value).to(device)
            for name, value in rows_of_visual(batch, 1)[0].items()
        }
        ids = batch["input_ids"][:, : int(batch["prompt_length"][0])].to(device)
        clips.append(Clip(ids, visual, int(batch["item"][0])))
    return clips


def measured(decoder: Decoder, model: nn.Module, clips: Sequence[Clip], data: VideoCaptions, new: int) -> Outcome:
    """Decodes every video once."""
    outs = [decoder.generate(model, clip.ids, max_new_tokens=new, **clip.visual) for clip in clips]  # type: ignore[arg-type]
    scores = []
    for clip, out in zip(clips, outs, strict=True):
        score = data.score(data.tokenizer.decode(out.tokens[0], skip_special_tokens=True), clip.item, "test")
        scores.append((0, 0) if score is None else (score.right, score.asked))
    total = sum(out.stats.new_tokens for out in outs)
    return Outcome(
        [out.stats.mean_accepted_draft_tokens for out in outs],
        sum(out.stats.relaxed for out in outs) / max(1, total),
        [float(right) for right, _ in scores],
        [float(asked) for _, asked in scores],
        [out.tokens[0] for out in outs],
    )


def ratio(values: Sequence[float], reference: Sequence[float], samples: int = 2000) -> tuple[float, float, float]:
    """Ratio of two means over the same videos, and its 95 % interval from resampled videos."""
    ours, theirs = np.asarray(values), np.asarray(reference)
    picks = np.random.default_rng(SEED).integers(len(ours), size=(samples, len(ours)))
    drawn = ours[picks].sum(1) / np.maximum(theirs[picks].sum(1), 1e-9)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(ours.sum() / max(theirs.sum(), 1e-9)), float(low), float(high)


def matched_rate(draft: nn.Module | None, model: nn.Module, clips: Sequence[Clip], data: VideoCaptions, new: int,
                 wanted: float) -> float:  # fmt: skip
    """The rate at which random relaxation accepts as many drafts a round as wanted, found by halving."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        rate = (low + high) / 2
        outcome = measured(LVSpec(draft, rule=RandomRelaxation(rate=rate)), model, clips, data, new)
        low, high = (rate, high) if np.mean(outcome.accepted) < wanted else (low, rate)
    return (low + high) / 2


def main() -> None:
    """Measures, prints a table and one line of JSON, writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True, help="folder of the target, with its tokenizer")
    parser.add_argument("--draft", help="folder of the draft; none leaves the target to draft for itself")
    parser.add_argument("--videos", type=int, default=100)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--max-digits", type=int, default=2)
    parser.add_argument("--mean", type=float, default=0.2, help="of pixels, as in training")
    parser.add_argument("--deviation", type=float, default=0.25)
    parser.add_argument("--new-tokens", type=int, default=192)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    target, draft = (
        None if path is None else AutoModelForImageTextToText.from_pretrained(path, dtype=dtype).eval().to(device)
        for path in (chosen.target, chosen.draft)
    )
    config = target.config
    data = VideoCaptions(
        family=config.model_type,
        tokenizer=chosen.target,
        frames=chosen.frames,
        height=chosen.size,
        width=chosen.size,
        patch_size=config.vision_config.patch_size,
        image_mean=(chosen.mean,) * 3,
        image_std=(chosen.deviation,) * 3,
        max_digits=chosen.max_digits,
        max_tokens=config.get_text_config(decoder=True).max_position_embeddings,
        scenes=1,
        validation_scenes=1,
        test_scenes=chosen.videos,
        batch_size=1,
    )
    data.prepare_data()
    data.setup("test")
    clips = held_out(data, chosen.videos, device, dtype)
    tokens = int(np.mean([np.isin(clip.ids.cpu(), [config.video_token_id]).sum() for clip in clips]))
    case = (
        f"{config.model_type}, {chosen.videos} held-out videos of {tokens} tokens, greedy, "
        f"{'draft of its own' if draft is None else 'smaller draft'}, up to {chosen.new_tokens} new"
    )
    made = study(case, target, draft, clips, data, chosen.new_tokens)
    replace(made)
    report(made, case)


def study(
    case: str, target: nn.Module, draft: nn.Module | None, clips: Sequence[Clip], data: VideoCaptions, new: int
) -> list[dict[str, Any]]:
    """All rows of a pair."""
    own = measured(Autoregressive(), target, clips, data, new)
    made: list[dict[str, Any]] = []

    def note(method: str, outcome: Outcome, reference: Outcome, **extra: Any) -> None:
        kept = ratio(outcome.accepted, reference.accepted)
        told = ratio(outcome.right, own.right)
        extra |= {
            "of_reference": kept[0],
            "of_reference_interval": kept[1:],
            "relaxed_share": outcome.relaxed,
            "slot_accuracy": sum(outcome.right) / max(1.0, sum(outcome.asked)),
            "retention": told[0],
            "retention_interval": told[1:],
            "distinct_4": round(distinct_4(outcome.texts), 4),
            "same_texts": sum(a == b for a, b in zip(outcome.texts, own.texts, strict=True)),
            "videos": len(clips),
        }
        mean = float(np.mean(outcome.accepted))
        made.append(row("video_acceptance", case, method, "accepted", [mean], "drafts a round", seed=SEED, extra=extra))

    whole = measured(SpecVLM(draft, selector="none"), target, clips, data, new)
    note("SpecVLM, none", whole, whole, prune_ratio=0.0)
    names = SELECTORS if "video_grid_thw" in clips[0].visual else GRIDLESS
    for share in track(RATIOS, description="pruning"):
        for name in names:
            outcome = measured(SpecVLM(draft, prune_ratio=share, selector=name), target, clips, data, new)
            note(f"SpecVLM, {name}, {share:g}", outcome, whole, prune_ratio=share)
    outcomes = {
        name: measured(LVSpec(draft, rule=rule), target, clips, data, new)
        for name, rule in track(RULES.items(), description="relaxing")
    }
    rate = matched_rate(draft, target, clips, data, new, float(np.mean(outcomes["LVSpec 0.7"].accepted)))
    outcomes[f"random {rate:.2f}"] = measured(LVSpec(draft, rule=RandomRelaxation(rate=rate)), target, clips, data, new)
    for name, outcome in outcomes.items():
        note(name, outcome, outcomes["strict"])
    return made


def report(made: Sequence[dict[str, Any]], case: str) -> None:
    """Prints the table, and the ratios as one line of JSON."""
    table = Table(title=case)
    for column in ("method", "accepted a round", "of reference (95 %)", "relaxed", "facts right", "retention (95 %)"):
        table.add_column(column)
    for item in made:
        kept, told = item["of_reference_interval"], item["retention_interval"]
        table.add_row(
            item["method"],
            f"{item['value']:.2f}",
            f"{item['of_reference']:.2f} ({kept[0]:.2f} to {kept[1]:.2f})",
            f"{item['relaxed_share']:.0%}",
            f"{item['slot_accuracy']:.0%}",
            f"{item['retention']:.2f} ({told[0]:.2f} to {told[1]:.2f})",
        )
    Console(width=150).print(table)
    brief = {item["method"]: round(item["of_reference"], 3) for item in made}
    Console(soft_wrap=True, highlight=False).print(json.dumps({"case": case, **brief}), markup=False)


if __name__ == "__main__":
    main()
