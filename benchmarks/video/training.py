"""What trained vision-language models tell of held-out scenes, and how long they were trained.

    python -m benchmarks.video.training RUN [RUN ...]

RUN is the folder of a run of ``saccade fit``: its ``model`` answers as many held-out clips of its ``config.yaml``
greedily, and the share of their facts that it tells is counted, with a 95 % interval that resamples clips.
"""

from __future__ import annotations

import argparse
import csv
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from benchmarks.rows import existing, interval, positive, replace, row
from benchmarks.video.prompts import HeldOut, allow, default_config, load, ratio_interval
from saccade.inference import Autoregressive
from saccade.inference.huggingface.models import text_config


def length_of(run: Path) -> dict[str, Any]:
    """Steps, minutes and last training loss of a run, from its log; ``None`` where nothing was logged.

    The minutes are those from the beginning of the command, its imports not counted, to the last logged step.
    """
    log = run / "logs" / "metrics.csv"
    found: dict[str, Any] = {"steps": None, "minutes": None, "train_loss": None}
    if log.is_file():
        with log.open(newline="") as stream:
            losses = [line for line in csv.DictReader(stream) if line.get("train_loss")]
        if losses:
            found |= {"steps": int(losses[-1]["step"]) + 1, "train_loss": float(losses[-1]["train_loss"])}
            begun = datetime.fromisoformat(json.loads((run / "provenance.json").read_text())["date"])
            found["minutes"] = round((log.stat().st_mtime - begun.timestamp()) / 60, 1)
    return found


def shape_of(model: PreTrainedModel) -> str:
    """Family, size and language part of a model, in words."""
    config = text_config(model)
    weights = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"{model.config.model_type} of {weights / 1e6:,.0f} M weights, language part {config.model_type} of"
        f" {config.num_hidden_layers} layers and width {config.hidden_size:,}"
    )


def measured(run: Path, videos: int, size: int, new: int, device: str) -> dict[str, Any]:
    """The row of one run.

    Args:
        run: Its folder.
        videos: How many held-out clips.
        size: Clips that are decoded together.
        new: Most tokens of an answer.
        device: Where the model runs.
    """
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    model = load(str(run / "model"), dtype, device)
    data = HeldOut(default_config(str(run / "model")), str(run / "model"), videos)
    batches = data.prepare(model, size)
    allow(model, max(batch.inputs["input_ids"].shape[1] for batch in batches) + new)
    texts: list[list[int]] = []
    right: list[float] = []
    asked: list[float] = []
    for batch in batches:
        made = Autoregressive().generate(model, max_new_tokens=new, do_sample=False, **batch.inputs).tokens
        for item, text in zip(batch.items, made, strict=True):
            score = data.score(item, text)
            right.append(float(score.right))
            asked.append(float(score.asked))
        texts += made
    share, *around = ratio_interval(right, asked)
    extra = {
        "slot_accuracy": share,
        "slot_accuracy_interval": around,
        "model": shape_of(model),
        **length_of(run),
        **data.variety(texts),
        "videos": videos,
        "video_tokens": data.video_tokens,
    }
    case = f"{videos} held-out videos of {data.video_tokens} tokens, greedy, up to {new} new tokens"
    name = run.resolve().parent.name  # a run's folder is runs/NAME/TIME
    return row("video_training", case, name, "slot_accuracy", [share], "facts told right", seed=0, extra=extra)


def main() -> None:
    """Measures, prints a table, and writes a row after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", type=existing, metavar="RUN", help="folder of a run, such as runs/NAME/latest"
    )
    parser.add_argument("--videos", type=positive, default=100)
    parser.add_argument("--batch", type=positive, default=50, help="videos that are decoded together")
    parser.add_argument("--new-tokens", type=positive, default=192)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args()
    table = Table("run", "model", "steps", "last train_loss", "facts right (95 %)")
    for run in chosen.runs:
        made = measured(Path(run), chosen.videos, chosen.batch, chosen.new_tokens, chosen.device)
        replace([made])
        table.add_row(
            made["method"], made["model"], str(made["steps"]), str(made["train_loss"]), interval(made, "slot_accuracy")
        )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
