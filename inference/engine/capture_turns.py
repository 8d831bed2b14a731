"""Threads that decode take turns with threads that capture a CUDA graph (ours)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class CaptureTurns:
    """Many threads may work on the device at a time, or one may capture a graph.

    While a stream is being captured, another thread must not wait for the device, and two captures share a stream. A
    working thread that captures steps back, waits until the others have finished what they do, and goes on after its
    capture.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._own = threading.local()
        self._working = self._waiting = 0
        self._capturing = False

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within this context no other thread captures; contexts of one thread may be nested."""
        depth = getattr(self._own, "depth", 0)
        if not depth:
            with self._changed:
                self._changed.wait_for(lambda: not self._capturing and not self._waiting)
                self._working += 1
        self._own.depth = depth + 1
        try:
            yield
        finally:
            self._own.depth = depth
            if not depth:
                with self._changed:
                    self._working -= 1
                    self._changed.notify_all()

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Within this context no other thread works or captures."""
        works = int(getattr(self._own, "depth", 0) > 0)
        with self._changed:
            self._working -= works
            self._waiting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._capturing and not self._working)
            self._waiting -= 1
            self._capturing = True
        try:
            yield
        finally:
            with self._changed:
                self._capturing = False
                self._working += works
                self._changed.notify_all()


TURNS = CaptureTurns()
"""Of the whole process: a capture concerns all that runs on the device."""
