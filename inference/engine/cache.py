"""The preallocated key-value cache: written in place, rolled back by moving a length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from saccade.common.transfer import to_device
from saccade.inference.engine.captured import Captured


class KVCache:
    """Key and value buffers of one model for one batch; no slot is ever moved while a text only grows.

    The buffers of a layer are allocated at its first write, in that write's precision and on its device, so that
    models spread over devices work. Slots at and after a row's length hold rubbish that no mask shows.

    Args:
        layers: Number of decoder layers.
        capacity: Slots of each row, in tokens.
        captured: The buffers stay where they are and belong to CUDA graphs: moves within them may be graphs too.
    """

    def __init__(self, layers: int, capacity: int, captured: bool = False) -> None:
        self.capacity = capacity
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self.starts: list[int] = [0]
        self._uniform = True
        self.extent = 0
        self._slots: tuple[Tensor, Tensor] | None = None
        self._starts_on_device: Tensor | None = None
        self._captured = Captured(self._move) if captured else None
        self._moved: set[torch.Size] = set()

    @contextmanager
    def on_device(self, starts: Tensor) -> Iterator[None]:
        """Within this context rows are written at ``starts`` ``[batch]``, a tensor, and whole buffers are returned.

        Nothing that the host knows is read, so that a captured step stays right while texts grow.
        """
        self._starts_on_device = starts
        try:
            yield
        finally:
            self._starts_on_device = None

    @property
    def start(self) -> int:
        """First slot that the step in progress writes, of the longest row."""
        return max(self.starts)

    def place(self, starts: Sequence[int], tokens: int) -> None:
        """Says where the next step writes: row ``b`` at slots ``starts[b] .. starts[b] + tokens - 1``.

        Raises:
            ValueError: The step does not fit in the buffers.
        """
        self.starts = list(starts)
        self._uniform = len(set(starts)) == 1
        self.extent = max(starts) + tokens
        self._slots = None
        if self.extent > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens, this step needs {self.extent}: raise capacity.")

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes ``[batch, kv_heads, tokens, head_dim]`` and returns views of all slots in use."""
        if self.keys[layer] is None:
            batch, heads, _, _ = keys.shape
            self.keys[layer] = keys.new_zeros(batch, heads, self.capacity, keys.shape[-1])
            self.values[layer] = values.new_zeros(batch, heads, self.capacity, values.shape[-1])
        key_buffer, value_buffer = self.buffers(layer)
        if self._starts_on_device is not None:
            steps = torch.arange(keys.shape[2], device=keys.device)
            rows, slots = torch.arange(len(keys), device=keys.device)[:, None], self._starts_on_device[:, None] + steps
            key_buffer[rows, :, slots] = keys.transpose(1, 2)
            value_buffer[rows, :, slots] = values.transpose(1, 2)
            return key_buffer, value_buffer
        key_buffer, value_buffer = key_buffer[: len(keys)], value_buffer[: len(keys)]
        first, tokens = self.starts[0], keys.shape[2]
        if self._uniform:
            key_buffer[:, :, first : first + tokens] = keys
            value_buffer[:, :, first : first + tokens] = values
        else:
            if self._slots is None:
                starts = torch.tensor(self.starts, device=keys.device)
                rows = torch.arange(len(self.starts), device=keys.device)
                self._slots = rows[:, None], starts[:, None] + torch.arange(tokens, device=keys.device)
            rows, slots = (index.to(keys.device) for index in self._slots)
            key_buffer[rows, :, slots] = keys.transpose(1, 2)
            value_buffer[rows, :, slots] = values.transpose(1, 2)
        return key_buffer[:, :, : self.extent], value_buffer[:, :, : self.extent]

    def gather(self, starts: Sequence[int], paths: Sequence[Sequence[int]]) -> None:
        """Keeps the accepted path of every row's tree: slot ``starts[b] + paths[b][i]`` moves to ``starts[b] + i``.

        All rows move at once, and where steps are graphs, all layers in one launch: moved one by one they would cost as
        much as a forward of a small draft.

        Args:
            starts: First slot of every row's tree.
            paths: Nodes of every row, ascending; none for a row that keeps nothing.
        """
        width = max(len(path) for path in paths)
        # what lies behind a shorter path is moved onto itself
        moves = [[start, *path, *range(len(path), width)] for start, path in zip(starts, paths, strict=True)]
        known = to_device(moves, self.buffers(0)[0].device)
        if self._captured is None:
            self._move(known)
            return
        if known.shape not in self._moved:
            # a capture runs the moves more than once, which must change nothing
            self._moved.add(known.shape)
            self._captured(
                torch.cat([known[:, :1], torch.arange(width, device=known.device).expand(len(moves), -1)], 1)
            )
        self._captured(known)

    def _move(self, known: Tensor) -> None:
        """Moves slots of all buffers; ``known`` ``[rows, 1 + width]`` holds starts and nodes."""
        for layer in range(len(self.keys)):
            for buffer in self.buffers(layer):
                known = known.to(buffer.device)
                starts, nodes = known[:, :1], known[:, 1:]
                rows = torch.arange(len(known), device=buffer.device)[:, None]
                target = starts + torch.arange(nodes.shape[1], device=buffer.device)
                buffer[rows, :, target] = buffer[rows, :, starts + nodes]

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows but the given ones."""
        for buffers in (self.keys, self.values):
            for layer, buffer in enumerate(buffers):
                if buffer is not None:
                    buffers[layer] = buffer[list(rows)]

    def compact(self, rows: Sequence[int]) -> None:
        """Moves the given rows, in ascending order, to the front; buffers stay where they are."""
        for buffer in (*self.keys, *self.values):
            if buffer is not None:
                for place, row in enumerate(rows):
                    if place != row:
                        buffer[place] = buffer[row]

    def clear(self) -> None:
        """Gives the buffers back."""
        self.keys, self.values = [None] * len(self.keys), [None] * len(self.values)

    @property
    def bytes(self) -> int:
        """Size of the buffers in bytes."""
        return sum(buffer.nbytes for buffer in (*self.keys, *self.values) if buffer is not None)

    def buffers(self, layer: int) -> tuple[Tensor, Tensor]:
        """Key and value buffer of a layer, ``[batch, kv_heads, capacity, head_dim]`` each.

        Raises:
            ValueError: The layer has not been written yet.
        """
        keys, values = self.keys[layer], self.values[layer]
        if keys is None or values is None:
            raise ValueError(f"layer {layer} of the cache has not been written yet: prefill first.")
        return keys, values
