"""Bits from a counter: SplitMix64's own numbers, and keys of anything."""

import torch

from saccade.common.counters import STEP, key_of, mixed, shifted, signed


def test_counting_up_gives_the_numbers_of_splitmix64() -> None:
    # the first numbers of the reference implementation (Vigna, 2015) with the seed 1234567
    right = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    places = 1234567 + torch.arange(1, 6) * STEP
    assert mixed(places).tolist() == [signed(number) for number in right]


def test_shifts_fill_with_zeros() -> None:
    assert shifted(torch.tensor([-1, signed(1 << 63), 8]), 3).tolist() == [(1 << 61) - 1, 1 << 60, 1]


def test_keys_are_fixed_and_differ() -> None:
    assert key_of("labels", 3, 7) == 3040552026845194063
    assert len({key_of(seed, row) for seed in range(-5, 40) for row in range(40)}) == 45 * 40
    assert all(-(2**63) <= key_of(seed) < 2**63 for seed in (0, 2**70, -(2**63)))
