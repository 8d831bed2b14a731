"""Captures of CUDA graphs, and short sequences of small tensor operations that are replayed as one (ours)."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from saccade.inference.engine.capture_turns import TURNS

_MOST_GRAPHS = 64  # shapes vary with batch and draft length: beyond this number of graphs, functions run uncaptured
_WARM_UPS = 2  # runs before a capture, in which kernels are compiled and libraries are initialized


def capture(run: Callable[[], Any], device: torch.device, pool: Any = None) -> tuple[torch.cuda.CUDAGraph, Any]:
    """Captures what a function does on a CUDA device.

    The graph owns all memory that its kernels use. Torch keeps a workspace of cuBLAS for each stream, which captures on
    that stream share, and frees them all whenever ``torch.compile`` captures something: a graph that uses the workspace
    of an earlier one would then write to memory that is no longer there. So each capture gets a workspace of its own,
    in the pool of the graph.

    Args:
        run: The function; it uses no random numbers and does not wait for the device. It is run twice before.
        device: The device.
        pool: Memory pool that graphs share which never run at the same time; ``None`` makes one for this graph.

    Returns:
        The graph, and what the function returned in the capture: a replay writes these tensors again.

    Raises:
        RuntimeError: The function cannot be captured.
    """
    side, here = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    side.wait_stream(here)
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            run()
    here.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with TURNS.capturing():
        torch._C._cuda_clearCublasWorkspaces()
        try:
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                outputs = run()
        finally:
            torch._C._cuda_clearCublasWorkspaces()
    return graph, outputs


class Captured:
    """A function of tensors that runs with one launch on a CUDA device.

    Launching a dozen small operations can take the host longer than a forward of a small model takes. On a CUDA device
    each combination of shapes is captured at its first call; on other devices the function is called.

    Args:
        function: A function of tensors on one device that uses no random numbers and does not wait for the device.
            Returns a tensor, a tuple of tensors or nothing.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Any]] = {}

    def __call__(self, *inputs: Tensor) -> Any:
        """Runs the function; on a CUDA device the next call with the same shapes overwrites the result."""
        if inputs[0].device.type != "cuda":
            return self.function(*inputs)
        key = tuple((tuple(item.shape), item.dtype) for item in inputs)
        if key not in self._graphs:
            if len(self._graphs) >= _MOST_GRAPHS:
                return self.function(*inputs)
            self._graphs[key] = self._capture(inputs)
        graph, buffers, outputs = self._graphs[key]
        for buffer, given in zip(buffers, inputs, strict=True):
            buffer.copy_(given, non_blocking=True)
        graph.replay()
        return outputs

    def _capture(self, inputs: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Any]:
        buffers = tuple(item.clone(memory_format=torch.contiguous_format) for item in inputs)
        graph, outputs = capture(lambda: self.function(*buffers), buffers[0].device)
        return graph, buffers, outputs
