"""Copies into host memory that do not hold up what is computed meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saccade.inference.engine.compressed.host_memory import host_buffer


class HostCopies:
    """Copies tensors of a device into host memory, on a stream of its own (ours).

    A layer's chunks travel while the next layer's are gathered. The stream of the computation waits for all of them
    once, in :meth:`finish`; what runs on it later may read the copies, also by their device address. Without CUDA
    everything is copied at once.

    Args:
        device: Where the tensors are.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Host memory for copies, pinned for a CUDA device."""
        return host_buffer(*shape, dtype=dtype, pinned=self._stream is not None)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copies a tensor when the work that is queued now has written it.

        Args:
            source: On the device. It may be dropped at once: its memory is not given away before it is copied.
            target: Of the same shape, in a tensor of :meth:`empty`; not to be read before :meth:`finish`.
        """
        if self._stream is None:
            target.copy_(source)
            return
        # also behind earlier steps that read the same host memory by its device address, when it was another cache's
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        source.record_stream(self._stream)

    def finish(self) -> None:
        """Lets the work that is queued from now on wait for all copies; the host does not wait."""
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
