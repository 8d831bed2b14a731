"""A session's buffers behind transformers' cache interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

if TYPE_CHECKING:
    from saccade.inference.engine.cache import KVCache


class _SessionLayer(CacheLayerMixin):
    """One layer of a session's cache in the shape transformers expects; the storage is the session's."""

    is_sliding = False

    def __init__(self, storage: KVCache, index: int) -> None:
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


def session_cache(storage: KVCache, layers: int) -> Cache:
    """A transformers ``Cache`` over ``layers`` layers whose storage is the session's preallocated buffers."""
    return Cache(layers=[_SessionLayer(storage, index) for index in range(layers)])
