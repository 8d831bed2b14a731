"""The preallocated key-value cache, which is written in place and rolled back by reducing lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from saccade.common.transfer import to_device
from saccade.inference.engine.attention import decode_attention
from saccade.inference.engine.captured import Captured


class StepPlaces:
    """Where the current step of a cache writes.

    Args:
        capacity: Tokens of each row.
        starts: Tokens of every row before the step.
    """

    def __init__(self, capacity: int, starts: Sequence[int]) -> None:
        self.capacity, self.extent = capacity, max(starts)
        self.starts: list[int] = list(starts)
        self._starts_on_device: Tensor | None = None

    @property
    def host_bytes(self) -> int:
        """Size in bytes of what is kept in host memory."""
        return 0

    @contextmanager
    def on_device(self, starts: Tensor) -> Iterator[None]:
        """Context in which rows are written at ``starts`` ``[batch]``, a tensor.

        Nothing is read from the host, so that a captured step stays valid while texts grow.
        """
        self._starts_on_device = starts
        try:
            yield
        finally:
            self._starts_on_device = None

    @property
    def start(self) -> int:
        """Tokens of the longest row before the current step."""
        return max(self.starts)

    def place(self, starts: Sequence[int], tokens: int) -> None:
        """Sets where the next step writes: row ``b`` behind ``starts[b]`` tokens, those included that were deleted.

        Raises:
            ValueError: The step does not fit.
        """
        self.starts = list(starts)
        self.extent = max(starts) + tokens
        if self.extent > self.capacity:
            raise ValueError(
                f"capacity must be at least {self.extent} tokens for this step, got {self.capacity}: raise it."
            )


class KVCache(StepPlaces):
    """Key and value buffers of one model for one batch; appending tokens moves no slots.

    The buffers of a layer are allocated at its first write, with the precision and on the device of what is written, so
    that models spread over several devices work. Slots at and after a row's length are unused and always masked.

    Args:
        layers: Number of decoder layers.
        capacity: Slots of each row, in tokens.
        captured: Whether the buffers are used by CUDA graphs; then :meth:`gather` runs as a graph too.
    """

    def __init__(self, layers: int, capacity: int, captured: bool = False) -> None:
        super().__init__(capacity, [0])
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self._uniform = True
        self._slots: tuple[Tensor, Tensor] | None = None
        self._captured = Captured(self._move) if captured else None
        self._moved: set[torch.Size] = set()

    def place(self, starts: Sequence[int], tokens: int) -> None:
        """Sets where the next step writes: row ``b`` at slots ``starts[b] .. starts[b] + tokens - 1``.

        Raises:
            ValueError: The step does not fit in the buffers.
        """
        self._uniform, self._slots = len(set(starts)) == 1, None
        super().place(starts, tokens)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes keys and values ``[batch, kv_heads, tokens, head_dim]`` and returns views of all slots in use."""
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

    def targets(self, layer: int, batch: int) -> tuple[Tensor, Tensor, None]:
        """The buffers that a fused step writes keys and values to, and ``None`` for the units of a flat buffer."""
        keys, values = self.buffers(layer)
        return keys[:batch], values[:batch], None

    def attend(
        self,
        layer: int,
        query: Tensor,
        lengths: Tensor,
        ancestors: Tensor,
        depths: Tensor,
        scaling: float | None,
        window: int | None,
    ) -> Tensor:
        """Attention of a step's nodes over this cache (:func:`saccade.inference.engine.attention.decode_attention`)."""
        keys, values, _ = self.targets(layer, len(query))
        return decode_attention(query, keys, values, lengths, ancestors, scaling=scaling, window=window, depths=depths)

    def gather(self, starts: Sequence[int], paths: Sequence[Sequence[int]]) -> None:
        """Moves the accepted path of every row to the front: slot ``starts[b] + paths[b][i]`` to ``starts[b] + i``.

        All rows are moved at once, and with CUDA graphs all layers in one launch: separate moves would take as long as
        a forward of a small draft model.

        Args:
            starts: First slot of the tree of every row.
            paths: Accepted nodes of every row, ascending; empty for a row that keeps none.
        """
        width = max(len(path) for path in paths)
        # shorter paths are padded with slots that move onto themselves
        padded = [[start, *path, *range(len(path), width)] for start, path in zip(starts, paths, strict=True)]
        moves = to_device(padded, self._written()[0].device)
        if self._captured is None:
            self._move(moves)
            return
        if moves.shape not in self._moved:
            # capturing runs the function several times, so the first call of a shape moves every slot onto itself
            self._moved.add(moves.shape)
            self._captured(
                torch.cat([moves[:, :1], torch.arange(width, device=moves.device).expand(len(moves), -1)], 1)
            )
        self._captured(moves)

    def _move(self, moves: Tensor) -> None:
        """Moves slots of all buffers; ``moves`` ``[rows, 1 + width]`` holds the start and the nodes of every row."""
        for buffer in self._written():
            moves = moves.to(buffer.device)
            starts, nodes = moves[:, :1], moves[:, 1:]
            rows = torch.arange(len(moves), device=buffer.device)[:, None]
            target = starts + torch.arange(nodes.shape[1], device=buffer.device)
            buffer[rows, :, target] = buffer[rows, :, starts + nodes]

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps the given rows and drops the others, by copying the buffers."""
        for buffers in (self.keys, self.values):
            for layer, buffer in enumerate(buffers):
                if buffer is not None:
                    buffers[layer] = buffer[list(rows)]

    def compact(self, rows: Sequence[int]) -> None:
        """Moves the given rows, which must be ascending, to the front of the same buffers."""
        for buffer in self._written():
            for place, row in enumerate(rows):
                if place != row:
                    buffer[place] = buffer[row]

    def clear(self) -> None:
        """Frees the buffers."""
        self.keys, self.values = [None] * len(self.keys), [None] * len(self.values)

    @property
    def bytes(self) -> int:
        """Size of the buffers in bytes."""
        return sum(buffer.nbytes for buffer in self._written())

    def _written(self) -> list[Tensor]:
        """All buffers. Layers that share the keys and values of another layer (Gemma 3n) have none."""
        return [buffer for buffer in (*self.keys, *self.values) if buffer is not None]

    def buffers(self, layer: int) -> tuple[Tensor, Tensor]:
        """The key and the value buffer of a layer, ``[batch, kv_heads, capacity, head_dim]`` each.

        Raises:
            ValueError: The layer has not been written yet.
        """
        keys, values = self.keys[layer], self.values[layer]
        if keys is None or values is None:
            raise ValueError(f"layer {layer} of the cache has not been written yet: prefill first.")
        return keys, values


def shared_prefix(prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    """How many leading tokens of every prompt are those of its row's text; the last token of a prompt never counts.

    Args:
        prompts: One for each row.
        texts: What a cache holds of every row.
        lengths: How many tokens of these count.
    """
    shared = []
    for prompt, text, length in zip(prompts, texts, lengths, strict=True):
        most = min(len(prompt) - 1, len(text), length)
        differing = (place for place in range(most) if prompt[place] != text[place])
        shared.append(next(differing, most))
    return min(shared)
