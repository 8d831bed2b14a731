"""Random states are read exactly, however the generators were used in between, and set again from a file."""

import random

import numpy as np
import pytest
import torch

from saccade.modules.random_states import RandomStates, set_random_states, storable

CPU = torch.device("cpu")
USES = {
    "nothing": lambda: None,
    "one number": lambda: np.random.rand(),  # noqa: NPY002
    "all numbers of the state": lambda: np.random.randint(0, 2**32, 624, dtype=np.uint32),  # noqa: NPY002
    "one of a normal pair": lambda: np.random.randn(),  # noqa: NPY002
    "the seed": lambda: np.random.seed(3),  # noqa: NPY002
    "another kind of generator": lambda: np.random.set_bit_generator(np.random.PCG64(1)),
    "another generator of this kind": lambda: np.random.set_bit_generator(np.random.MT19937(5)),
}


@pytest.fixture(autouse=True)
def generators():
    state, own = np.random.get_state(), np.random.get_bit_generator()  # noqa: NPY002
    yield
    np.random.set_bit_generator(own)
    np.random.set_state(state)  # noqa: NPY002


@pytest.mark.parametrize("uses", [(a, b) for a in USES for b in USES], ids=" then ".join)
def test_numpys_state_is_the_present_one(uses):
    np.random.seed(0)  # noqa: NPY002
    reader = RandomStates()
    for use in ("nothing", *uses, "nothing"):
        USES[use]()
        expected = np.random.get_state(legacy=False)  # noqa: NPY002
        found = reader.read(CPU)["numpy"]
        if expected["bit_generator"] != "MT19937":
            assert found is None
            continue
        inner = expected["state"]
        assert found[::2] == ("MT19937", inner["pos"], expected["gauss"])
        assert found[3] == expected["has_gauss"]
        assert np.array_equal(found[1], inner["key"])


def test_an_unused_generator_is_read_once(monkeypatch):
    reader = RandomStates()
    np.random.seed(0)  # noqa: NPY002
    first = reader.read(CPU)["numpy"]
    assert reader.read(CPU)["numpy"] is first
    np.random.rand()  # noqa: NPY002
    assert reader.read(CPU)["numpy"] is not first


def test_states_return_from_a_file(tmp_path):
    reader = RandomStates()
    np.random.randn()  # noqa: NPY002 -- the other one of the pair is part of the state
    torch.save(storable(reader.read(CPU)), tmp_path / "states")
    draw = lambda: (random.random(), np.random.randn(), np.random.rand(), torch.rand(()).item())  # noqa: E731, NPY002
    drawn = draw()
    states = torch.load(tmp_path / "states", weights_only=True)
    assert storable(states) == states
    for _ in range(2):
        set_random_states(states, CPU)
        assert draw() == drawn
