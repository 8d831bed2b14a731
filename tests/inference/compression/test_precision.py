"""Keys and values in 8 or 4 bits: the error has a bound, and packing loses nothing."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from saccade.inference.compression.precision import (
    CHANNEL,
    TOKEN,
    dequantize,
    packed,
    quantize,
    ranges_bytes,
    row_bytes,
    unpacked,
)

KINDS = list(itertools.product((8, 4), (CHANNEL, TOKEN), (torch.float64, torch.float32, torch.bfloat16, torch.float16)))


def drawn(dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    """Numbers whose channels differ in size and place, as those of keys do."""
    draw = torch.Generator().manual_seed(seed)
    numbers = torch.randn(shape, generator=draw, dtype=torch.float64)
    size, place = (torch.randn(shape[-1], generator=draw, dtype=torch.float64) for _ in range(2))
    return (numbers * size.exp() + 5 * place).to(dtype)


@pytest.mark.parametrize(("bits", "over", "dtype"), KINDS)
def test_no_number_is_further_off_than_half_a_step(bits, over, dtype) -> None:
    numbers = drawn(dtype, 50, 16, 24)
    steps, scale, low = quantize(numbers, bits, over)
    assert int(steps.max()) == 2**bits - 1
    assert int(steps.min()) == 0
    exact = low.double() + steps.double() * scale.double()
    error = (exact - numbers.double()).abs() / scale.double()
    assert float(error.max()) <= 0.5 + 1e-9
    assert float(error.mean()) > 0.2, "all of the range is used"
    rounded = (dequantize(steps, scale, low).double() - exact).abs()
    assert bool((rounded <= torch.finfo(dtype).eps * (exact.abs() + low.double().abs())).all())
    other = [size for size, dim in zip(numbers.shape[1:], (CHANNEL, TOKEN), strict=True) if dim != over]
    assert scale.numel() == low.numel() == 50 * other[0]


@pytest.mark.parametrize(("bits", "over", "dtype"), KINDS)
def test_rows_hold_steps_and_ranges_exactly(bits, over, dtype) -> None:
    for tokens, width in ((16, 128), (7, 20), (1, 6), (3, 2)):
        numbers = drawn(dtype, 9, tokens, width)
        rows = packed(numbers, bits, over)
        assert rows.shape == (9, row_bytes(tokens, width, dtype.itemsize, bits, over))
        assert rows.dtype == torch.uint8
        assert torch.equal(unpacked(rows, tokens, width, bits, over, dtype), dequantize(*quantize(numbers, bits, over)))


def test_a_byte_is_two_numbers_of_four_bits_in_every_combination() -> None:
    """All 256 bytes: what is read back of a row is the number that the byte stands for."""
    byte = torch.arange(256, dtype=torch.uint8)
    first, second = byte % 16, byte // 16
    ends = torch.tensor([[0.0, 15.0]], dtype=torch.float64)  # so that a step is one
    numbers = torch.cat([torch.stack([first, second], 1).double(), ends, ends.flip(1)])
    rows = packed(numbers[None], 4, CHANNEL)
    begin = ranges_bytes(2, 8)
    assert rows[0, begin : begin + 256].tolist() == byte.tolist()
    found = unpacked(rows, 258, 2, 4, CHANNEL, torch.float64)[0]
    assert torch.allclose(found, numbers, atol=1e-13)
    assert torch.equal(found.round(), numbers)


def test_rows_are_as_small_as_they_can_be() -> None:
    for bits, keys, values in ((16, 4096, 4096), (8, 512 + 2048, 64 + 2048), (4, 512 + 1024, 64 + 1024)):
        assert row_bytes(16, 128, 2, bits, CHANNEL) == keys
        assert row_bytes(16, 128, 2, bits, TOKEN) == values
    assert row_bytes(3, 10, 4, 4, CHANNEL) == 80 + 16, "both parts are whole 16 bytes"


@pytest.mark.parametrize("bits", [8, 4])
def test_equal_numbers_stay_what_they_are(bits) -> None:
    for value in (0.0, -3.25, 1e-30):
        numbers = torch.full((2, 4, 6), value)
        for over in (CHANNEL, TOKEN):
            assert torch.equal(unpacked(packed(numbers, bits, over), 4, 6, bits, over, torch.float32), numbers)


def test_a_channel_that_is_large_does_not_make_the_others_coarse() -> None:
    keys = drawn(torch.float32, 4, 16, 32)
    keys[:, :, 5] *= 1000
    error = [
        (dequantize(*quantize(keys, 4, over)) - keys).abs()[..., torch.arange(32) != 5].mean()
        for over in (CHANNEL, TOKEN)
    ]
    assert error[0] < error[1] / 100


def test_an_odd_width_has_no_pairs() -> None:
    assert packed(torch.randn(2, 3, 5), 8, TOKEN).shape[0] == 2
    with pytest.raises(ValueError, match=r"^heads must have an even number of dimensions for 4 bits, got 5: choose 8 "):
        packed(torch.randn(2, 3, 5), 4, TOKEN)
