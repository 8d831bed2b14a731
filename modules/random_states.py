"""The states of the random generators of Python, NumPy and torch, read at every step and written into checkpoints."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

_BYTES = 624 * 4 + 4  # of a Mersenne Twister: its numbers, and how many of them are used up


class RandomStates:
    """Reads the states of the global generators of Python, NumPy and torch.

    NumPy needs three times as long for this as the others together, and few trainings use its global generator. So its
    state is read again only if a comparison of memory shows that it has been used since the last time. Where somebody
    has set NumPy's to another kind than the Mersenne Twister, it is left out.
    """

    def __init__(self) -> None:
        self._memory = b""
        self._numpy: tuple[Any, ...] = ()

    def read(self, device: torch.device) -> dict[str, Any]:
        """Read the states.

        Args:
            device: The device of the training; the state of a GPU's generator is read too.

        Returns:
            The states, for `storable`.
        """
        return {
            "python": random.getstate(),
            "numpy": self._read_numpy(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }

    def _read_numpy(self) -> tuple[Any, ...] | None:
        generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
        if not isinstance(generator, np.random.MT19937):
            return None
        memory = ctypes.string_at(generator.ctypes.state_address, _BYTES)
        # the second number of a normal pair is kept outside of that memory: with one kept, using it shows nowhere
        if memory != self._memory or self._numpy[3]:
            self._memory, self._numpy = memory, np.random.get_state(legacy=True)  # type: ignore[assignment] # noqa: NPY002
        return self._numpy


def storable(states: Mapping[str, Any]) -> dict[str, Any]:
    """Convert states to types that `torch.load(weights_only=True)` accepts.

    Args:
        states: What `RandomStates.read` returned, or those of a checkpoint, which stay as they are.
    """
    if states["numpy"] is None or isinstance(states["numpy"][1], torch.Tensor):
        return dict(states)
    algorithm, keys, *rest = states["numpy"]
    return {**states, "numpy": (algorithm, torch.from_numpy(keys.astype(np.int64)), *rest)}


def set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Set the states of a checkpoint.

    Args:
        states: The result of `storable`; the GPU's state is left out where there is none.
        device: The device of the training.
    """
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    if states["numpy"] is not None:
        algorithm, keys, *rest = states["numpy"]
        np.random.set_state((algorithm, keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
