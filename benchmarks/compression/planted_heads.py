"""The study of planted heads: does HybridKV find the kinds of heads, and is it better than one rule for all heads?

Every seed makes another layer of 32 heads of which 8 are static (:mod:`benchmarks.compression.world`). It shows that
the method does what it should; it says nothing about real models. Run:

    python -m benchmarks.compression.planted_heads --seeds 20
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, get_args

import torch
from matplotlib.figure import Figure

from benchmarks import rows
from benchmarks.compression.world import World, outcome, planted_heads, recall
from saccade.inference import (
    AdaKV,
    CacheCompressor,
    HeadKV,
    HybridKV,
    LookM,
    Quest,
    RandomKV,
    SnapKV,
    StreamingLLM,
)
from saccade.inference.compression.baselines.head_kv import needle_scores
from saccade.inference.compression.compressor import Representative
from saccade.inference.compression.hybrid_kv import Roles
from saccade.inference.compression.observation import Observation

IMAGE = Path(__file__).parents[2] / "docs" / "images" / "planted_heads.png"
BUDGETS = (0.05, 0.1, 0.2, 0.4)
THETAS = (0.85, 0.88, 0.9, 0.92, 0.95)
RATIOS = (1.0, 2.0, 4.0, 6.3, 10.0)
FOUND = (1, 4, 16)  # chunks among which the best one should be
CALIBRATION = 1_000_000  # seeds from here on make the worlds that scores of heads are measured on


@dataclass
class Published(HybridKV):
    """HybridKV with the published threshold, this study's ratio, and no chunks that are chosen once."""

    theta: float = 0.9
    sparsity: Literal["held_out", "threshold", "concentration"] = "threshold"
    ratio: float = 4.0
    pinned: float = 0.0


@dataclass
class Labelled(Published):
    """HybridKV with given kinds of heads.

    Args:
        labels: Whether each head is static.
    """

    labels: tuple[bool, ...] = ()

    def roles(self, seen: Observation) -> Roles:
        """The given kinds, with the scores that the prompt gives."""
        return replace(super().roles(seen), static=torch.tensor(self.labels))


def labels(world: World, kind: str, seed: int) -> tuple[bool, ...]:
    """Kinds of the heads: ``right``, ``inverted``, or as many static ones at ``random``."""
    if kind == "random":
        order = torch.randperm(len(world.static), generator=torch.Generator().manual_seed(seed))
        return tuple(world.static[order].tolist())
    return tuple((world.static if kind == "right" else ~world.static).tolist())


def arms(world: World, seed: int, scores: list[list[float]]) -> Iterator[tuple[str, str, CacheCompressor]]:
    """Every study, method and compressor of one seed; methods that differ by layer only are not among them."""
    right = Labelled(window=32, labels=labels(world, "right", seed))
    for budget in (*BUDGETS, 1.0):
        yield f"budget {budget}", "HybridKV, right labels", replace(right, budget=budget)
    for budget in BUDGETS:
        study = f"budget {budget}"
        yield study, "HybridKV", Published(budget, window=32)
        yield study, "HybridKV, theta 0.92", Published(budget, window=32, theta=0.92)
        yield study, "all static", Published(budget, window=32, theta=0)
        yield study, "all dynamic", Published(budget, window=32, theta=2)
        yield study, "SnapKV", SnapKV(budget)
        yield study, "AdaKV", AdaKV(budget)
        yield study, "LOOK-M", LookM(budget, window=32)
        yield study, "HeadKV", HeadKV(scores, budget)
        yield study, "StreamingLLM", StreamingLLM(budget)
        yield study, "Quest", Quest(budget)
        yield study, "random", RandomKV(budget, seed)
    for kind in ("random", "inverted"):
        yield "labels", f"{kind} labels", replace(right, labels=labels(world, kind, seed))
    for theta in THETAS:
        yield "theta", f"threshold, theta {theta}", Published(window=32, theta=theta)
        yield "theta", f"concentration, theta {theta}", Published(window=32, theta=theta, sparsity="concentration")
    for ratio in RATIOS:
        yield "ratio", f"ratio {ratio}", replace(right, ratio=ratio)
    for weighting in ("inverse", "direct", "uniform"):
        yield "weighting", f"weighting {weighting}", replace(right, weighting=weighting)
    yield "representative", "minmax", replace(right, representative="minmax")


def study(seeds: int) -> list[dict[str, Any]]:
    """Rows of all arms, and of the recall of chunks, with one value for each seed.

    Args:
        seeds: Number of worlds.
    """
    calibration = [planted_heads(CALIBRATION + sample, one_answer=True) for sample in range(4)]
    scores = needle_scores([(world.seen, world.targets[0]) for world in calibration])
    found: dict[tuple[str, str], list[tuple[float, float, int]]] = {}
    for seed in range(seeds):
        world = planted_heads(seed)
        for case, method, compressor in arms(world, seed, scores):
            correct = 0
            if isinstance(compressor, HybridKV):
                correct = int((compressor.roles(world.seen).static == world.static).sum())
            found.setdefault((case, method), []).append((*outcome(world, compressor.plan(world.seen)), correct))
    made = []
    for (case, method), values in found.items():
        errors = [error for error, _, _ in values]
        extra = {
            "mean": fmean(errors),
            "sd": stdev(errors) if len(errors) > 1 else 0.0,
            "fetched": fmean(moved for _, moved, _ in values),
            "right_labels": fmean(right for _, _, right in values),
        }
        where = f"{case}, 32 heads, 2048 tokens"
        made.append(rows.row("planted_heads", where, method, "error", errors, "relative L2", seed=0, extra=extra))
    where = "recall, 32 heads, 2048 tokens"
    for kind, count in product(get_args(Representative), FOUND):
        shares = [recall(planted_heads(seed), kind, count) for seed in range(seeds)]
        made.append(rows.row("planted_heads", where, f"{kind} {count}", "recall", shares, "share", seed=0))
    return made


def figure(made: list[dict[str, Any]]) -> Figure:
    """Error over the budget, over theta, and over the ratio.

    Args:
        made: Rows of :func:`study`.
    """
    found = {(row["case"].split(", ")[0], row["method"]): row for row in made if row["metric"] == "error"}
    drawing = Figure(figsize=(13, 4.2), layout="constrained")
    left, middle, right = drawing.subplots(1, 3, width_ratios=(1.25, 1, 1))
    shown = (
        "HybridKV, right labels",
        "HybridKV, theta 0.92",
        "HybridKV",
        "all dynamic",
        "Quest",
        "all static",
        "SnapKV",
    )
    colours = ("#228833", "#4477aa", "#66ccee", "#ee6677", "#aa3377", "#ccbb44", "#bbbbbb")
    for place, (method, colour) in enumerate(zip(shown, colours, strict=True)):
        points = [found[f"budget {budget}", method] for budget in BUDGETS]
        _line(left, [budget * 1.015 ** (place - 3) for budget in BUDGETS], points, colour, method)
    left.set_xscale("log")
    left.set_xticks(BUDGETS, [f"{budget:.0%}" for budget in BUDGETS])
    left.minorticks_off()
    left.set_xlabel("budget")
    left.set_ylabel("error of a head's output (relative L2)")
    for reading, colour in (("threshold", "#4477aa"), ("concentration", "#ee6677")):
        points = [found["theta", f"{reading}, theta {theta}"] for theta in THETAS]
        _line(middle, THETAS, points, colour, f"labels by {reading}")
    for method, colour in (("random labels", "#bbbbbb"), ("inverted labels", "#666666")):
        middle.axhline(found["labels", method]["mean"], color=colour, linestyle="--", linewidth=1, label=method)
    middle.axhline(
        found["budget 0.1", "HybridKV, right labels"]["mean"], color="#228833", linestyle="--", linewidth=1,
        label="right labels",
    )  # fmt: skip
    middle.set_xlabel("theta")
    middle.set_ylim(0.03, 12)  # room for the legend
    _line(right, RATIOS, [found["ratio", f"ratio {ratio}"] for ratio in RATIOS], "#228833", "right labels")
    right.set_xlabel("ratio of a static head's share to a dynamic one's")
    right.set_ylim(bottom=0)
    for axes in (left, middle, right):
        if axes is not right:
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    runs = made[0]["runs"]
    drawing.suptitle(
        f"Planted heads, 8 of 32 static, 2048 tokens; mean and standard deviation over {runs} seeds; budget 10 % where"
        " not on the axis",
        fontsize=10,
        color="#444444",
    )
    return drawing


def _line(axes: Any, places: Any, points: list[dict[str, Any]], colour: str, label: str) -> None:
    means, errors = [row["mean"] for row in points], [row["sd"] for row in points]
    axes.errorbar(places, means, yerr=errors, marker="o", markersize=4, capsize=3, color=colour, label=label)


def main() -> None:
    """Measures, writes the rows and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=rows.positive, default=20, help="worlds that are made")
    made = study(parser.parse_args().seeds)
    rows.replace(made)
    IMAGE.parent.mkdir(parents=True, exist_ok=True)
    figure(made).savefig(IMAGE, dpi=110)
    for item in made:
        if item["metric"] != "error":
            continue
        where, fetched = item["case"].split(",")[0], f"{item['fetched']:.0f}"
        print(f"{where:>15} {item['method']:<32} {item['mean']:.3f} +- {item['sd']:.3f} {fetched:>6}")


if __name__ == "__main__":
    main()
