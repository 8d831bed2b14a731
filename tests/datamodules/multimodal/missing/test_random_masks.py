"""Random numbers that depend on key, stream, seed, epoch and position, and on nothing else."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from saccade.datamodules.multimodal.missing.random_masks import uniform

KEYS = torch.arange(2000)  # neighbours, the worst case
LEAST = 1e-4  # p below which numbers are not what they should be


def together(one: torch.Tensor, other: torch.Tensor) -> float:
    """p of the hypothesis that two lots of numbers have nothing to do with each other."""
    table = np.histogram2d(one.flatten().numpy(), other.flatten().numpy(), 8, ((0, 1), (0, 1)))[0]
    return float(chi2_contingency(table).pvalue)


@pytest.mark.parametrize(
    ("keys", "positions"),
    [(KEYS, 50), (KEYS, 1), (KEYS[:1], 20000), (KEYS << 40, 5), (2**62 - KEYS, 5)],
    ids=["all", "one position", "one key", "keys with high bits", "large keys"],
)
def test_numbers_are_uniform(keys, positions):
    numbers = uniform(keys, "a", 0, 0, positions)
    assert numbers.shape == (len(keys), positions)
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    assert chisquare(np.histogram(numbers.numpy(), 64, (0, 1))[0]).pvalue > LEAST


@pytest.mark.parametrize(
    "other",
    [
        uniform(KEYS, "b", 0, 0, 50),
        uniform(KEYS, "a", 1, 0, 50),
        uniform(KEYS, "a", 0, 1, 50),
        uniform(KEYS + 1, "a", 0, 0, 50),
        uniform(KEYS ^ (1 << 60), "a", 0, 0, 50),
        uniform(KEYS, "a", 0, 0, 51)[:, 1:],
    ],
    ids=["stream", "seed", "epoch", "next key", "a high bit of the key", "next position"],
)
def test_each_argument_gives_other_numbers(other):
    numbers = uniform(KEYS, "a", 0, 0, 50)
    assert together(numbers, other) > LEAST
    assert abs(np.corrcoef(numbers.flatten(), other.flatten())[0, 1]) < 0.015
    assert together(numbers, numbers.roll(1, 0) * 0.5 + numbers * 0.5) < LEAST  # the test sees what is related


def test_seed_and_epoch_are_not_added_up():
    assert not torch.equal(uniform(KEYS, "a", 0, 1, 1), uniform(KEYS, "a", 1, 0, 1))
    assert not torch.equal(uniform(KEYS, "a", 1, 11, 1), uniform(KEYS, "a", 11, 1, 1))


@given(st.permutations(range(12)), st.integers(0, 2**62), st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_numbers_do_not_depend_on_the_batch(order, first, length):
    keys = torch.arange(12) * 977 + first % (2**61)
    whole = uniform(keys, "x", 3, 4, 9)
    assert torch.equal(uniform(keys[list(order)], "x", 3, 4, length), whole[list(order), :length])


def test_numbers_are_those_of_plain_integers():
    """Written out with Python's integers, which do not wrap: a mask of a published table stays what it was."""

    def mixed(number: int) -> int:
        number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        number = (number ^ number >> 27) * 0x94D049BB133111EB % 2**64
        return number ^ number >> 31

    start = int.from_bytes(hashlib.sha256(b"text/5/7").digest()[:8], "big")
    for key in (0, 1, 2**63 - 1):
        counted = [(mixed(key ^ start) + place * 0x9E3779B97F4A7C15) % 2**64 for place in range(1, 9)]
        wanted = [(mixed(number) >> 40) / 2**24 for number in counted]
        assert uniform(torch.tensor([key]), "text", 5, 7, 8)[0].tolist() == wanted


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_numbers_are_the_same_on_a_gpu():
    keys = torch.randint(0, 2**62, (100,))
    assert torch.equal(uniform(keys, "x", 1, 2, 64), uniform(keys.cuda(), "x", 1, 2, 64).cpu())
