"""Attention of a few new tokens, a chain or a tree, on a cache; in plain torch, or with the kernel on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.inference.trees import MAX_NODES

WIDEST = 256
"""Widest heads whose tiles fit in the shared memory that a block of the kernel may use."""
_SCORES_AT_A_TIME = 2**26  # limits memory: float32 scores of a piece of the queries take 256 MB


def runs_kernels(like: Tensor) -> bool:
    """Whether Triton kernels work on a tensor: on CUDA, but not in float64, which is for exact comparisons."""
    return like.device.type == "cuda" and like.dtype != torch.float64


def weighted_values(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    seen: Tensor,
    scaling: float,
    cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention with everything that changes its scores, in plain torch; in float64 for float64, else in float32.

    Args:
        query: ``[batch, heads, tokens, head_dim]``.
        keys: ``[batch, kv_heads, slots, head_dim]``; ``kv_heads`` divides ``heads``.
        values: ``[batch, kv_heads, slots, value_dim]``.
        seen: ``[batch or 1, kv_heads or 1, tokens, slots]``, true where a token may look.
        scaling: Factor of the scores.
        cap: Scores are ``cap * tanh(score / cap)``, as in Gemma 2 (arXiv 2408.00118); ``None`` leaves them.
        sinks: ``[heads]``: one more score of every query, without a value, as in GPT-OSS (arXiv 2508.10925).

    Returns:
        ``[batch, heads, tokens, value_dim]`` in the precision of ``query``.
    """
    batch, heads, tokens, head_dim = query.shape
    kv_heads = keys.shape[1]
    exact = torch.float64 if query.dtype == torch.float64 else torch.float32
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, tokens, head_dim).to(exact)
    scores = torch.einsum("bkgnd,bksd->bkgns", grouped, keys.to(exact)) * scaling
    if cap is not None:
        scores = cap * (scores / cap).tanh()
    scores = scores.masked_fill(~seen[:, :, None], float("-inf"))
    if sinks is not None:
        last = sinks.to(exact).reshape(kv_heads, -1, 1, 1).expand(batch, -1, -1, tokens, 1)
        weights = torch.cat([scores, last], -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    out = torch.einsum("bkgns,bksd->bkgnd", weights, values.to(exact))
    return out.reshape(batch, heads, tokens, values.shape[-1]).to(query.dtype)


def prompt_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """:func:`weighted_values` of many tokens, some queries at a time, so that not all scores are in memory at once.

    Args:
        query: ``[batch, heads, tokens, head_dim]``; this and the others as in :func:`weighted_values`.
        keys: ``[batch, kv_heads, slots, head_dim]``.
        values: ``[batch, kv_heads, slots, value_dim]``.
        mask: ``[batch or 1, 1, tokens, slots]``; ``None``: the last token sees all slots, the one before it all but the
            last, and so on.
        scaling: Factor of the scores; ``None`` is ``head_dim ** -0.5``.
        cap: Bound of the scores, or ``None``.
        sinks: ``[heads]`` or ``None``.

    Returns:
        ``[batch, heads, tokens, value_dim]``.
    """
    batch, heads, tokens, head_dim = query.shape
    slots = keys.shape[2]
    scale = head_dim**-0.5 if scaling is None else scaling
    step = max(1, _SCORES_AT_A_TIME // (batch * heads * slots))
    order = torch.arange(slots, device=query.device)
    pieces = []
    for first in range(0, tokens, step):
        piece = query[:, :, first : first + step]
        if mask is None:
            last = torch.arange(first, first + piece.shape[2], device=query.device) + slots - tokens
            seen = (order <= last[:, None])[None, None]
        else:
            seen = mask[:, :, first : first + step]
        pieces.append(weighted_values(piece, keys, values, seen, scale, cap, sinks))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)


def reference_decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    ancestors: Tensor,
    starts: Tensor | None = None,
    scaling: float | None = None,
    *,
    window: int | None = None,
    depths: Tensor | None = None,
    cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Reference implementation of decode attention in plain torch (ours); the Triton kernel is tested against it.

    A node of row ``b`` attends, in every KV head, to the slots ``starts .. lengths - 1`` and, of the step's own slots
    ``lengths .. lengths + nodes - 1``, to those of its ancestors and itself. With a window it attends to those of them
    that are less than ``window`` places before it, where the place of a node is ``lengths`` plus its depth. Scores and
    sums are computed in float32, or in float64 for float64 inputs.

    Args:
        query: ``[batch, heads, nodes, head_dim]``, at most 64 nodes.
        keys: ``[batch, kv_heads, slots, head_dim]``; ``kv_heads`` divides ``heads``. Slots that no node attends to must
            not hold NaN; other values are ignored.
        values: ``[batch, kv_heads, slots, value_dim]``.
        lengths: Slots in use before the step, ``[batch]`` or, where KV heads differ in length, ``[batch, kv_heads]``.
        ancestors: ``[nodes]`` int64 (:attr:`saccade.inference.trees.TokenTree.ancestor_bits`).
        starts: First slot in use, of the shape of ``lengths``; ``None`` is 0.
        scaling: Factor of the scores; ``None`` is ``head_dim ** -0.5``.
        window: Places that a node sees, its own included; ``None`` is all.
        depths: ``[nodes]`` of the tree; needed with a window.
        cap: Bound of the scores (:func:`weighted_values`).
        sinks: ``[heads]`` scores without a value (:func:`weighted_values`).

    Returns:
        ``[batch, nodes, heads, value_dim]`` in the precision of ``query``.
    """
    batch, _, nodes, head_dim = query.shape
    kv_heads, slots = keys.shape[1], keys.shape[2]
    per_head = lengths.reshape(batch, -1).expand(batch, kv_heads)[..., None]
    first = per_head * 0 if starts is None else starts.reshape(batch, -1).expand(batch, kv_heads)[..., None]
    slot = torch.arange(slots, device=query.device)
    own = slot - per_head  # [batch, kv_heads, slots]
    node = own.clamp(0, nodes - 1)
    bits = (ancestors[:, None, None, None] >> node) & 1  # [nodes, batch, kv_heads, slots]
    seen = (own < 0) | ((own < nodes) & (bits == 1))
    seen = seen & (slot >= first)
    if window is not None and depths is not None:
        place = torch.where(own < 0, own, depths[node])  # relative to the length
        seen = seen & (place > depths[:, None, None, None] - window)
    scale = head_dim**-0.5 if scaling is None else scaling
    return weighted_values(query, keys, values, seen.permute(1, 2, 0, 3), scale, cap, sinks).transpose(1, 2)


def decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    ancestors: Tensor,
    starts: Tensor | None = None,
    scaling: float | None = None,
    *,
    window: int | None = None,
    depths: Tensor | None = None,
    cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Decode attention with the Triton kernel on CUDA, otherwise, and in float64, with the reference.

    The kernel takes windows of at least as many tokens as a step may have nodes, heads of at most 256, and values as
    wide as keys.

    Args:
        query: ``[batch, heads, nodes, head_dim]``; this and the others as in :func:`reference_decode_attention`.
        keys: ``[batch, kv_heads, slots, head_dim]``.
        values: ``[batch, kv_heads, slots, value_dim]``.
        lengths: ``[batch]`` or ``[batch, kv_heads]``.
        ancestors: ``[nodes]`` int64.
        starts: Of the shape of ``lengths``, or ``None``.
        scaling: Factor of the scores.
        window: Places that a node sees.
        depths: ``[nodes]``.
        cap: Bound of the scores.
        sinks: ``[heads]``.

    Returns:
        ``[batch, nodes, heads, value_dim]``.
    """
    known = keys.shape == values.shape and keys.shape[-1] <= WIDEST and (window is None or window >= MAX_NODES)
    attend = reference_decode_attention
    if runs_kernels(query) and known:
        from saccade.inference.engine.kernels.decode_attention import triton_decode_attention

        attend = triton_decode_attention
    return attend(
        query, keys, values, lengths, ancestors, starts, scaling, window=window, depths=depths, cap=cap, sinks=sinks
    )
