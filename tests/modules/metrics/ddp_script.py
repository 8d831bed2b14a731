"""Run by test_collection.py: every metric on two ranks that have different shares of the data."""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from saccade.modules.metrics import metrics_for
from tests.support.processes import TIME_LIMIT

SHARES = (7, 0, 100)
"""Samples of the first rank; the second one has the rest of 100."""


def values(share: slice) -> dict[str, float]:
    """The metrics of the given samples, summed over the processes there are."""
    draw = torch.Generator().manual_seed(0)
    target = (torch.randn(100, generator=draw) * 5).round() / 5
    preds = target + torch.randn(100, generator=draw)
    logits, classes = torch.randn(100, 4, generator=draw), torch.randint(0, 4, (100,), generator=draw)
    found = {}
    for name, metrics, pair in (
        ("mosi", metrics_for("regression"), (preds, target)),
        ("sims", metrics_for("regression", 1.0), (preds / 3, target / 3)),
        ("classes", metrics_for("classification", classes=4), (logits, classes)),
    ):
        for start in range(share.start, share.stop, 16):
            part = slice(start, min(start + 16, share.stop))
            metrics.update(pair[0][part], pair[1][part])
        found |= {f"{name}_{key}": float(value) for key, value in metrics.compute().items()}
    return found


def main(rank: int, folder: str) -> None:
    """One rank."""
    dist.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=TIME_LIMIT)
    )
    found = {}
    for first in SHARES:
        found[str(first)] = values(slice(0, first) if rank == 0 else slice(first, 100))
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(os.environ["LOCAL_RANK"]), sys.argv[1])
