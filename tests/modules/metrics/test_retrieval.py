"""Measures that add up: over batches, over merged metrics, and over two processes."""

import json
import os
import random
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torchmetrics import MetricCollection

from saccade.modules.metrics.retrieval import RetrievalMeasures
from saccade.retrieval.measures import METRICS, measure, run_lines
from tests.support.processes import TIME_LIMIT

ROOT = Path(__file__).parents[3]
SHARES = (7, 0, 40)
"""Queries of the first process; the second one has the rest of 40."""


def data():
    """A run that lacks some queries and has ties, and its judgements."""
    draw = random.Random(0)
    names = [f"d{index}" for index in range(60)]
    qrels = {f"q{index}": {name: draw.randint(0, 2) for name in draw.sample(names, 12)} for index in range(40)}
    run = {query: {name: draw.randint(0, 20) / 7 for name in draw.sample(names, 40)} for query in qrels}
    for query in ("q3", "q30"):
        del run[query]
    return run, qrels


def part(items, share):
    return {query: item for query, item in items.items() if int(query[1:]) in share}


def share_of(first, rank):
    return range(first) if rank == 0 else range(first, 40)


def test_batches_add_up_to_the_whole():
    run, qrels = data()
    metric = RetrievalMeasures()
    assert metric.update({}, {}) is None
    assert metric.compute() == dict.fromkeys(METRICS, 0.0)
    for start in range(0, 40, 7):
        share = range(start, min(start + 7, 40))
        metric.update(part(run, share), part(qrels, share))
    assert metric.compute() == pytest.approx(measure(run, qrels).mean, rel=1e-12)
    assert all(type(value) is float for value in metric.compute().values())
    metric.reset()
    metric.update(run, {"q3": qrels["q3"]})
    assert metric.compute() == dict.fromkeys(METRICS, 0.0)


def test_forward_gives_the_batch_and_keeps_the_sum():
    run, qrels = data()
    metric = RetrievalMeasures(("map", "recall_1"))
    first, second = range(10), range(10, 40)
    metric(part(run, first), part(qrels, first))
    batch = metric(part(run, second), part(qrels, second))
    assert batch == pytest.approx(measure(run, part(qrels, second), ("map", "recall_1")).mean)
    assert metric.compute() == pytest.approx(measure(run, qrels, ("map", "recall_1")).mean)


def test_merged_states_and_casts():
    run, qrels = data()
    first, second = (RetrievalMeasures().to(torch.bfloat16) for _ in range(2))
    first.update(part(run, range(9)), part(qrels, range(9)))
    second.update(part(run, range(9, 40)), part(qrels, range(9, 40)))
    first.merge_state(second)
    assert first.compute() == pytest.approx(measure(run, qrels).mean, rel=1e-12)


def test_in_a_collection():
    run, qrels = data()
    metrics = MetricCollection({"target": RetrievalMeasures("map")}, prefix="val_")
    metrics.update(run, qrels)
    assert [float(value) for value in metrics.compute().values()] == pytest.approx([measure(run, qrels).mean["map"]])


def test_unknown_measures_are_refused_at_once():
    with pytest.raises(ValueError, match=r"^metrics: must be measures of trec_eval [^\n]+'ndcg@10'[^\n]+$"):
        RetrievalMeasures(("map", "ndcg@10"))


def main(rank, folder):
    """One of two processes, each with its share of the queries."""
    dist.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=TIME_LIMIT)
    )
    run, qrels = data()
    found = {}
    for first in SHARES:
        share = share_of(first, rank)
        metric = RetrievalMeasures()
        metric.update(part(run, share), part(qrels, share))
        found[first] = {"values": metric.compute(), "lines": run_lines(part(run, share))}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_two_processes_agree_with_one(tmp_path):
    """The same measures on both, and together the run file of one process, line for line after sorting."""
    subprocess.run(
        [sys.executable, "-m", "tests.modules.metrics.test_retrieval", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=TIME_LIMIT,
    )
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    run, qrels = data()
    one = measure(run, qrels).mean
    assert set(first) == {str(share) for share in SHARES}
    for share in first:
        assert first[share]["values"] == second[share]["values"]
        assert first[share]["values"] == pytest.approx(one, rel=1e-12)
        assert sorted(first[share]["lines"] + second[share]["lines"]) == sorted(run_lines(run))
    assert all(len(first[str(share)]["lines"]) < len(run_lines(run)) for share in (0, 7))


if __name__ == "__main__":
    torch.multiprocessing.spawn(main, (sys.argv[1],), nprocs=2)
