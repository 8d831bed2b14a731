"""The study of T2DR: every ablation arm and every baseline, with five training seeds by five mask seeds.

Each arm is trained and tested as `saccade fit` and `saccade test` do it: same data, protocol and epochs, choice of the
epoch on the validation split, and the five tests A to E. Arms are compared in pairs of the same training seed. Run:

    python -m benchmarks.t2dr.study --workers 2
    python -m benchmarks.t2dr.study --data digits --features digits.pkl --workers 2
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from matplotlib.figure import Figure
from scipy.stats import t as student
from torch import Tensor

from benchmarks.rows import positive, replace, row
from saccade.callbacks import MissingDataEvaluation
from saccade.common.provenance import device_names, provenance
from saccade.datamodules import MultimodalBatch, MultimodalSentiment, SyntheticSentiment, TwoTierMissing
from saccade.modules import (
    T2DR,
    CrossmodalTransformer,
    LateFusion,
    LNLNLike,
    LossWeights,
    MultimodalModule,
    Optimization,
    TFRNetLike,
)

WIDTH = 32
EPOCHS = {"synthetic": 25, "digits": 12}
GROUPS = ("intra", "inter", "mixed", "block", "unbalanced")
IMAGES = Path(__file__).parents[2] / "docs" / "images"
Make = Callable[[], MultimodalModule]


def _t2dr(**settings: Any) -> Make:
    return lambda: T2DR(width=WIDTH, optimization=Optimization(learning_rate=2e-3), **settings)


def _baseline(kind: Any) -> Make:
    return lambda: kind(width=WIDTH, optimization=Optimization(learning_rate=2e-3))


class CompleteViewTransformer(CrossmodalTransformer):
    """The cross-modal transformer with T2DR's loss terms of the complete sample, which shows how much these gain."""

    def losses(self, batch: MultimodalBatch) -> dict[str, Tensor]:
        """Compute the task's loss, and the terms of the complete samples with the weights of T2DR."""
        value, label, weights = self(batch).value, self.labels(batch), LossWeights()
        terms = {"task": self.task_loss(value, label).mean()}
        if batch.complete is not None:
            whole = self(batch.complete).value
            terms["complete"] = weights.complete * self.task_loss(whole, label).mean()
            terms["agreement"] = weights.agreement * self.disagreement(value, whole)
        return terms


ARMS: dict[str, Make] = {
    "T2DR": _t2dr(),
    "T2DR, two stages": _t2dr(stages="two"),
    "Intra-Attn: none": _t2dr(intra_attention="none"),
    "Intra-Attn: none, with marker": _t2dr(intra_attention="none+marker"),
    "Intra-Attn: hard": _t2dr(intra_attention="hard"),
    "Intra-Attn: B": _t2dr(intra_attention="B"),
    "Intra-Attn: C": _t2dr(intra_attention="C"),
    "without IADR": _t2dr(first_tier=False),
    "SFP: zeros": _t2dr(filling="zero"),
    "SFP: mean": _t2dr(filling="mean"),
    "SFP: no shared map": _t2dr(filling="full"),
    "SFP: no alignment": _t2dr(loss_weights=LossWeights(alignment=0)),
    "CAS: uniform": _t2dr(scorer=False),
    "Inter-Attn: concatenation": _t2dr(fusion="concatenation"),
    "without IEDR": _t2dr(second_tier=False),
    "complete view: no agreement": _t2dr(loss_weights=LossWeights(agreement=0)),
    "complete view: none": _t2dr(loss_weights=LossWeights(complete=0, agreement=0)),
    "task loss only": _t2dr(loss_weights=LossWeights(0, 0, 0, 0, 0, 0)),
    "late fusion, zero fill": _baseline(LateFusion),
    "cross-modal transformer": _baseline(CrossmodalTransformer),
    "cross-modal transformer, complete view": _baseline(CompleteViewTransformer),
    "TFR-Net-like": _baseline(TFRNetLike),
    "LNLN-like": _baseline(LNLNLike),
}


def train_and_test(
    module: MultimodalModule,
    data: MultimodalSentiment,
    folder: str,
    epochs: int = 25,
    mask_seeds: int = 5,
    accelerator: str = "auto",
    logger: Any = False,
) -> tuple[MissingDataEvaluation, float]:
    """Train as the demo does, and test the epoch that is best on the validation split with the tests A to E.

    Args:
        module: The model to train.
        data: The data to train and test on.
        folder: Takes the checkpoint.
        epochs: Number of training epochs.
        mask_seeds: Number of mask seeds of the tests.
        accelerator: The trainer's accelerator.
        logger: The trainer's logger.

    Returns:
        The evaluation with its rows, and the seconds that training took.
    """
    bench, began = MissingDataEvaluation(TwoTierMissing(), mask_seeds=mask_seeds), time.perf_counter()
    best = ModelCheckpoint(folder, monitor="val_loss", filename="best")
    trainer = Trainer(
        default_root_dir=folder, max_epochs=epochs, callbacks=[EMAWeightAveraging(decay=0.99), best, bench],
        logger=logger, gradient_clip_val=1.0, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, accelerator=accelerator, devices=1, log_every_n_steps=5,
    )  # fmt: skip
    trainer.fit(module, data)
    seconds = time.perf_counter() - began
    with contextlib.redirect_stdout(io.StringIO()):  # the evaluation prints its table
        trainer.test(module, data, ckpt_path=best.best_model_path, verbose=False)
    return bench, seconds


def run(
    arm: str, seed: int, data: str, features: str | None, epochs: int, mask_seeds: int, generator_seed: int = 0
) -> dict[str, Any]:
    """Train and test one arm with one seed.

    Args:
        arm: Name of an arm in `ARMS`.
        seed: Seed of weights, order and training masks.
        data: `synthetic` or `digits`.
        features: The file of spoken digits.
        epochs: Number of training epochs.
        mask_seeds: Number of mask seeds of the tests.
        generator_seed: Seed of the synthetic data.

    Returns:
        Group means by metric, `per_seed` of each, and seconds.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    seed_everything(seed, verbose=False)
    source: dict[str, Any] = {"generator": SyntheticSentiment(seed=generator_seed)}
    if data == "digits":
        source = {"path": features, "task": "classification"}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        loader = MultimodalSentiment(train_protocol=TwoTierMissing(seed=seed), **source)
        bench, trained = train_and_test(ARMS[arm](), loader, folder, epochs, mask_seeds)
    groups = {item["name"]: item["per_seed"] for item in bench.rows if item["kind"] == "group"}
    alone = {
        item["name"]: item["per_seed"]
        for item in bench.rows
        if item["group"] == "inter" or item["x"] in (0.0, 0.5, 0.9)
    }
    made = provenance(seed)
    origin = {name: made[name] for name in ("commit", "dirty", "versions", "date")}
    return {
        "origin": origin | {"threads": 1, "device": ", ".join(device_names())},
        "arm": arm,
        "seed": seed,
        "epochs": epochs,
        "generator_seed": generator_seed if data == "synthetic" else None,
        "conditions": alone,
        "groups": groups,
        "fit_seconds": trained,
        "seconds": time.perf_counter() - began,
    }


def paired(first: list[float], second: list[float]) -> tuple[float, float, float]:
    """Mean of first - second and its 95 % interval (Student's t over pairs)."""
    difference = torch.tensor(first, dtype=torch.float64) - torch.tensor(second, dtype=torch.float64)
    mean = float(difference.mean())
    half = float(difference.std() / len(difference) ** 0.5 * student.ppf(0.975, len(difference) - 1))
    return mean, mean - half, mean + half


def main() -> None:
    """Run the study, write its raw results, and its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("synthetic", "digits"), default="synthetic")
    parser.add_argument("--features", default=None, help="file that python -m benchmarks.t2dr.spoken_digits writes")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, metavar="ARM", help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1111, 1112, 1113, 1114, 1115])
    parser.add_argument("--generator_seed", type=int, default=3, help="seed of the synthetic data")
    parser.add_argument("--mask_seeds", type=positive, default=5)
    parser.add_argument("--epochs", type=positive, help="default: 25, for digits 12")
    parser.add_argument("--workers", type=positive, default=2)
    parser.add_argument("--raw", help="file of every run's groups, one a line; default: t2dr_study_DATA.jsonl")
    parser.add_argument("--read", action="store_true", help="make the rows from the raw file, without running anything")
    chosen = parser.parse_args()
    if chosen.data == "digits" and not (chosen.features and Path(chosen.features).is_file()):
        parser.error(
            f"--features must be a file, got {chosen.features}: make it with python -m benchmarks.t2dr.spoken_digits."
        )
    raw = Path(chosen.raw or f"t2dr_study_{chosen.data}.jsonl")
    chosen.epochs = chosen.epochs or EPOCHS[chosen.data]
    wanted = (chosen.epochs, chosen.generator_seed if chosen.data == "synthetic" else None)
    earlier = _lines(raw)
    for item in earlier:
        if (found := (item["epochs"], item["generator_seed"])) != wanted:
            parser.error(
                f"--raw must have runs of {wanted[0]} epochs and generator seed {wanted[1]}, got {raw} with"
                f" {found[0]} and {found[1]}: name another file."
            )
    if "T2DR" not in {item["arm"] for item in earlier} | set(() if chosen.read else chosen.arms):
        parser.error(f"--arms must have T2DR, or {raw} must: every arm is compared with it.")
    if not chosen.read:
        done = {(item["arm"], item["seed"]) for item in earlier}
        jobs = [
            (arm, seed, chosen.data, chosen.features, chosen.epochs, chosen.mask_seeds, chosen.generator_seed)
            for seed in chosen.seeds
            for arm in chosen.arms
            if (arm, seed) not in done
        ]
        began = time.perf_counter()
        with multiprocessing.get_context("fork").Pool(chosen.workers, maxtasksperchild=4) as pool:
            for count, result in enumerate(pool.imap_unordered(_job, jobs), 1):
                with raw.open("a") as stream:
                    stream.write(json.dumps(result) + "\n")
                seconds = time.perf_counter() - began
                print(f"{count}/{len(jobs)} {seconds:.0f} s {result['arm']} {result['seed']}", flush=True)
    results = _lines(raw)
    replace(study_rows(results, chosen.data))
    if drawing := figure(results, chosen.data):
        drawing.savefig(IMAGES / f"t2dr_study_{chosen.data}.png", dpi=130)
    else:
        print("No figure is drawn: an interval needs two seeds of T2DR and of another arm.")


def study_rows(results: list[dict[str, Any]], data: str) -> list[dict[str, Any]]:
    """One row for each arm and group of tests, and one for the mean of the tests A, B and C.

    Args:
        results: Results of `run`.
        data: Name of the data.
    """
    by_arm = _by_arm(results)
    metric, unit = _metric(results)
    seeds = len(by_arm["T2DR"])
    masks = max(len(item["groups"]["intra"][metric]) for item in results)
    size = f"{seeds} training seeds x {masks} mask seeds"
    made = []
    for arm, runs in by_arm.items():
        for group in ("mean of A, B, C", *GROUPS):
            values = {seed: score(item, group, metric) for seed, item in runs.items()}
            extra: dict[str, Any] = {
                "mean": statistics.mean(values.values()),
                "epochs": results[0]["epochs"],
                "generator_seed": results[0]["generator_seed"],
                "mask_seeds": masks,
            }
            shared = [seed for seed in values if seed in by_arm["T2DR"]]
            if arm != "T2DR" and len(shared) > 1:
                ours = [score(by_arm["T2DR"][seed], group, metric) for seed in shared]
                extra["t2dr_minus_this"] = paired(ours, [values[seed] for seed in shared])
            made.append(
                row("t2dr_study", f"{data}, {group}, {size}", arm, metric, values.values(), unit, extra=extra)
                | _origin(list(runs.values()))
            )
    return made


def _origin(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The origin of an arm's runs; its seeds may have run on several devices, all arms of a seed on the same one."""
    devices = dict.fromkeys(item["origin"]["device"] for item in runs)
    dirty = any(item["origin"]["dirty"] for item in runs)
    return runs[0]["origin"] | {"device": "; ".join(devices), "dirty": dirty}


def score(result: dict[str, Any], group: str, metric: str) -> float:
    """Mean over mask seeds of a group's metric, or of the first three groups together."""
    groups = GROUPS[:3] if group == "mean of A, B, C" else (group,)
    return statistics.mean(statistics.mean(result["groups"][name][metric]) for name in groups)


def _by_arm(results: list[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    found: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in ARMS}
    for item in results:
        found[item["arm"]][item["seed"]] = item
    return {arm: runs for arm, runs in found.items() if runs}


def _metric(results: list[dict[str, Any]]) -> tuple[str, str]:
    return ("mae", "label units") if "mae" in results[0]["groups"]["intra"] else ("accuracy", "share")


def figure(results: list[dict[str, Any]], data: str) -> Figure | None:
    """Every arm's difference to T2DR on the mean of the tests A, B and C, with its interval; None without a pair."""
    by_arm, (metric, _) = _by_arm(results), _metric(results)
    lower_is_better = metric == "mae"
    points = []
    for arm, runs in by_arm.items():
        seeds = [seed for seed in runs if seed in by_arm["T2DR"]]
        if arm == "T2DR" or len(seeds) < 2:
            continue
        theirs = [score(runs[seed], "mean of A, B, C", metric) for seed in seeds]
        ours = [score(by_arm["T2DR"][seed], "mean of A, B, C", metric) for seed in seeds]
        points.append((arm, *paired(theirs, ours)))
    if not points:
        return None
    points.sort(key=lambda item: item[1], reverse=lower_is_better)
    drawing = Figure(figsize=(8, 0.34 * len(points) + 1.4), layout="constrained")
    axes = drawing.subplots()
    # a point far from the others is drawn at the edge, with its value beside it
    widest = sorted(abs(point[1]) for point in points)[-2:][0] * 1.6
    for place, (_, mean, low, high) in enumerate(points):
        worse = low > 0 if lower_is_better else high < 0
        colour = "#4477aa" if worse else "#ccbb44"
        outside = abs(mean) > widest
        shown = min(mean, widest * 0.93) if lower_is_better else max(mean, -widest * 0.93)
        axes.errorbar(
            shown, place, xerr=0 if outside else [[mean - low], [high - mean]], fmt="o", color=colour, capsize=3
        )
        if outside:
            aside = -46 if lower_is_better else 10  # the value is written towards the middle
            axes.annotate(f"{mean:+.3f}", (shown, place), (aside, -4), textcoords="offset points", fontsize=8)
    axes.set_yticks(range(len(points)), [point[0] for point in points])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlim((-0.35 * widest, widest) if lower_is_better else (-widest, 0.35 * widest))
    axes.set_xlabel(f"{metric}, mean of tests A, B and C, minus that of T2DR")
    seeds = len(by_arm["T2DR"])
    axes.set_title(f"{data} data, {seeds} training seeds, 95 % intervals; blue: 0 is outside", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    return drawing


def _lines(raw: Path) -> list[dict[str, Any]]:
    """Reads the results of earlier runs; a study that was stopped continues from there."""
    return [json.loads(line) for line in raw.read_text().splitlines()] if raw.exists() else []


def _job(arguments: tuple[Any, ...]) -> dict[str, Any]:
    return run(*arguments)


if __name__ == "__main__":
    main()
