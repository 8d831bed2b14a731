"""Short sequences of operations as one graph: captured once for each shape on CUDA, called as they are elsewhere."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from saccade.inference import Sampling
from saccade.inference.engine.captured import Captured, capture
from saccade.inference.engine.config import EngineConfig
from saccade.inference.engine.pool import EnginePool
from saccade.inference.verification.draft import Draft
from saccade.inference.verification.rejection_sampling import verify_sampling

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_without_cuda_the_function_is_called():
    calls = []
    function = Captured(lambda a, b: calls.append(1) or a + b)
    assert function(torch.ones(2), torch.ones(2)).tolist() == [2.0, 2.0]
    assert function(torch.ones(2), torch.ones(2)).tolist() == [2.0, 2.0]
    assert len(calls) == 2


def test_a_floor_keeps_one_for_each_key_and_none_where_steps_run_eagerly():
    def function(a: torch.Tensor) -> torch.Tensor:
        return a

    pool = EnginePool(EngineConfig("graph"))
    assert pool.captured(("draft", 1.0), function) is pool.captured(("draft", 1.0), function)
    assert pool.captured(("draft", 1.0), function) is not pool.captured(("draft", 0.5), function)
    assert EnginePool(EngineConfig("eager")).captured("draft", function) is function


@pytest.mark.parametrize("fails", [False, True])
def test_each_graph_gets_a_workspace_of_its_own(fails, monkeypatch):
    """Torch's workspaces of cuBLAS are dropped before the capture and, in the pool of the graph, after it."""
    did = []

    class Stream:
        def __init__(self, device):
            pass

        def wait_stream(self, other):
            pass

    @contextmanager
    def named(name):
        did.append(name)
        yield
        did.append(f"end of {name}")

    def run():
        did.append("run")
        if fails and did.count("run") == 3:
            raise RuntimeError("not to be captured")
        return 5

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: named("stream"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **settings: named("graph"))
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: did.append("clear"), raising=False)
    if fails:
        with pytest.raises(RuntimeError, match="not to be captured"):
            capture(run, torch.device("cuda"))
    else:
        assert capture(run, torch.device("cuda"))[1] == 5
    assert did[:7] == ["stream", "run", "run", "end of stream", "clear", "graph", "run"]
    assert did[7:] == (["clear"] if fails else ["end of graph", "clear"])


@pytest.mark.gpu
@needs_cuda
def test_a_graph_outlives_others_and_captures_of_torch_compile():
    """Workspaces of cuBLAS that graphs share are freed by a capture of `torch.compile`, while graphs use them."""
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(depth, 512, generator=draw).bfloat16().cuda() for depth in (8192, 16384)]
    inputs = [torch.randn(16, len(weight), generator=draw).bfloat16().cuda() for weight in weights]
    first, second = (Captured(lambda a, weight=weight: a @ weight) for weight in weights)
    first(inputs[0])
    right = second(inputs[1]).clone()
    compiled = torch.compile(lambda a, weight: torch.tanh(a @ weight), mode="reduce-overhead")
    for _ in range(4):
        compiled(inputs[0], weights[0])
    del first
    torch.cuda.empty_cache()
    filling = [torch.full((1 << 20,), float("nan"), device="cuda") for _ in range(64)]
    assert torch.equal(second(inputs[1]), right)
    assert all(part.isnan().all() for part in filling)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("picked", [True, False])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_a_captured_judgement_is_the_judgement(picked, top_p):
    draw = torch.Generator().manual_seed(0)
    pool, sampling = EnginePool(EngineConfig("graph")), Sampling(temperature=0.7, top_p=top_p, coupling="rejection")
    for _ in range(5):  # captured, then replayed on other numbers
        logits = torch.randn(2, 4, 50, generator=draw).cuda()
        proposals = torch.randn(2, 3, 50, generator=draw).softmax(-1).cuda()
        tokens = torch.multinomial(proposals.view(6, 50).cpu(), 1, generator=draw).view(2, 3).cuda()
        draft = Draft(tokens, [3, 2], None if picked else proposals)
        found = [verify_sampling(logits, draft, sampling, Sampling(seed=4).streams(2), each) for each in (None, pool)]
        assert found[0] == found[1]


@pytest.mark.gpu
@needs_cuda
def test_shapes_beyond_the_limit_run_as_they_are():
    function = Captured(lambda a: a * 2)
    for size in range(1, 70):
        assert function(torch.ones(size, device="cuda")).sum() == 2 * size
    assert len(function._graphs) == 64
