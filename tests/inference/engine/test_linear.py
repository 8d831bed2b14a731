"""The fused projections and rotations: each Triton kernel against its reference in torch."""

import itertools

import pytest
import torch

from saccade.inference.engine.fused import reference_add, reference_linear, reference_rotate, rms_norm
from tests.support.pairs import pairs
from tests.support.triton_mode import DEVICE, triton_add, triton_linear, triton_norm, triton_rotate

BOUND = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def double(item):
    return item.double() if isinstance(item, torch.Tensor) else item


PROJECTIONS = {  # sizes, gated, norm, residual, bias
    "three with biases": ((40, 24, 24), False, True, False, True),
    "three": ((40, 24, 24), False, True, False, False),
    "one with a residual": ((48,), False, False, True, False),
    "gated": ((33, 33), True, True, False, False),
    "gated with a residual and biases": ((33, 33), True, False, True, True),
    "one": ((70,), False, True, False, False),
}


@pytest.mark.parametrize(("kind", "rows", "dtype"), pairs(list(PROJECTIONS), (1, 2, 26, 64, 65), list(BOUND)))
def test_projections(kind, rows, dtype):
    sizes, gated, norm, residual, bias = PROJECTIONS[kind]
    draw = torch.Generator().manual_seed(rows)

    def random(*shape):
        return torch.randn(shape, generator=draw).to(dtype).to(DEVICE)

    depth, outputs = 100, sizes[0] if gated else sum(sizes)
    inputs, weights = random(rows, depth), [random(size, depth) for size in sizes]
    biases = [random(size) if bias else None for size in sizes]
    settings = {
        "norm": random(depth) if norm else None,
        "eps": 1e-2,
        "gated": gated,
        "residual": random(rows, outputs) if residual else None,
    }
    found = triton_linear(inputs, weights, biases, **settings)
    exact = reference_linear(
        inputs.double(),
        [item.double() for item in weights],
        [double(item) for item in biases],
        **{name: double(item) for name, item in settings.items()},
    )
    assert found.shape == exact.shape == (rows, outputs)
    assert found.dtype == dtype
    assert float((found.double() - exact).norm() / exact.norm()) < BOUND[dtype]


@pytest.mark.parametrize(
    ("rows", "shape", "dtype", "bias"),
    pairs((2, 26, 64, 65), ((40, 100), (33, 640), (96, 2048)), list(BOUND), (False, True)),
)
def test_projections_onto_the_residual_stream(rows, shape, dtype, bias):
    outputs, depth = shape
    draw = torch.Generator().manual_seed(rows)

    def random(*shape):
        return torch.randn(shape, generator=draw).to(dtype).to(DEVICE)

    given = (random(rows, depth), random(outputs, depth), random(outputs) if bias else None)
    given += (random(rows, outputs), random(outputs), 1e-2)
    found = triton_add(*given)
    for part, exact in zip(found, reference_add(*[double(item) for item in given]), strict=True):
        assert part.dtype == dtype
        assert float((part.double() - exact).norm() / exact.norm()) < BOUND[dtype]


@pytest.mark.parametrize(("dtype", "rows", "depth"), pairs(list(BOUND), (1, 26), (33, 5000)))
def test_norms(dtype, rows, depth):
    draw = torch.Generator().manual_seed(depth)
    inputs, norm = (torch.randn(shape, generator=draw).to(dtype).to(DEVICE) for shape in ((rows, depth), (depth,)))
    exact = rms_norm(inputs.double(), norm.double(), 1e-2)
    assert float((triton_norm(inputs, norm, 1e-2).double() - exact).norm() / exact.norm()) < BOUND[dtype]


@pytest.mark.parametrize(
    ("dtype", "shape", "norms"), pairs(list(BOUND), ((4, 2, 16), (3, 1, 24), (2, 2, 64)), (False, True))
)
def test_rotation_and_cache(dtype, shape, norms):
    heads, kv_heads, head_dim = shape
    draw = torch.Generator().manual_seed(heads)

    def random(*shape):
        return torch.randn(shape, generator=draw).to(dtype).to(DEVICE)

    batch, nodes, slots = 2, 3, 9
    packed, cos, sin = random(6, (heads + 2 * kv_heads) * head_dim), random(2, 3, head_dim), random(2, 3, head_dim)
    lengths = torch.tensor([0, 5], device=DEVICE)
    keys, values = random(batch, kv_heads, slots, head_dim), random(batch, kv_heads, slots, head_dim)
    scales = (random(head_dim), random(head_dim)) if norms else None
    ours, theirs = (keys.clone(), values.clone()), (keys.double(), values.double())
    found = triton_rotate(packed, cos, sin, lengths, *ours, norms=scales, eps=1e-2)
    exact = reference_rotate(
        packed.double(), cos.double(), sin.double(), lengths, *theirs,
        norms=None if scales is None else tuple(item.double() for item in scales), eps=1e-2,
    )  # fmt: skip
    assert found.shape == exact.shape == (batch, heads, nodes, head_dim)
    for mine, right in zip((found, *ours), (exact, *theirs), strict=True):
        assert float((mine.double() - right).norm() / right.norm()) < BOUND[dtype]
    written = torch.zeros(batch, slots, dtype=torch.bool)
    written[0, :3] = written[1, 5:8] = True
    for mine, before in zip(ours, (keys, values), strict=True):
        assert torch.equal(mine.cpu()[:, :, ~written[0]][0], before.cpu()[:, :, ~written[0]][0])
        assert torch.equal(mine.cpu()[1][:, ~written[1]], before.cpu()[1][:, ~written[1]])


def test_a_wrong_neighbour_shows():
    """The comparison can fail: swapped matrices, a missing norm and a missing residual are all far off."""
    draw = torch.Generator().manual_seed(0)
    inputs, norm, residual = (torch.randn(shape, generator=draw).to(DEVICE) for shape in ((2, 64), (64,), (2, 32)))
    first, second = (torch.randn(32, 64, generator=draw).to(DEVICE) for _ in range(2))
    right = triton_linear(inputs, [first, second], [None, None], norm=norm, eps=1e-5, gated=True, residual=residual)
    wrong = [
        triton_linear(inputs, [second, first], [None, None], norm=norm, eps=1e-5, gated=True, residual=residual),
        triton_linear(inputs, [first, second], [None, None], gated=True, residual=residual),
        triton_linear(inputs, [first, second], [None, None], norm=norm, eps=1e-5, gated=True),
    ]
    for one, other in itertools.combinations([right, *wrong], 2):
        assert float((one - other).norm() / right.norm()) > 1e-2
