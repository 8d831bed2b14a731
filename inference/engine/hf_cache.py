"""A session's buffers behind transformers' cache interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

if TYPE_CHECKING:
    from saccade.inference.engine.cache import KVCache
    from saccade.inference.engine.compressed.cache import RaggedCache
    from saccade.inference.recurrent.states import RecurrentStates


class _SessionLayer(CacheLayerMixin):
    """One layer of a session's cache in the shape transformers expects; the storage is the session's."""

    is_sliding = False

    def __init__(self, storage: KVCache | RaggedCache, index: int) -> None:
        super().__init__()
        self.storage, self.index = storage, index

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the storage allocates itself at its first write."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes new states ``[batch, kv_heads, tokens, head_dim]`` at the session's slots."""
        return self.storage.write(self.index, key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys visible in this step, and the offset of the first."""
        return self.storage.extent, 0

    def get_seq_length(self) -> int:
        """Slots in use before this step."""
        return self.storage.start

    def get_max_length(self) -> int:
        """Capacity in tokens."""
        return self.storage.capacity


class _SessionCache(Cache):
    """The layers of a session's cache, and the states of recurrent layers.

    To a recurrent layer every step looks like the beginning of a text: it reads no state from here, but hands over what
    it adds, and gets the inputs of its convolution with those before them. Its state reaches it by another way
    (:mod:`saccade.inference.recurrent.mixers`).
    """

    def __init__(self, layers: list[Any], states: RecurrentStates | None) -> None:
        super().__init__(layers=layers)
        self._given = states

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Nothing to begin with."""
        return False

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """Nothing to begin with."""

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """Nothing to begin with."""

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int = 1, **kwargs: Any
    ) -> Tensor:
        """Adds inputs ``[batch, channels, tokens]``; returned with the ``conv_kernel_size - 1`` inputs before them."""
        return self._states.convolve(layer_idx, state_idx, conv_states, conv_kernel_size)

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> Tensor:
        """Adds the states behind each token ``[batch, tokens, ...]``, or the one behind a piece of the prompts."""
        return self._states.write(layer_idx, state_idx, recurrent_states)

    @property
    def _states(self) -> RecurrentStates:
        if self._given is None:
            raise NotImplementedError("the model stores states, but its configuration names no recurrent layers")
        return self._given


def session_cache(storage: KVCache | RaggedCache, layers: int, states: RecurrentStates | None = None) -> Cache:
    """A transformers ``Cache`` over ``layers`` layers whose storage is the session's preallocated buffers.

    Args:
        storage: Keys and values.
        layers: Number of layers.
        states: Of the recurrent layers, if there are some.
    """
    return _SessionCache([_SessionLayer(storage, index) for index in range(layers)], states)
