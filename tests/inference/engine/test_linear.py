"""The fused projections and rotations: each Triton kernel against its reference in torch."""

import itertools

import pytest
import torch

from saccade.inference.engine.fused.reference import (
    LowRank,
    Norm,
    Units,
    reference_add,
    reference_linear,
    reference_rotate,
    rms_norm,
)
from tests.inference.pairs import pairs
from tests.support.triton_mode import DEVICE, triton_add, triton_linear, triton_norm, triton_rotate

BOUND = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def double(item):
    if isinstance(item, Norm | LowRank):
        return type(item)(*[double(part) for part in item])
    return item.double() if isinstance(item, torch.Tensor) else item


def far(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


PROJECTIONS = {  # sizes, gated, norm, residual, bias
    "three with biases": ((40, 24, 24), None, True, False, True),
    "three": ((40, 24, 24), None, True, False, False),
    "one with a residual": ((48,), None, False, True, False),
    "gated": ((33, 33), "silu", True, False, False),
    "gated with a residual and biases": ((33, 33), "gelu", False, True, True),
    "one": ((70,), None, True, False, False),
}


@pytest.mark.parametrize(("kind", "rows", "dtype"), pairs(list(PROJECTIONS), (1, 2, 26, 64, 65), list(BOUND)))
def test_projections(kind, rows, dtype):
    sizes, gated, norm, residual, bias = PROJECTIONS[kind]
    draw = torch.Generator().manual_seed(rows)
    if rows == 1:  # a program has few outputs of one row
        sizes = [size // 4 for size in sizes]

    def random(*shape):
        return torch.randn(shape, generator=draw).to(dtype).to(DEVICE)

    depth, outputs = 100, sizes[0] if gated else sum(sizes)
    inputs, weights = random(rows, depth), [random(size, depth) for size in sizes]
    biases = [random(size) if bias else None for size in sizes]
    settings = {
        "norm": Norm(random(depth), 1e-2, float(bool(gated))) if norm else None,
        "gated": gated,
        "residual": random(rows, outputs) if residual else None,
        "factor": 0.3,
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
    assert far(found, exact) < BOUND[dtype]


@pytest.mark.parametrize("precise", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 65])
@pytest.mark.parametrize("gated", [None, "silu"])
def test_adapters(precise, rows, gated):
    """Some matrices with adapters, of their own ranks and precision, others without."""
    draw = torch.Generator().manual_seed(rows)

    def random(*shape, dtype=torch.bfloat16):
        return torch.randn(shape, generator=draw).to(dtype).to(DEVICE)

    # the depth has three parts with inner values and one without, the rank of 17 two blocks
    depth, sizes, ranks = 300, (5, 5) if gated else (6, 4, 3), (1, 17) if gated else (8, 0, 5)
    weights = [random(size, depth) for size in sizes]
    adapters = [
        LowRank(random(rank, depth, dtype=precise), random(size, rank, dtype=precise), 0.5 + rank) if rank else None
        for rank, size in zip(ranks, sizes, strict=True)
    ]
    given = (random(rows, depth), weights, [None] * len(sizes))
    settings = {"norm": Norm(random(depth), 1e-2), "gated": gated, "adapters": adapters}
    found = triton_linear(*given, **settings)
    exact = reference_linear(
        given[0].double(), [item.double() for item in weights], given[2],
        **{name: [double(item) for item in value] if name == "adapters" else double(value)
           for name, value in settings.items()},
    )  # fmt: skip
    assert found.dtype == torch.bfloat16
    assert far(found, exact) < 2e-2
    plain = reference_linear(*given, **settings | {"adapters": None})
    assert far(plain, exact) > 0.1
    if gated:
        return
    given = (random(rows, depth), random(6, depth), None, random(rows, 6), Norm(random(6), 1e-2))
    found = triton_add(*given, adapter=adapters[0])
    exact = reference_add(*[double(item) for item in given], adapter=double(adapters[0]))
    for part, right in zip(found, exact, strict=True):
        assert far(part, right) < 1e-2


@pytest.mark.parametrize(
    ("rows", "shape", "dtype", "more"),
    pairs((1, 2, 26, 64, 65), ((40, 100), (33, 640), (96, 2048)), list(BOUND), (False, True)),
)
def test_projections_onto_the_residual_stream(rows, shape, dtype, more):
    outputs, depth = shape
    draw = torch.Generator().manual_seed(rows)

    def random(*shape):
        return torch.randn(shape, generator=draw).to(dtype).to(DEVICE)

    given = (random(rows, depth), random(outputs, depth), random(outputs) if more else None)
    given += (random(rows, outputs), Norm(random(outputs), 1e-2, float(more)))
    after = Norm(random(outputs), 1e-3, 1.0) if more else None
    factor = 0.2 if more else 1.0
    found = triton_add(*given, after=after, factor=factor)
    right = reference_add(*[double(item) for item in given], after=double(after), factor=factor)
    for part, exact in zip(found, right, strict=True):
        assert part.dtype == dtype
        assert far(part, exact) < BOUND[dtype]


@pytest.mark.parametrize(("dtype", "rows", "depth"), pairs(list(BOUND), (1, 26), (33, 5000)))
def test_norms(dtype, rows, depth):
    draw = torch.Generator().manual_seed(depth)
    inputs, norm = (torch.randn(shape, generator=draw).to(dtype).to(DEVICE) for shape in ((rows, depth), (depth,)))
    for shift in (0.0, 1.0):
        given = Norm(norm, 1e-2, shift)
        assert far(triton_norm(inputs, given), rms_norm(inputs.double(), double(given))) < BOUND[dtype]


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
    scales = (Norm(random(head_dim), 1e-2, 1.0), Norm(random(head_dim), 1e-2, 1.0)) if norms else None
    ours, theirs = (keys.clone(), values.clone()), (keys.double(), values.double())
    found = triton_rotate(packed, cos, sin, lengths, *ours, norms=scales)
    exact = reference_rotate(
        packed.double(), cos.double(), sin.double(), lengths, *theirs,
        norms=None if scales is None else tuple(double(item) for item in scales),
    )  # fmt: skip
    assert found.shape == exact.shape == (batch, heads, nodes, head_dim)
    for mine, right in zip((found, *ours), (exact, *theirs), strict=True):
        assert far(mine, right) < BOUND[dtype]
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
    right = triton_linear(inputs, [first, second], [None, None], norm=Norm(norm, 1e-5), gated="silu", residual=residual)
    wrong = [
        triton_linear(inputs, [second, first], [None, None], norm=Norm(norm, 1e-5), gated="silu", residual=residual),
        triton_linear(inputs, [first, second], [None, None], gated="silu", residual=residual),
        triton_linear(inputs, [first, second], [None, None], norm=Norm(norm, 1e-5), gated="silu"),
    ]
    for one, other in itertools.combinations([right, *wrong], 2):
        assert float((one - other).norm() / right.norm()) > 1e-2


def test_rotation_into_units_of_a_flat_buffer():
    draw = torch.Generator().manual_seed(1)
    packed, cos, sin = (torch.randn(*shape, generator=draw).to(DEVICE) for shape in ((6, 96), (2, 3, 16), (2, 3, 16)))
    lengths = torch.tensor([4, 8], device=DEVICE)
    units = Units(torch.tensor([[-2, 10], [22, 30]], device=DEVICE), torch.tensor([10, 50], device=DEVICE))
    ours, theirs = ([torch.zeros(60, 16, device=DEVICE) for _ in range(2)] for _ in range(2))
    found = triton_rotate(packed, cos, sin, lengths, *ours, units=units)
    exact = reference_rotate(packed, cos, sin, lengths, *theirs, units=units)
    for mine, right in zip((found, *ours), (exact, *theirs), strict=True):
        assert far(mine, right.double()) < BOUND[torch.float32]
    used = theirs[0].any(-1).nonzero()[:, 0].tolist()
    # row 0 at places 4 to 6; row 1 at 8 and 9, and behind the room of ten places in a spare slot
    assert used == [2, 3, 4, 14, 15, 16, 30, 31, 38, 39, 52]
