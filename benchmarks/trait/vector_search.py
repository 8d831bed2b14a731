"""Vector search: building and searching `VectorIndex` (FAISS) against a plain torch matmul and topk.

Vectors are random, of length 1 and clustered, as those of texts are. "recall" is the share of the plain search's
documents that an index finds. It is 1 for an exact index, except where scores differ in the last bit only. Run:

    python -m benchmarks.trait.vector_search --vectors 1000000
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.rows import positive, replace, row
from saccade.retrieval.faiss_bridge import faiss_module, gpu_count
from saccade.retrieval.vector_index import VectorIndex

_BLOCK = 64  # queries of the plain search at once, each with a score for every vector


def clustered(count: int, width: int, clusters: int, seed: int) -> Tensor:
    """Vectors of length 1 around so many centres, float32 [count, width]."""
    centres = torch.randn(clusters, width, generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(seed)
    found = centres[torch.randint(clusters, (count,), generator=draw)]
    found += 1.5 * torch.randn(count, width, generator=draw)
    return torch.nn.functional.normalize(found, dim=1)


def plain(vectors: Tensor, queries: Tensor, top_k: int) -> Tensor:
    """Indices of the nearest vectors, [queries, top_k], by matmul and topk."""
    return torch.cat([(part @ vectors.T).topk(top_k).indices.cpu() for part in queries.split(_BLOCK)])


def measure_plain(vectors: Tensor, queries: Tensor, top_k: int, runs: int) -> tuple[list[float], Tensor]:
    """Queries a second of every run of the plain search, and the indices that it finds."""
    places = plain(vectors, queries[:_BLOCK], top_k)  # warms up
    speeds = []
    for _ in range(runs):
        seconds, places = timed(lambda: plain(vectors, queries, top_k))
        speeds.append(len(queries) / seconds)
    return speeds, places


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds until the work is done, on a GPU too, and its result."""
    began = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began, result


@contextmanager
def threads_of(faiss: Any, count: int) -> Iterator[None]:
    """Lets torch and FAISS use so many threads."""
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(count)
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        faiss.omp_set_num_threads(before[1])


def measure_index(
    settings: dict[str, Any], vectors: Tensor, queries: Tensor, top_k: int, truth: list[set[int]], runs: int
) -> dict[str, list[float]]:
    """Seconds to build, save and load, queries a second, and recall of one index."""
    ids = [str(place) for place in range(len(vectors))]
    index = VectorIndex(**settings)
    found: dict[str, list[float]] = {"build": [timed(lambda: index.add_vectors(ids, vectors))[0]]}
    warm, _ = timed(lambda: index.search(queries[:_BLOCK], top_k))
    if settings["device"] == "cuda":
        found["copy_to_gpu"] = [warm]  # the first search copies the vectors
    speeds, recalls = [], []
    for _ in range(runs):
        seconds, (_, names) = timed(lambda: index.search(queries, top_k))
        speeds.append(len(queries) / seconds)
        hits = sum(len(wanted & {int(name) for name in row}) for wanted, row in zip(truth, names, strict=True))
        recalls.append(hits / sum(map(len, truth)))
    found |= {"search": speeds, "recall": recalls[:1]}
    if settings["device"] == "cpu":
        with tempfile.TemporaryDirectory() as folder:
            found["save"] = [timed(lambda: index.save(Path(folder)))[0]]
            found["load"] = [timed(lambda: VectorIndex.load(Path(folder), "cpu"))[0]]
    return found


def main() -> None:
    """Measure, print the table and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=positive, default=1_000_000)
    parser.add_argument("--width", type=positive, default=128)
    parser.add_argument("--queries", type=positive, default=512)
    parser.add_argument("--top-k", type=positive, default=100)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--clusters", type=positive, default=1024, help="of the data, and cells of the IVF index")
    parser.add_argument("--runs", type=positive, default=3)
    arguments = parser.parse_args()
    faiss, count = faiss_module(), arguments.vectors
    vectors = clustered(count, arguments.width, arguments.clusters, 1)
    queries = clustered(arguments.queries, arguments.width, arguments.clusters, 2)
    case = f"{count:,} x {arguments.width}, {arguments.queries} queries, top {arguments.top_k}"
    cells = f"IVF{arguments.clusters},Flat"
    on_gpus = bool(gpu_count(faiss)) and torch.cuda.is_available()
    methods: dict[str, dict[str, Any]] = {
        "faiss Flat": {"device": "cpu"},
        f"faiss {cells}, nprobe 16": {"factory": cells, "parameters": "nprobe=16", "device": "cpu"},
    }
    if on_gpus:
        methods |= {
            "faiss Flat on GPU": {"device": "cuda"},
            "faiss Flat on GPU, fp16": {"device": "cuda", "fp16": True},
        }
    with threads_of(faiss, arguments.threads):
        results: dict[str, dict[str, list[float]]] = {}
        devices = {"torch matmul + topk": "cpu"}
        if torch.cuda.is_available():
            devices["torch matmul + topk on GPU"] = "cuda"
        truth: list[set[int]] = []
        for name, device in devices.items():
            speeds, places = measure_plain(vectors.to(device), queries.to(device), arguments.top_k, arguments.runs)
            truth = truth or [set(found) for found in places.tolist()]
            results[name] = {"search": speeds}
        for name, settings in methods.items():
            results[name] = measure_index(settings, vectors, queries, arguments.top_k, truth, arguments.runs)
            print(name, {key: round(median(values), 4) for key, values in results[name].items()}, flush=True)
        units = {"search": "queries/s", "recall": "share"}
        extra = {"faiss": faiss.__version__}
        words = f"{case}, {arguments.threads} CPU thread{'s' if arguments.threads > 1 else ''}"
        made = [
            row("vector_search", words, name, metric, values, units.get(metric, "s"), seed=1, extra=extra)
            for name, found in results.items()
            for metric, values in found.items()
        ]
    replace(made)
    table = Table("method", "build s", "queries/s", "recall", title=words)
    for name, found in results.items():
        cells_of = (found.get("build"), found["search"], found.get("recall"))
        table.add_row(name, *("" if values is None else f"{median(values):.4g}" for values in cells_of))
    Console().print(table)


if __name__ == "__main__":
    main()
