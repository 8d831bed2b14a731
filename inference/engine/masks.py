"""Which slots the new tokens of a forward attend to, as a model asks for it: all of the prefix, a window, a chunk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from saccade.common.transfer import to_device
from saccade.inference.trees import TokenTree

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""A mask function of transformers: row, head, place of the query and place of the key, as broadcast indices."""

_ACTIVE: ContextVar[StepMasks | None] = ContextVar("saccade_masks", default=None)


class StepMasks(ABC):
    """The masks of one forward. A model with windows asks for them through transformers' mask functions.

    Attributes:
        served: Number of masks that the model has asked for.
        reads_prompts: Whether the forward reads a piece of the prompts.
        starts: ``[rows or 1, 1]`` tokens before the forward.
        depths: ``[nodes]`` depths of the new tokens.
    """

    served: int = 0
    reads_prompts: bool = False
    starts: Tensor
    depths: Tensor

    @abstractmethod
    def full(self) -> Tensor | None:
        """The mask of a layer with full attention; ``None`` where the new tokens see each other causally."""

    @abstractmethod
    def local(self, function: MaskFunction, size: int | None) -> Tensor | None:
        """The mask of a layer that sees a part of the prefix.

        Args:
            function: What a token sees, as transformers says it.
            size: Tokens that a token sees at most; ``None`` where the function alone knows it.
        """

    @contextmanager
    def active(self) -> Iterator[None]:
        """Context in which models and the session's attention find these masks."""
        token = _ACTIVE.set(self)
        try:
            yield
        finally:
            _ACTIVE.reset(token)


def active_masks() -> StepMasks | None:
    """The masks of the running forward, if it is a session's."""
    return _ACTIVE.get()


class SlotMasks(StepMasks):
    """Masks of an eager forward, over the slots in use.

    A token's place is its slot, or, in a tree, the slot that it would have if its path were the text: windows are
    measured between places.

    Args:
        starts: Slots in use before the forward, of every row.
        nodes: New tokens of every row.
        device: Where the masks are made.
        tree: Shape of the new tokens; ``None`` is a piece of the prompts, which all begin at the same slot.
    """

    def __init__(self, starts: Sequence[int], nodes: int, device: torch.device, tree: TokenTree | None = None) -> None:
        self._device, self._nodes, self._tree = device, nodes, tree
        self.reads_prompts = tree is None
        self._uniform = len(set(starts)) == 1
        self._extent = max(starts) + nodes
        self.starts = torch.tensor(starts[:1] if self._uniform else list(starts), device=device)[:, None]
        self.depths = torch.arange(nodes, device=device) if tree is None else torch.tensor(tree.depths, device=device)
        self._full: Tensor | None = None

    def full(self) -> Tensor | None:
        """``[rows or 1, 1, nodes, slots]``, true where a token may look."""
        if self._tree is None or (self._uniform and self._nodes == 1):
            return None
        if self._full is None:
            slots = torch.arange(self._extent, device=self._device)
            if self._tree.is_chain:
                seen = slots <= (self.starts + self.depths)[..., None]
            else:
                ancestors = self._tree.attention_mask.to(self._device)
                offset = slots - self.starts  # [rows, slots]: below 0 for the prefix, from 0 for the nodes
                inside = (offset >= 0) & (offset < self._nodes)
                own = ancestors[:, offset.clamp(0, self._nodes - 1)].transpose(0, 1)
                seen = (offset < 0)[:, None] | (inside[:, None] & own)
            self._full = seen[:, None]
        return self._full

    def local(self, function: MaskFunction, size: int | None) -> Tensor | None:
        """``[rows or 1, 1, nodes, slots]``; that of full attention where the text is not longer than ``size``."""
        if size is not None and self._extent <= size:
            return self.full()
        rows = torch.arange(len(self.starts), device=self._device)[:, None, None, None]
        places = torch.arange(self._extent, device=self._device).expand(len(self.starts), -1)
        if self._tree is not None and not self._tree.is_chain:
            offset = places - self.starts
            own = self.starts + self.depths[offset.clamp(0, self._nodes - 1)]
            places = torch.where((offset >= 0) & (offset < self._nodes), own, places)
        queries = (self.starts + self.depths)[:, None, :, None]
        seen = function(rows, torch.zeros_like(rows), queries, places[:, None, None])
        seen = seen.expand(len(self.starts), 1, self._nodes, self._extent)
        full = self.full()
        return seen if full is None else seen & full


class DeviceMasks(StepMasks):
    """Stands for the masks of a step whose lengths and tree are on the device, where attention reads them itself.

    Args:
        lengths: ``[batch]`` slots in use before the step.
        ancestors: ``[nodes]`` bits of the tree.
        depths: ``[nodes]`` of the tree.
    """

    def __init__(self, lengths: Tensor, ancestors: Tensor, depths: Tensor) -> None:
        self.lengths, self.ancestors, self.depths = lengths, ancestors, depths
        self.starts = lengths[:, None]
        # with a mask of four dimensions transformers builds none
        self._full = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=lengths.device)
        self._windows: list[tuple[Tensor, int]] = []

    @classmethod
    def of(cls, lengths: Sequence[int], tree: TokenTree, device: torch.device) -> DeviceMasks:
        """The masks of a step, from what the host knows."""
        return cls(*(to_device(list(item), device) for item in (lengths, tree.ancestor_bits, tree.depths)))

    def full(self) -> Tensor:
        """A mask that says nothing."""
        return self._full

    def local(self, function: MaskFunction, size: int | None) -> Tensor:
        """A mask that says nothing; the window is found by it (:meth:`window`)."""
        if size is None:
            raise RuntimeError("a mask of the model's own is not known on the device")
        self._windows.append((self._full.clone(), size))
        return self._windows[-1][0]

    def window(self, mask: Tensor | None) -> int | None:
        """The window of a layer that was given this mask; ``None`` for full attention.

        Raises:
            RuntimeError: The model has made another mask of it.
        """
        if mask is None or mask is self._full:
            return None
        for given, size in self._windows:
            if mask is given:
                return size
        raise RuntimeError("the model changes its masks")


def session_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: MaskFunction | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    **others: object,
) -> Tensor | None:
    """A session's masks behind transformers' mask interface.

    Args:
        batch_size: Rows; this and the other sizes are known to the session.
        q_length: New tokens of a row.
        kv_length: Slots in use.
        mask_function: What a token sees; ``None`` is everything before it.
        local_size: Window or chunk of the layers that the mask is for.
        allow_is_causal_skip: False where the mask says more than "causal, and local".
        use_vmap: Whether the model has added a function of its own, which may not take tensors of indices.
        others: What transformers hands over beside these.

    Raises:
        ValueError: The model has a mask of its own.
    """
    masks = active_masks()
    if masks is None:  # not a session's forward, such as that of a rank that only takes part
        return None
    if use_vmap:
        raise ValueError(
            "the model adds a mask of its own to the causal one, which a session does not know: decode this model with "
            "model.generate."
        )
    masks.served += 1
    if mask_function is None or (local_size is None and allow_is_causal_skip):
        return masks.full()
    return masks.local(mask_function, local_size)
