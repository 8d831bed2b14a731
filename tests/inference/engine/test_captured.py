"""Short sequences of operations as one graph: captured once for each shape on CUDA, called as they are elsewhere."""

from __future__ import annotations

import pytest
import torch

from saccade.inference import Sampling
from saccade.inference.engine.captured import Captured
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
