"""The study of Trait: does it choose better training data, at equal numbers of trained pairs?

Each collection is the target once, and the others are the sources. Every selection trains the same small reranker on
equally many chunks; those of Trait's warm-up count. Selections are compared on the held-out queries of the target,
which no selection has measured. The collection adi is not used, because it shares queries with cisi. Run:

    python -m benchmarks.trait.study --folder COLLECTIONS --workers 2
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import multiprocessing
import tempfile
import time
import warnings
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from rich.console import Console
from rich.table import Table

from benchmarks.rows import existing, positive, replace, row
from saccade.callbacks import TraitSelection
from saccade.datamodules import ChunkPool
from saccade.modules import Reranker
from saccade.modules.retrieval.cross_features import CrossFeatures
from saccade.retrieval.measures import paired_bootstrap

TARGETS = ("cran", "cisi", "med", "cacm", "npl")
RULES = ("all_sources", "random", "polling", "similarity", "best_source")
SIGNALS = ("fewshot", "pseudo", "both")
# the rules measure their models too, with the best signal
METHODS = (*(f"{rule}, both" for rule in RULES), *(f"trait, {signal}" for signal in SIGNALS))
CHUNK, BUDGET, CANDIDATES, DEV = 64, 24, 100, 0.4


@functools.cache
def features(folder: str, name: str) -> CrossFeatures:
    """A collection's features, which depend on neither target nor seed."""
    from saccade.datamodules.retrieval.files import read_beir

    return CrossFeatures(list(read_beir(Path(folder) / name).corpus.values()))


def run(folder: str, target: str, method: str, seed: int) -> dict[str, Any]:
    """One search.

    Args:
        folder: Folder of the collections.
        target: The collection that is left out of the sources.
        method: A selection and its signal, joined by a comma; without a signal it is fewshot.
        seed: Seed of all random numbers.

    Returns:
        Scores of the held-out queries of `bm25`, `base` and `best`, the content of `trait.json`, and the gains of the
        warm-up.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric", "bm25s"):
        logging.getLogger(name).setLevel(logging.ERROR)
    seed_everything(seed, verbose=False)
    selection, _, signal = method.partition(", ")
    sources = [name for name in TARGETS if name != target]
    pool = ChunkPool(
        [str(Path(folder) / name) for name in sources], str(Path(folder) / target), signal=signal or "fewshot",  # type: ignore[arg-type]
        chunk_size=CHUNK, passes=2, batch_size=16, hard_negatives=7, dev_fraction=DEV, seed=seed,
    )  # fmt: skip
    pool.setup()
    module = Reranker(learning_rate=1e-2, seed=seed)
    module.collections = {name: features(folder, name) for name in TARGETS}
    module.target, module.prepared = target, True
    callback = TraitSelection(BUDGET, selection, candidates=CANDIDATES, seed=seed)  # type: ignore[arg-type]
    if not callback.rules.warmup:
        callback.budget += len(sources)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        trainer = Trainer(
            max_epochs=-1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
            enable_model_summary=False, limit_val_batches=0, default_root_dir=place, callbacks=[callback],
        )  # fmt: skip
        trainer.fit(module, pool)
        found = json.loads((Path(place) / "trait.json").read_text())
    base = callback.events[0].to_dict()["score"]
    harm = {pool.names[item.source]: item.score - base for item in callback.events if item.kind == "warmup"}  # type: ignore[attr-defined]
    return {
        "target": target, "method": method, "seed": seed, "per_query": callback.per_query, "found": found,
        "warmup_minus_base": harm, "seconds": time.perf_counter() - began,
    }  # fmt: skip


def rows_of(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each target and method, and for their mean over targets, with Trait's paired advantage."""
    made = []
    targets = list(dict.fromkeys(item["target"] for item in results))
    seeds = sorted({item["seed"] for item in results})
    scores = _scores(results)
    trait = METHODS[-1]
    for method in ("bm25", "base", *METHODS):
        if not any((target, method, seeds[0]) in scores for target in targets):
            continue
        for target in (*targets, "mean"):
            of = targets if target == "mean" else [target]
            values = [fmean(fmean(scores[name, method, seed].values()) for name in of) for seed in seeds]
            extra: dict[str, Any] = {"mean": fmean(values), "seeds": len(seeds)}
            mine = [item for item in results if item["method"] == method and item["target"] in of]
            if mine:
                extra["evaluated_share"] = fmean(item["found"]["evaluated_share"] for item in mine)
                extra["select_share"] = fmean(item["found"]["select_share"] for item in mine)
                harm = [item["warmup_minus_base"] for item in mine if item["warmup_minus_base"]]
                if harm:
                    extra["warmup_minus_base"] = {name: fmean(h[name] for h in harm if name in h) for name in harm[0]}
            if method != trait and (targets[0], trait, seeds[0]) in scores:
                pairs = [(name, seed) for name in of for seed in seeds]
                ours = {f"{n}/{s}/{q}": v for n, s in pairs for q, v in scores[n, trait, s].items()}
                theirs = {f"{n}/{s}/{q}": v for n, s in pairs for q, v in scores[n, method, s].items()}
                gain = paired_bootstrap(ours, theirs)
                extra["trait_minus_this"] = [gain.difference, gain.low, gain.high]
            case = f"{target}, {len(seeds)} seeds, {BUDGET} trials and warm-up of {CHUNK} pairs, held-out queries"
            made.append(row("trait_study", case, method, "ndcg_cut_10", values, "share", extra=extra))
    return made


def _scores(results: list[dict[str, Any]]) -> dict[tuple[str, str, int], dict[str, float]]:
    found = {}
    for item in results:
        found[item["target"], item["method"], item["seed"]] = item["per_query"]["best"]
        for name in ("bm25", "base"):
            found[item["target"], name, item["seed"]] = item["per_query"][name]
    return found


def main() -> None:
    """Runs what is missing, writes raw results and rows, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=existing, required=True, help="folder of the collections in BEIR's layout")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--workers", type=positive, default=2)
    parser.add_argument(
        "--raw", default="trait_study_raw.jsonl", help="file of all runs, one a line; a stopped study continues"
    )
    chosen = parser.parse_args()
    raw = Path(chosen.raw)
    done = [json.loads(line) for line in raw.read_text().splitlines()] if raw.exists() else []
    known = {(item["target"], item["method"], item["seed"]) for item in done}
    jobs = [
        (chosen.folder, target, method, seed)
        for seed in chosen.seeds
        for target in chosen.targets
        for method in chosen.methods
        if (target, method, seed) not in known
    ]
    for name in TARGETS:  # before the workers start, which then share the features
        features(chosen.folder, name)
    with multiprocessing.get_context("fork").Pool(chosen.workers) as workers:
        for count, result in enumerate(workers.imap_unordered(_job, jobs), 1):
            done.append(result)
            with raw.open("a") as stream:
                stream.write(json.dumps(result) + "\n")
            print(f"{count}/{len(jobs)} {result['seconds']:.0f} s {result['target']} {result['method']}", flush=True)
    made = rows_of(done)
    replace(made)
    report(made)


def report(made: list[dict[str, Any]]) -> None:
    """Prints one line for each method."""
    table = Table(title=made[-1]["case"])
    columns = list(dict.fromkeys(item["case"].split(",")[0] for item in made))
    for column in ("method", *columns, "Trait is better by (95 %)"):
        table.add_column(column)
    for method in dict.fromkeys(item["method"] for item in made):
        mine = {item["case"].split(",")[0]: item for item in made if item["method"] == method}
        gain = mine["mean"].get("trait_minus_this")
        told = "" if gain is None else f"{gain[0]:+.4f} ({gain[1]:+.4f} to {gain[2]:+.4f})"
        table.add_row(method, *(f"{mine[column]['mean']:.4f}" for column in columns), told)
    Console(width=150).print(table)


def _job(arguments: tuple[str, str, str, int]) -> dict[str, Any]:
    return run(*arguments)


if __name__ == "__main__":
    main()
