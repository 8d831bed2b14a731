"""What searches: the processor or GPUs; FAISS's own where there are some, else shards on the CPU behind its names."""

from types import SimpleNamespace

import faiss
import numpy as np
import pytest
import torch

from saccade.retrieval import faiss_bridge, vector_index
from saccade.retrieval.vector_index import VectorIndex
from tests.retrieval.test_vector_index import built, documents, encode, queries


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(faiss_bridge, "rank_zero_info", lines.append)
    faiss_bridge._say.cache_clear()
    yield lines
    faiss_bridge._say.cache_clear()


class CpuFaiss(SimpleNamespace):
    """FAISS without its GPU names, or with ones that split an index over shards on the CPU."""

    def __init__(self, gpus=None, refuses=False):
        self.copies = []
        if gpus is not None:
            self.StandardGpuResources, self.GpuMultipleClonerOptions = object, SimpleNamespace
            self.get_num_gpus = lambda: gpus
            self.index_cpu_to_gpus_list = self.copy
        self.refuses = refuses

    def __getattr__(self, name):
        if name == "StandardGpuResources":
            raise AttributeError(name)
        return getattr(faiss, name)

    def copy(self, index, options, gpus):
        if self.refuses:
            raise RuntimeError("Error in gpu::copy(Index*) at x.cu:9: This index type\nis not implemented on GPU.")
        self.copies.append((options, gpus))
        whole, count = index.reconstruct_n(0, index.ntotal), len(gpus or range(self.get_num_gpus()))
        shards = faiss.IndexShards(index.d, False, True)
        self.parts = [faiss.IndexFlat(index.d, index.metric_type) for _ in range(count)]
        for part, rows in zip(self.parts, np.array_split(whole, count), strict=True):
            part.add(np.ascontiguousarray(rows))
            shards.add_shard(part)
        return shards


def test_auto_takes_the_processor_and_says_so_once(said, monkeypatch):
    for package, reason in (
        (CpuFaiss(), "the installed faiss is not built for GPUs"),
        (CpuFaiss(0), "faiss sees no GPU"),
    ):
        monkeypatch.setattr(vector_index, "faiss_module", lambda package=package: package)
        said.clear()
        for _ in range(2):
            built(10).search(queries(), 3)
        assert said == [f"saccade: vector search runs on the CPU: {reason}"]
    said.clear()
    built(10, device="cpu").search(queries(), 3)
    assert not said


def test_cuda_without_gpus_is_refused(said, monkeypatch):
    monkeypatch.setattr(vector_index, "faiss_module", CpuFaiss)
    with pytest.raises(
        ValueError, match=r"^device 'cuda' needs a faiss that .+ got faiss .+saccade\[retrieval-gpu\].+\.$"
    ):
        VectorIndex(device="cuda")
    monkeypatch.setattr(vector_index, "faiss_module", lambda: CpuFaiss(0))
    with pytest.raises(ValueError, match=r"^device 'cuda' needs a GPU, .+\.$"):
        VectorIndex(device="cuda")
    monkeypatch.setattr(vector_index, "faiss_module", lambda: CpuFaiss(2))
    for gpus in ([2], []):
        with pytest.raises(ValueError, match=r"^gpus must be numbers from 0 to 1, at least one, got .+\.$"):
            VectorIndex(device="cuda", gpus=gpus)


@pytest.mark.parametrize("metric", ["inner_product", "l2"])
def test_shards_find_what_one_index_finds_and_follow_changes(said, monkeypatch, metric):
    package = CpuFaiss(2)
    plain = built(150, metric=metric, device="cpu")
    monkeypatch.setattr(vector_index, "faiss_module", lambda: package)
    index = built(100, metric=metric, device="cuda", fp16=True, gpus=[1, 0])
    for _ in range(2):
        index.search(queries(), 3)
    assert [(options.shard, options.useFloat16, gpus) for options, gpus in package.copies] == [(True, True, [1, 0])]
    index.add(encode, documents(50, 100), progress=False)
    scores, ids = index.search(queries(), 150)
    np.testing.assert_array_equal(scores, plain.search(queries(), 150)[0])
    assert ids == plain.search(queries(), 150)[1]
    assert len(package.copies) == 2
    assert not said


def test_more_documents_than_a_gpu_returns_come_from_the_processor(monkeypatch):
    monkeypatch.setattr(vector_index, "faiss_module", lambda: CpuFaiss(1))
    monkeypatch.setattr(vector_index, "MAX_GPU_TOP_K", 8)
    index = built(50, device="cuda")
    index.search(queries(), 3)
    asked = []
    monkeypatch.setattr(index._searcher, "index", SimpleNamespace(search=lambda rows, k: asked.append(k)))
    assert index.search(queries(), 20)[0].shape == (7, 20)
    assert not asked


def test_what_gpus_cannot_do(said, monkeypatch):
    monkeypatch.setattr(vector_index, "faiss_module", lambda: CpuFaiss(1, refuses=True))
    assert built(30, factory="HNSW8").search(queries(), 3)[0].shape == (7, 3)
    assert len(said) == 1
    assert said[0].startswith("saccade: vector search runs on the CPU: device 'cuda'")
    assert "\n" not in said[0]
    with pytest.raises(ValueError, match=r"^device 'cuda' is refused by FAISS \(This index type is not .+\.$"):
        built(30, factory="HNSW8", device="cuda").search(queries(), 3)


@pytest.mark.gpu
@pytest.mark.skipif(not hasattr(faiss, "StandardGpuResources") or not torch.cuda.is_available(), reason="no GPU faiss")
@pytest.mark.parametrize("metric", ["inner_product", "l2", "cosine"])
def test_gpus_find_what_the_processor_finds(metric):
    plain, fast = (built(3000, metric=metric, device=device) for device in ("cpu", "cuda"))
    asked = queries(50)
    np.testing.assert_allclose(fast.search(asked.cuda(), 100)[0], plain.search(asked, 100)[0], atol=1e-5)
    if metric != "cosine":
        assert fast.search(asked, 100)[1] == plain.search(asked, 100)[1]
    half = built(3000, metric=metric, device="cuda", fp16=True).search(asked, 100)[0]
    np.testing.assert_allclose(half, plain.search(asked, 100)[0], atol=0.05, rtol=0.01)
