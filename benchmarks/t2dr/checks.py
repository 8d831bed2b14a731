"""Checks of a trained T2DR (learning L1 to L8, filling, scorer), and the cost of training on a processor.

The checks take minutes, so they are not among the tests. Each is a row whose bound is the limit; the script fails when
one does not hold. Run:

    python -m benchmarks.t2dr.checks
"""

from __future__ import annotations

import csv
import itertools
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from benchmarks.rows import replace, row
from benchmarks.t2dr.study import ARMS, train_and_test
from saccade.callbacks import MissingDataEvaluation
from saccade.datamodules import Condition, MultimodalBatch, MultimodalSentiment, SyntheticSentiment, TwoTierMissing
from saccade.datamodules.multimodal.missing.base import erase
from saccade.modules import T2DR
from saccade.modules.multimodal.base import DataFacts
from saccade.modules.multimodal.layers.sfp import mean_over

CASE = "T2DR width 32, embedded data, 25 epochs, seed 1111"
COST_CASE = "width 32, embedded data, batch 64, 1 thread, forward, backward and optimizer step"
COSTLY = ("T2DR", "late fusion, zero fill", "cross-modal transformer", "TFR-Net-like", "LNLN-like")


def trained(folder: str, generator: SyntheticSentiment) -> tuple[T2DR, MultimodalSentiment, MissingDataEvaluation]:
    """Trains a T2DR as the demo does, for 25 epochs, and tests it."""
    seed_everything(1111, verbose=False)
    data, module = MultimodalSentiment(generator=generator), ARMS["T2DR"]()
    logger = CSVLogger(folder, name="", version="logs")
    bench, _ = train_and_test(module, data, folder, accelerator="cpu", logger=logger)
    return module.eval(), data, bench  # type: ignore[return-value]


def checks(folder: str) -> list[tuple[str, float, str, float]]:
    """Name, measured value, relation and limit of every check."""
    module, data, bench = trained(folder, SyntheticSentiment())
    found = {(item["group"], item["name"]): item for item in bench.rows if item["kind"] == "condition"}

    def mae(group: str, name: str) -> float:
        return float(found[group, name]["metrics"]["mae"]["mean"])

    curve = [
        mae("intra", item["name"]) for item in bench.rows if item["kind"] == "condition" and item["group"] == "intra"
    ]
    full = next(item for key, item in found.items() if key == ("inter", "text+audio+vision"))
    constant = float(bench.rows[0]["constant"]["mae"])
    with (Path(folder) / "logs" / "metrics.csv").open() as stream:
        losses = [float(line["train_loss_task"]) for line in csv.DictReader(stream) if line.get("train_loss_task")]
    floors = [value for values in module.floors().values() for value in values]
    batch = whole(data)
    return [
        ("L1 MAE with everything", curve[0], "<=", 0.40),
        ("L1 correlation with everything", float(full["metrics"]["corr"]["mean"]), ">=", 0.93),
        (
            "L2 largest fall of the error as the rate rises",
            max(a - b for a, b in itertools.pairwise(curve)),
            "<=",
            0.02,
        ),
        ("L3 MAE at rate 0.9", curve[9], "<=", 1.05),
        ("L4 everything minus text alone", curve[0] - mae("inter", "text"), "<=", 0.03),
        ("L5 text alone minus everything", mae("inter", "text") - curve[0], "<=", 0.05),
        ("L5 constant minus audio and vision", constant - mae("inter", "audio+vision"), ">=", 0.2),
        ("L6 mean weight of the text", float(full["weights"]["text"]["mean"]), ">=", 0.5),
        ("L7 last task loss over first", losses[-1] / losses[0], "<=", 0.6),
        ("L8 least floor", min(floors), ">=", 0.0),
        ("L8 largest floor", max(floors), "<=", 1.0),
        (
            "U14 range of Acc-2 over mask seeds at rate 0.5",
            spread(found["intra", "r=0.5"]["per_seed"]["acc_2_has0"]),
            "<=",
            0.03,
        ),
        *filling(module, batch),
        ("U9 falls of the text's weight as text goes, of 5", float(falls(module, batch)), ">=", 4),
        ("U9 weight of vision where it is the best modality", swapped(folder), ">=", 0.5),
    ]


def spread(values: list[float]) -> float:
    """Largest minus least."""
    return max(values) - min(values)


def whole(data: MultimodalSentiment) -> MultimodalBatch:
    """The test split as one batch."""
    data.eval_batch_size = 1000
    return next(iter(data.test_dataloader()))


def filling(module: T2DR, batch: MultimodalBatch) -> list[tuple[str, float, str, float]]:
    """Whether what SFP fills in for a modality from the text finds its own clip, and is nearer than the mean."""
    alone = erase(batch, Condition("x", "x", present=("text",)), 0)
    with torch.no_grad():
        guesses, truth = module.sfp(module.encode(alone)), module.encode(batch)
    found: list[tuple[str, float, str, float]] = []
    for place, name in ((1, "audio"), (2, "vision")):
        guess, whole = guesses[place], truth[place]
        has = whole.known
        with torch.no_grad():
            wanted = module.sfp.shared_features(place, whole)
        pooled = [mean_over(part, has)[has.any(1)] for part in (guess.shared, wanted)]
        found.append((f"U8 shared features of {name} find their own among 100, from text", top_1(*pooled), ">=", 0.10))
        told, there = guess.positions[has], whole.hidden[has]
        ratio = float((told - there).square().mean() / (there - there.mean(0)).square().mean())
        found.append((f"U8 squared error of filled {name} positions over that of their mean", ratio, "<=", 1.0))
    return found


def top_1(guess: Tensor, truth: Tensor) -> float:
    """Share of rows [N, width] whose nearest by cosine, of a hundred, is their own; both are centred."""
    hits = []
    for start in range(0, len(guess) - 99, 100):
        part = slice(start, start + 100)
        near = F.normalize(guess[part] - guess.mean(0), dim=1) @ F.normalize(truth[part] - truth.mean(0), dim=1).T
        hits.append(float((near.argmax(1) == torch.arange(100)).float().mean()))
    return statistics.mean(hits)


def falls(module: T2DR, batch: MultimodalBatch) -> int:
    """How often the text's mean weight falls while its observed share falls in five steps."""
    with torch.no_grad():
        weights = [
            float(module(erase(batch, Condition("x", "x", rates=(rate, 0.0, 0.0)), 0)).weights[:, 0].mean())
            for rate in (0.0, 0.18, 0.36, 0.54, 0.72, 0.9)
        ]
    return sum(after < before for before, after in itertools.pairwise(weights))


def swapped(folder: str) -> float:
    """Mean weight of vision when vision is as informative as text was, and text as vision was."""
    with tempfile.TemporaryDirectory(dir=folder) as other:
        module, data, _ = trained(other, SyntheticSentiment(text_error=1.5, vision_error=0.3))
    with torch.no_grad():
        weights = module(whole(data)).weights
    return float(weights[:, 2].mean()) if weights is not None else 0.0


def cost(arm: str) -> tuple[list[float], float]:
    """Samples a second in five runs of 20 steps, and the process's peak memory in MiB."""
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    data = MultimodalSentiment()
    data.prepare_data()
    data.setup("fit")
    module: Any = ARMS[arm]()
    module.build(DataFacts.of(data))
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3)
    protocol = TwoTierMissing()
    batches = [protocol.training(batch, 0) for batch in data.train_dataloader()]
    speeds = []
    for run in range(6):
        began = time.perf_counter()
        for batch in batches:
            loss = torch.stack(list(module.losses(batch).values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if run:  # the first warms up
            speeds.append(sum(map(len, batches)) / (time.perf_counter() - began))
    return speeds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Measure, write the rows, and return 1 when a check does not hold."""
    warnings.filterwarnings("ignore")
    made, failed = [], 0
    for arm in COSTLY:
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process of its own, for its memory
            speeds, peak = pool.apply(cost, (arm,))
        made.append(row("t2dr_checks", COST_CASE, arm, "training_samples_per_second", speeds, "samples/s"))
        made.append(row("t2dr_checks", COST_CASE, arm, "peak_memory", [peak], "MiB"))
        print(f"{arm}: {statistics.median(speeds):.0f} samples/s, {peak:.0f} MiB", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, value, relation, limit in checks(folder):
            holds = value <= limit if relation == "<=" else value >= limit
            failed += not holds
            made.append(row("t2dr_checks", CASE, "T2DR", name, [value], relation, bound=limit, seed=1111))
            print(f"{'holds' if holds else 'FAILS'}  {name}: {value:.4f} {relation} {limit}", flush=True)
    replace(made)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
