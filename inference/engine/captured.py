"""Short chains of small operations on tensors as one replayed CUDA graph (ours)."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

_MOST_GRAPHS = 64  # batches shrink and drafts vary in length: beyond so many shapes a function runs as it is
_WARM_UPS = 2


class Captured:
    """A function of tensors that costs one launch, however many operations it is made of.

    A dozen operations on a few thousand numbers keep the host busy for longer than a small model's forward takes. On a
    CUDA device each combination of shapes is captured at its first call; elsewhere the function is called.

    Args:
        function: Of tensors on one device, without random numbers and without waiting for the device; returns a tensor,
            a tuple of them or nothing.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Any]] = {}

    def __call__(self, *inputs: Tensor) -> Any:
        """The function's result; a captured one is overwritten by the next call with the same shapes."""
        if inputs[0].device.type != "cuda":
            return self.function(*inputs)
        key = tuple((tuple(item.shape), item.dtype) for item in inputs)
        if key not in self._graphs:
            if len(self._graphs) >= _MOST_GRAPHS:
                return self.function(*inputs)
            self._graphs[key] = self._capture(inputs)
        graph, held, made = self._graphs[key]
        for own, given in zip(held, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        graph.replay()
        return made

    def _capture(self, inputs: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Any]:
        held = tuple(item.clone(memory_format=torch.contiguous_format) for item in inputs)
        side = torch.cuda.Stream(held[0].device)
        side.wait_stream(torch.cuda.current_stream(held[0].device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                self.function(*held)
        torch.cuda.current_stream(held[0].device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made = self.function(*held)
        return graph, held, made
