"""The states of a session's recurrent layers, which roll back token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from saccade.common.transfer import to_device


class RecurrentStates:
    """What the recurrent layers of a model remember of each row, as long as it may still be needed.

    A short convolution remembers its last inputs, and a matrix state (delta rule, state space) is remembered as it was
    behind the last tokens. A forward adds one item for each of its tokens, and :meth:`commit` keeps those of the
    accepted tokens, of which every row may have another number. So a rejected draft leaves nothing behind, and rows
    need no padding that the layers would read.

    Args:
        rollback: Number of committed tokens that :meth:`rewind` can take back.
    """

    def __init__(self, rollback: int = 0) -> None:
        self.rollback = rollback
        self.running = False
        """Whether a session's forward runs; the layers are used without it where ranks keep each other company."""
        self.reading = False
        """Whether this forward reads a piece of the prompts, which end where it ends or lie before it."""
        self._tokens = 0
        self._trails: dict[tuple[str, int, int], _Trail] = {}
        self._reach: list[int] = []  # tokens that each row can take back

    @contextmanager
    def step(self, tokens: int, reading: bool) -> Iterator[None]:
        """Context of one forward of ``tokens`` tokens in each row; what an earlier one left uncommitted is dropped."""
        for trail in self._trails.values():
            trail.new = None
        self._tokens, self.reading, self.running = tokens, reading, True
        try:
            yield
        finally:
            self.running = False

    def convolve(self, layer: int, index: int, inputs: Tensor, kernel: int) -> Tensor:
        """Adds inputs of a short convolution.

        Args:
            layer: The layer's index.
            index: Which of the layer's convolutions.
            inputs: ``[batch, channels, tokens]``.
            kernel: Width of the convolution.

        Returns:
            ``[batch, channels, kernel - 1 + tokens]``: the inputs before them, zeros before the text, and they.
        """
        trail = self._trail("inputs", layer, index, kernel - 1 + self.rollback, 2)
        return trail.extended(inputs)[:, :, self.rollback :]

    def state(self, layer: int, index: int = 0) -> Tensor | None:
        """The state of a layer behind the committed tokens, not to be written to; ``None`` before the first token."""
        trail = self._trails.get(("states", layer, index))
        return None if trail is None or trail.items is None else trail.items[:, -1]

    def write(self, layer: int, index: int, states: Tensor) -> Tensor:
        """Adds states of a layer.

        Args:
            layer: The layer's index.
            index: Which of the layer's states.
            states: Of a piece of the prompts ``[batch, ...]``, behind its last token; else ``[batch, tokens, ...]``,
                behind every token.

        Returns:
            The same.

        Raises:
            ValueError: Not one state for each token.
        """
        items = states[:, None] if self.reading else states
        if not self.reading and items.shape[1] != self._tokens:
            raise ValueError(
                f"layer {layer} returned a state of shape {tuple(states.shape)} where one for each of {self._tokens} "
                "tokens was wanted: decode this model with model.generate."
            )
        trail = self._trail("states", layer, index, 1 + self.rollback, 1)
        trail.extended(items, join=False)
        return states

    def commit(self, counts: Sequence[int]) -> None:
        """Keeps what the first ``counts[b]`` tokens of the last forward have added to row ``b``."""
        each = _PerRow(counts)
        whole = _PerRow([min(count, 1) for count in counts])
        for (kind, *_), trail in self._trails.items():
            one = self.reading and kind == "states"  # one state stands for the piece
            trail.commit(whole if one else each, 1 if one else self._tokens)
        if self.reading:
            self._reach = [0] * len(counts)  # the states inside a prompt are not known
        else:
            self._reach = [min(self.rollback, old + new) for old, new in zip(self._reach, counts, strict=True)]

    def rewind(self, dropped: Sequence[int]) -> None:
        """Takes back the last ``dropped[b]`` committed tokens of every row.

        Raises:
            ValueError: More than can be taken back; nothing is changed.
        """
        for row, (count, reach) in enumerate(zip(dropped, self._reach, strict=True)):
            if count > reach:
                raise ValueError(
                    f"row {row} cannot be rolled back by {count} tokens, because the states of recurrent layers are "
                    f"kept for {reach} of them: open the session with a larger rollback, or prefill again."
                )
        if any(dropped):
            rows = _PerRow([-count for count in dropped])
            for trail in self._trails.values():
                trail.rewind(rows)
            self._reach = [reach - count for reach, count in zip(self._reach, dropped, strict=True)]

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps the given rows and drops the others."""
        self._reach = [self._reach[row] for row in rows]
        for trail in self._trails.values():
            trail.keep(rows)

    def clear(self) -> None:
        """Forgets everything."""
        self._trails.clear()
        self._reach = []

    @property
    def bytes(self) -> int:
        """Size of what is remembered, in bytes."""
        return sum(trail.items.nbytes for trail in self._trails.values() if trail.items is not None)

    def _trail(self, kind: str, layer: int, index: int, size: int, axis: int) -> _Trail:
        return self._trails.setdefault((kind, layer, index), _Trail(size, axis))


class _Trail:
    """The last ``size`` items of every row, oldest first, and those that a forward has added."""

    def __init__(self, size: int, axis: int) -> None:
        self.size, self.axis = size, axis
        self.items: Tensor | None = None
        self.new: Tensor | None = None

    def extended(self, new: Tensor, join: bool = True) -> Tensor:
        """Adds the items of a forward and returns them, behind the earlier ones if they are to be joined."""
        self.new = new
        return self._line(new) if join else new

    def commit(self, counts: _PerRow, added: int) -> None:
        """Keeps the first of the ``added`` items, of every row its own number."""
        new, self.new = self.new, None
        if new is None and self.items is not None:
            # a layer that a draft skips: what stands here is taken back before it is read
            new = self.items.narrow(self.axis, self.size - 1, 1)
            new = new.expand(*[added if axis == self.axis else -1 for axis in range(new.ndim)])
        if new is None or not any(counts.numbers):
            return
        if min(counts.numbers) >= self.size:
            self.items = self._before(new, counts, 0)
        else:
            self.items = self._before(self._line(new), counts, self.size)

    def rewind(self, dropped: _PerRow) -> None:
        """Drops the last items; the numbers are 0 or less."""
        if self.items is not None:
            most = -min(dropped.numbers)
            line = torch.cat([self._zeros(self.items, most), self.items], self.axis)
            self.items = self._before(line, dropped, self.size + most)

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps the given rows."""
        if self.items is not None:
            self.items = self.items[list(rows)]

    def _line(self, new: Tensor) -> Tensor:
        """The items and new ones behind them."""
        old = self._zeros(new, self.size) if self.items is None else self.items
        return torch.cat([old, new], self.axis)

    def _zeros(self, like: Tensor, count: int) -> Tensor:
        return like.new_zeros([count if axis == self.axis else size for axis, size in enumerate(like.shape)])

    def _before(self, line: Tensor, counts: _PerRow, place: int) -> Tensor:
        """The ``size`` items of every row before ``place`` and its number, in memory of their own."""
        first = counts.numbers[0]
        if any(number != first for number in counts.numbers):
            places = counts.on(line.device)[:, None] + torch.arange(place - self.size, place, device=line.device)
            rows = torch.arange(len(line), device=line.device)[:, None]
            return line.movedim(self.axis, 1)[rows, places].movedim(1, self.axis)
        if line.shape[self.axis] == self.size:
            return line
        return line.narrow(self.axis, place + first - self.size, self.size).clone()


class _PerRow:
    """A number for each row, which goes to a device once."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = list(numbers)
        self._there: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """``[batch]`` on a device."""
        if device not in self._there:
            self._there[device] = to_device(self.numbers, device)
        return self._there[device]
