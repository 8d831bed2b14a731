"""One thread at a time changes a model: locks of the modules and configurations that models may share."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import count
from typing import Any

from torch import nn

# By the id of a module or configuration: a weak reference to it, the number of its lock, and the lock.
_LOCKS: dict[int, tuple[weakref.ref[Any], int, threading.RLock]] = {}
_REGISTRY = threading.RLock()  # re-entrant: a garbage collection may call _forget while it is held
_NUMBERS = count()


class ModelLock:
    """Keeps other threads from changing a model, or one that shares modules or configurations with it.

    Decoders change a model while a forward runs: its attention function, its training mode, skipped layers, hooks. A
    second thread waits for the end of that forward. Models that share nothing never wait for each other.

    Parts that are seen together for the first time get one lock; a model holds the locks of all its parts. Locks are
    taken in the order of their numbers, and a thread may take one again that it holds. They hold no model in memory.

    Args:
        model: The module whose parts, and whose configurations, are about to be changed.
    """

    def __init__(self, model: nn.Module) -> None:
        parts: list[Any] = list(model.modules())
        parts += [part.config for part in parts if hasattr(part, "config")]
        with _REGISTRY:
            found: dict[int, threading.RLock] = {}
            new: tuple[int, threading.RLock] | None = None
            for part in parts:
                known = _LOCKS.get(id(part))
                if known is None or known[0]() is not part:
                    if new is None:
                        new = next(_NUMBERS), threading.RLock()
                    _LOCKS[id(part)] = weakref.ref(part, _forgetting(id(part))), *new
                    found[new[0]] = new[1]
                else:
                    found[known[1]] = known[2]
        self._locks = [lock for _, lock in sorted(found.items())]

    def held(self) -> AbstractContextManager[Any]:
        """Within this context no other thread is inside such a context of this model or one that shares parts."""
        # nearly all models have one lock, which is taken for every forward: nothing is put around it
        return self._locks[0] if len(self._locks) == 1 else _all_held(self._locks)


@contextmanager
def _all_held(locks: Iterable[threading.RLock]) -> Iterator[None]:
    with ExitStack() as stack:
        for lock in locks:
            stack.enter_context(lock)
        yield


@contextmanager
def evaluation_mode(parts: Iterable[nn.Module]) -> Iterator[None]:
    """Within this context the given modules, each on its own, are not in training mode. Hold their lock around it."""
    training = [part for part in parts if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


def _forgetting(key: int) -> Any:
    def forget(reference: weakref.ref[Any]) -> None:
        with _REGISTRY:
            known = _LOCKS.get(key)
            if known is not None and known[0] is reference:  # the id may belong to a newer object
                del _LOCKS[key]

    return forget
