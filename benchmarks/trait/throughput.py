"""Speed of a selection: pairs a second in training and in measuring, and the share of time in the surrogate.

The search is that of `configs/trait/demo.yaml`, scaled up: docstrings of eight installed packages, 30 trials, one
forward and backward of every pair for each pass over its chunk, and every dev query with its BM25 candidates after each
trial. The "pairs" of training are positive ones; hard negatives and the other documents of a batch are not counted. A
run is a whole search from a fresh module, so that its first measurement reads every text. Run:

    OMP_NUM_THREADS=1 python -m benchmarks.trait.throughput
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from rich.console import Console
from rich.table import Table

from benchmarks.rows import positive, replace, row
from saccade.callbacks import TraitSelection
from saccade.datamodules import ChunkPool
from saccade.modules import Reranker, Retriever
from saccade.modules.retrieval.ranker import Ranker

MODELS: dict[str, Callable[[], Ranker]] = {
    "Retriever, hashed encoder": lambda: Retriever(rows=65536, width=256),
    "Reranker, cross features": lambda: Reranker(width=128),
}
UNITS = {
    "train_pairs_per_second": "pairs/s",
    "measured_pairs_per_second": "pairs/s",
    "select_share": "share",
    "seconds_per_choice": "s",
    "seconds_per_trial": "s",
}


def figures(found: dict[str, Any]) -> dict[str, float]:
    """The speed of a search, from its `trait.json`.

    Args:
        found: Content of the file.

    Returns:
        A value for each key of `UNITS`.
    """
    seconds, pairs = found["seconds"], found["pairs"]
    return {
        "train_pairs_per_second": pairs["train"] / seconds["train"],
        "measured_pairs_per_second": pairs["measure"] / seconds["measure"],
        "select_share": found["select_share"],
        "seconds_per_choice": seconds["select"] / found["trials"],
        "seconds_per_trial": sum(seconds.values()) / found["trials"],
    }


def searched(module: Ranker, pool: ChunkPool, budget: int, candidates: int) -> dict[str, Any]:
    """Runs one search and returns the content of its `trait.json`."""
    callback = TraitSelection(budget, candidates=candidates)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=-1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
            enable_model_summary=False, limit_val_batches=0, default_root_dir=folder, callbacks=[callback],
        )  # fmt: skip
        trainer.fit(module, pool)
        found: dict[str, Any] = json.loads((Path(folder) / "trait.json").read_text())
    return found


def main() -> None:
    """Searches with every model in turn, prints a table and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=positive, default=30, help="trials")
    parser.add_argument("--chunk-size", type=positive, default=128, help="pairs")
    parser.add_argument("--max-pairs", type=positive, default=1280, help="most pairs of each package")
    parser.add_argument("--candidates", type=positive, default=100, help="documents for each dev query")
    parser.add_argument("--runs", type=positive, default=3)
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric", "bm25s"):
        logging.getLogger(name).setLevel(logging.ERROR)
    pool = ChunkPool(
        chunk_size=chosen.chunk_size, passes=2, batch_size=16, hard_negatives=7,
        max_pairs_per_package=chosen.max_pairs,
    )  # fmt: skip
    pool.setup()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in MODELS}
    found: dict[str, Any] = {}
    for number in range(chosen.runs):
        for name, build in MODELS.items():  # in turn, so that other load of the machine affects all of them
            seed_everything(1, verbose=False)
            found = searched(build(), pool, chosen.budget, chosen.candidates)
            runs[name].append(figures(found))
            print(number + 1, name, {key: round(value, 4) for key, value in runs[name][-1].items()}, flush=True)
    threads = torch.get_num_threads()
    case = (
        f"{len(pool.names)} packages, {found['pool_pairs']:,} pairs in chunks of {chosen.chunk_size}, 2 passes, batch"
        f" 16, 7 hard negatives, {chosen.budget} trials, {found['dev']['queries']} dev queries of"
        f" {chosen.candidates} candidates, {threads} thread{'s' if threads > 1 else ''}"
    )
    made = [
        row("trait_throughput", case, name, metric, [run[metric] for run in mine], unit, seed=1)
        for name, mine in runs.items()
        for metric, unit in UNITS.items()
    ]
    replace(made)
    table = Table("model", *UNITS, title=case)
    for name, mine in runs.items():
        table.add_row(name, *(f"{median(run[metric] for run in mine):.4g}" for metric in UNITS))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
