"""A session's attention behind transformers' attention interface."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from saccade.inference.engine.attention import decode_attention, prompt_attention
from saccade.inference.engine.compressed.cache import active_ragged
from saccade.inference.engine.masks import DeviceMasks, active_masks, session_mask
from saccade.inference.engine.recording import active_recorders
from saccade.inference.huggingface.model_lock import ModelLock, evaluation_mode

ATTENTION_NAME = "saccade"

# Arguments of transformers' attention functions that say nothing about which scores are computed: positions are turned
# into queries and keys already, and the others choose outputs, kernels or the loss.
_WITHOUT_EFFECT = frozenset(
    {
        "cache_position",
        "deterministic",
        "logits_to_keep",
        "num_items_in_batch",
        "output_hidden_states",
        "output_router_logits",
        "past_key_values",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "target_dtype",
        "use_cache",
    }
)
_FOLLOWED = frozenset({"s_aux", "softcap"})

# The attention that the model itself uses, as transformers names it, while a session's is in its place.
_REPLACED: ContextVar[str | None] = ContextVar("saccade_replaced_attention", default=None)


def session_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
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
        dropout: Must be 0; a session never trains.
        scaling: Factor on the scores; ``None`` is ``head_dim ** -0.5``.
        others: What a model hands over beside these. A cap on the scores (``softcap``) and attention sinks (``s_aux``)
            are followed; a sliding window is in the mask already, where the session has made it.

    Returns:
        ``[batch, tokens, heads, head_dim]`` and ``None`` for the attention weights.

    Raises:
        ValueError: An argument that changes the result and is not known here; the message names it.
    """
    masks = active_masks()
    _refuse_other_arguments(module, attention_mask, dropout, others, windows=masks is not None and masks.served > 0)
    batch, heads, tokens, head_dim = query.shape
    kv_heads, slots = key.shape[1], key.shape[2]
    groups = heads // kv_heads
    # transformers' "sdpa" leaves both out in the versions that let such a model use it, and a session follows the model
    left_out = _REPLACED.get() == "sdpa"
    cap, sinks = (None, None) if left_out else (others.get("softcap"), others.get("s_aux"))
    if watchers := active_recorders():
        if attention_mask is not None or cap is not None or sinks is not None:
            raise ValueError(
                f"{type(module).__name__} has a window, a cap or sinks, with which attention is not "
                "recorded: choose a decoder, a selector or a compressor that does not need it."
            )
        for watcher in watchers:
            watcher.add(query, key, scaling)
    if isinstance(masks, DeviceMasks) and (ragged := active_ragged()) is not None:
        layer: Any = module.layer_idx
        return ragged.attend(layer, query, masks.lengths, masks.ancestors, masks.depths, scaling), None
    if isinstance(masks, DeviceMasks):
        window = masks.window(attention_mask)
        out = decode_attention(
            query, key, value, masks.lengths, masks.ancestors, scaling=scaling, window=window, depths=masks.depths,
            cap=cap, sinks=sinks,
        )  # fmt: skip
        return out, None
    if cap is not None or sinks is not None:
        out = prompt_attention(query, key, value, attention_mask, scaling, cap, sinks)
        return out.transpose(1, 2).contiguous(), None
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


def _refuse_other_arguments(
    module: nn.Module, attention_mask: Tensor | None, dropout: float, others: Mapping[str, Any], windows: bool
) -> None:
    """Refuses whatever would change the scores: ``None``, false and 0 are taken as "off".

    It runs in every layer of every forward, so it only looks, and puts nothing together where nothing is wrong.
    """
    if others.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise ValueError(
            f"{type(module).__name__} is bidirectional (is_causal=False), which no cached decoder can follow: decode "
            "this model with model.generate."
        )
    if attention_mask is not None and attention_mask.ndim == 4 and attention_mask.shape[1] != 1:
        raise ValueError(
            f"{type(module).__name__} has an attention_mask for each head, which a session's attention does not know: "
            "decode this model with model.generate."
        )
    if dropout:
        _refuse(module, "dropout", dropout)
    for key, value in others.items():
        if value is None or key in _WITHOUT_EFFECT or key in _FOLLOWED or (windows and key == "sliding_window"):
            continue
        if key != "is_causal" and not _is_off(value):
            _refuse(module, key, value)


def _refuse(module: nn.Module, key: str, value: Any) -> None:
    shown = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"={value!r}"
    raise ValueError(
        f"{type(module).__name__} hands {key}{shown} to its attention, which a session's attention does not know: "
        "decode this model with model.generate."
    )


def _is_off(value: Any) -> bool:
    return value is None or (isinstance(value, (bool, int, float)) and not value)


class SessionAttention:
    """Hands a model's attention to a session, and puts the model in evaluation mode, for single forwards.

    Between the forwards the model is as the user left it: a stream may be left unfinished, two may take turns, and a
    target may share its configuration, or all of itself, with its draft. Threads take turns forward by forward.

    Args:
        model: A supported Hugging Face model.
    """

    def __init__(self, model: nn.Module) -> None:
        from transformers import AttentionInterface, AttentionMaskInterface

        AttentionInterface.register(ATTENTION_NAME, session_attention)
        AttentionMaskInterface.register(ATTENTION_NAME, session_mask)
        self._parts: list[Any] = list(model.modules())
        self._lock = ModelLock(model)
        configs = {id(part.config): part.config for part in self._parts if hasattr(part, "config")}
        self._configs = [item for item in configs.values() if hasattr(item, "_attn_implementation_internal")]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within this context the model uses the session's attention; restored at its end, also after an error."""
        with self._lock.held(), evaluation_mode(self._parts):
            before = [config._attn_implementation_internal for config in self._configs]
            own = [implementation for implementation in before if implementation != ATTENTION_NAME]
            token = _REPLACED.set(own[0] if own else _REPLACED.get())
            try:
                for config in self._configs:
                    config._attn_implementation_internal = ATTENTION_NAME
                yield
            finally:
                _REPLACED.reset(token)
                for config, implementation in zip(self._configs, before, strict=True):
                    config._attn_implementation_internal = implementation
