"""The kernels of mixtures of experts: each against its reference in torch, and the references against transformers."""

import pytest
import torch
from torch import nn

from benchmarks.decoding import classes
from saccade.inference.engine.fused.parts import read_sublayers
from saccade.inference.engine.fused.reference import (
    Experts,
    Norm,
    choose_experts,
    reference_experts,
    reference_experts_add,
    rms_norm,
)
from tests.support.triton_mode import DEVICE, experts, triton_experts, triton_experts_add

BOUND = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
# number of experts, experts of a row, normalised weights, activation, depth and inner width, precision
CASES = [
    (8, 2, True, "silu", 18, 10, torch.float32),
    (8, 2, True, "silu", 18, 10, torch.bfloat16),
    (5, 3, False, "gelu", 18, 10, torch.float32),
    (4, 1, False, "silu", 64, 8, torch.float32),
]


def double(item):
    if isinstance(item, tuple):
        return type(item)(*[double(part) for part in item])
    return item.double() if isinstance(item, torch.Tensor) else item


def far(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


def mixture(rows, experts, count, normalised, gated, depth=18, width=10, dtype=torch.float32):
    """Inputs, logits with one column more than experts, weights of experts, a residual stream and a norm."""
    draw = torch.Generator().manual_seed(rows + experts)

    def random(*shape):
        return torch.randn(shape, generator=draw).to(dtype).to(DEVICE)

    weights = Experts(random(experts, 2 * width, depth) / 4, random(experts, depth, width), count, normalised, gated)
    # no two are equal, also in bfloat16: of equal logits torch takes any
    logits = torch.stack([torch.randperm(experts + 1, generator=draw) / 4 for _ in range(rows)]).to(dtype).to(DEVICE)
    norm = Norm(random(depth), 1e-2, float(gated == "gelu"))
    return random(rows, depth), logits, weights, random(rows, depth), norm


@pytest.mark.parametrize("case", CASES)
def test_one_row(case):
    inputs, logits, weights, residual, norm = mixture(1, *case)
    exact = reference_experts(
        inputs.double(), logits.double(), double(weights), residual.double(), norm=double(norm), factor=0.5
    )
    found = triton_experts(inputs, logits, weights, residual, norm=norm, factor=0.5)
    assert found.dtype == case[-1]
    assert far(found, exact) < BOUND[case[-1]]
    others = reference_experts(inputs, -logits, weights, residual, norm=norm, factor=0.5)
    assert far(others, exact) > 0.1


@pytest.mark.parametrize("rows", [2, 7])
@pytest.mark.parametrize("case", CASES)
def test_several_rows(case, rows, monkeypatch):
    if DEVICE == "cpu":  # more rows than a launch takes
        monkeypatch.setattr(experts, "_MOST_ROWS", 4)
    given = mixture(rows, *case)
    found = triton_experts_add(*given, factor=0.5)
    exact = reference_experts_add(*[double(item) for item in given], factor=0.5)
    for part, right in zip(found, exact, strict=True):
        assert part.dtype == case[-1]
        assert far(part, right) < BOUND[case[-1]]


@pytest.mark.parametrize("rows", [1, 3])
def test_equal_logits_choose_each_expert_once(rows):
    """bfloat16 logits tie often: the experts are still as many as a row takes, and the first of equal ones."""
    inputs, logits, weights, residual, norm = mixture(rows, 8, 3, True, "silu")
    logits = logits.round()
    logits[:, 2:6] = 3.0
    ahead = logits[:, :8] - 1e-4 * torch.arange(8, device=DEVICE)
    if rows == 1:
        found = triton_experts(inputs, logits, weights, residual)
    else:
        found, _ = triton_experts_add(inputs, logits, weights, residual, norm)
    assert far(found, reference_experts(inputs.double(), ahead.double(), double(weights), residual.double())) < 1e-3


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("rows", [1, 2, 16, 40])
@pytest.mark.parametrize("sizes", [(128, 8, True, "silu", 2048, 768), (8, 2, True, "silu", 4096, 14336)])
def test_full_shapes(rows, sizes):
    inputs, logits, weights, residual, norm = mixture(rows, *sizes, torch.bfloat16)
    inputs = inputs / 8
    exact = reference_experts_add(
        inputs.float(), logits.float(), weights._replace(gate_up=weights.gate_up.float(), down=weights.down.float()),
        residual.float(), norm,
    )[0]  # fmt: skip
    if rows == 1:
        found = triton_experts(inputs, logits, weights, residual)
    else:
        found, _ = triton_experts_add(inputs, logits, weights, residual, norm)
    assert far(found, exact.double()) < BOUND[torch.bfloat16]


def test_logits_that_are_no_numbers_stay_inside():
    for rows, run in ((1, triton_experts), (2, triton_experts_add)):
        inputs, logits, weights, residual, norm = mixture(rows, 5, 2, True, "silu")
        logits[0] = float("nan")
        out = run(inputs, logits, weights, residual, **({} if rows == 1 else {"norm": norm}))
        assert (out if rows == 1 else out[0])[0].isnan().all()


@pytest.mark.parametrize("name", ["granitemoe", "mixtral", "qwen2_moe", "qwen3_moe"])
@pytest.mark.parametrize("normalised", [True, False])
def test_references_are_the_modules_own_forwards(name, normalised):
    model = classes.tiny_model(name)
    layer = model.model.layers[0]
    own = layer.block_sparse_moe if name == "granitemoe" else layer.mlp
    part = read_sublayers(model)[1].part
    if hasattr(part.router, "norm_topk_prob"):
        part.router.norm_topk_prob = normalised
    inputs = torch.randn(5, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits = nn.functional.linear(inputs, part.router.weight)
    routed = part.router(inputs)
    scores, index = routed[1], next(item for item in routed if not item.is_floating_point())
    weights, mine = choose_experts(logits, part.router.top_k, part.read().normalised)
    assert torch.equal(mine, index)
    assert torch.allclose(weights.double(), scores.double(), atol=1e-6)
    residual = torch.zeros_like(inputs)
    right = own.experts(inputs, index, scores)
    found, ready = reference_experts_add(inputs, logits, part.read(), residual, Norm(inputs[0], 1e-5))
    assert torch.allclose(found, right, atol=1e-6)
    assert torch.equal(ready, rms_norm(found, Norm(inputs[0], 1e-5)))
