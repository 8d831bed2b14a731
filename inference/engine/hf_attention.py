"""A session's attention behind transformers' attention interface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from saccade.inference.engine.attention import decode_attention
from saccade.inference.engine.recording import active_recorder

if TYPE_CHECKING:
    pass


ATTENTION_NAME = "saccade"


_DEVICE_STEP: ContextVar[tuple[Tensor, Tensor] | None] = ContextVar("saccade_device_step", default=None)


@contextmanager
def device_step(lengths: Tensor, ancestors: Tensor) -> Iterator[None]:
    """Within this context a model's attention takes lengths and tree from the device (`decode_attention`).

    Args:
        lengths: ``[batch]`` slots in use before the step.
        ancestors: ``[nodes]`` bits of the tree.
    """
    token = _DEVICE_STEP.set((lengths, ancestors))
    try:
        yield
    finally:
        _DEVICE_STEP.reset(token)


def session_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention over "prefix + token tree" as transformers' attention interface expects it.

    Grouped queries are folded into the query axis, so that key and value heads are never expanded.

    Args:
        module: The attention module that calls.
        query: ``[batch, heads, tokens, head_dim]``.
        key: ``[batch, kv_heads, slots, head_dim]``, the used part of the preallocated cache.
        value: Like ``key``.
        attention_mask: ``[batch or 1, 1, tokens, slots]``, true where a token may look, from the session.
            ``None``: causal when several tokens fill an empty cache, everything visible to a single token.
        dropout: Ignored; a session never trains.
        scaling: Factor on the scores; ``None`` is ``head_dim ** -0.5``.

    Returns:
        ``[batch, tokens, heads, head_dim]`` and ``None`` for the attention weights.
    """
    batch, heads, tokens, head_dim = query.shape
    kv_heads, slots = key.shape[1], key.shape[2]
    groups = heads // kv_heads
    if (watcher := active_recorder()) is not None:
        watcher.add(query, key, scaling)
    if (step := _DEVICE_STEP.get()) is not None:
        return decode_attention(query, key, value, *step, scaling=scaling), None
    if attention_mask is None and tokens > 1:
        # a later piece of a prompt: its last token sees all slots
        shape: Any = {"is_causal": True} if slots == tokens else {"attn_mask": causal_lower_right(tokens, slots)}
        out = scaled_dot_product_attention(query, key, value, **shape, scale=scaling, enable_gqa=groups > 1)
        return out.transpose(1, 2).contiguous(), None
    if groups > 1:
        query = query.reshape(batch, kv_heads, groups * tokens, head_dim)
        if attention_mask is not None:
            rows, slots = attention_mask.shape[0], attention_mask.shape[-1]
            attention_mask = attention_mask.expand(rows, groups, tokens, slots).reshape(rows, 1, groups * tokens, slots)
    out = scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(batch, heads, tokens, value.shape[-1]).transpose(1, 2).contiguous(), None


class SessionAttention:
    """Hands a model's attention to a session, and puts the model in evaluation mode, for single forwards.

    Between the forwards the model is the user's own: a stream may be left unfinished, two may take turns, and a target
    may share its configuration, or all of itself, with its draft.

    Args:
        model: A supported Hugging Face model.
    """

    def __init__(self, model: nn.Module) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(ATTENTION_NAME, session_attention)
        self._parts: list[Any] = list(model.modules())
        configs = {id(part.config): part.config for part in self._parts if hasattr(part, "config")}
        self._configs = [item for item in configs.values() if hasattr(item, "_attn_implementation_internal")]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within this context the model is the session's; restored on the way out, also after an exception."""
        before = [config._attn_implementation_internal for config in self._configs]
        training = [part for part in self._parts if part.training]
        try:
            for config in self._configs:
                config._attn_implementation_internal = ATTENTION_NAME
            for part in training:
                part.training = False
            yield
        finally:
            for config, implementation in zip(self._configs, before, strict=True):
                config._attn_implementation_internal = implementation
            for part in training:
                part.training = True
