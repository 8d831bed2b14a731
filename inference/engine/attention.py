"""Decode attention: a few new tokens, a chain or a tree, against a cache whose lengths the device knows."""

from __future__ import annotations

import torch
from torch import Tensor


def reference_decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    ancestors: Tensor,
    starts: Tensor | None = None,
    scaling: float | None = None,
) -> Tensor:
    """What decode attention is, in plain torch (ours); the Triton kernel is tested against it.

    Node ``n`` of row ``b`` reads, of every KV head, the slots ``starts .. lengths - 1`` and, among the slots
    ``lengths .. lengths + nodes - 1`` that hold the step's own keys, those of its ancestors and itself. Scores and sums
    are kept in float32, or in float64 for float64 inputs.

    Args:
        query: ``[batch, heads, nodes, head_dim]``, at most 64 nodes.
        keys: ``[batch, kv_heads, slots, head_dim]``; ``kv_heads`` divides ``heads``. Slots that no node reads may hold
            anything but NaN.
        values: Like ``keys``.
        lengths: ``[batch]`` or, for heads of their own lengths, ``[batch, kv_heads]``: slots in use before the step.
        ancestors: ``[nodes]`` int64 (:attr:`saccade.inference.trees.TokenTree.ancestor_bits`).
        starts: First slot in use, of the shape of ``lengths``; ``None`` is 0.
        scaling: Factor on the scores; ``None`` is ``head_dim ** -0.5``.

    Returns:
        ``[batch, nodes, heads, head_dim]`` in the precision of ``query``.
    """
    batch, heads, nodes, head_dim = query.shape
    kv_heads, slots = keys.shape[1], keys.shape[2]
    exact = torch.float64 if query.dtype == torch.float64 else torch.float32
    scale = head_dim**-0.5 if scaling is None else scaling
    per_head = lengths.reshape(batch, -1).expand(batch, kv_heads)[..., None]
    first = per_head * 0 if starts is None else starts.reshape(batch, -1).expand(batch, kv_heads)[..., None]
    slot = torch.arange(slots, device=query.device)
    own = slot - per_head  # [batch, kv_heads, slots]
    bits = (ancestors[:, None, None, None] >> own.clamp(0, nodes - 1)) & 1  # [nodes, batch, kv_heads, slots]
    seen = (own < 0) | ((own < nodes) & (bits == 1))
    seen = (seen & (slot >= first)).permute(1, 2, 0, 3)  # [batch, kv_heads, nodes, slots]
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, nodes, head_dim).to(exact)
    scores = torch.einsum("bkgnd,bksd->bkgns", grouped, keys.to(exact)) * scale
    weights = scores.masked_fill(~seen[:, :, None], float("-inf")).softmax(-1)
    out = torch.einsum("bkgns,bksd->bkgnd", weights, values.to(exact))
    return out.reshape(batch, heads, nodes, head_dim).transpose(1, 2).to(query.dtype)


def decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    ancestors: Tensor,
    starts: Tensor | None = None,
    scaling: float | None = None,
) -> Tensor:
    """Decode attention by the Triton kernel on CUDA, by :func:`reference_decode_attention` elsewhere and in float64.

    Args:
        query: ``[batch, heads, nodes, head_dim]``; this and the others as in the reference.
        keys: ``[batch, kv_heads, slots, head_dim]``.
        values: Like ``keys``.
        lengths: ``[batch]`` or ``[batch, kv_heads]``.
        ancestors: ``[nodes]`` int64.
        starts: Of the shape of ``lengths``, or ``None``.
        scaling: Factor on the scores.

    Returns:
        ``[batch, nodes, heads, head_dim]``.
    """
    if query.device.type == "cuda" and query.dtype != torch.float64:
        from saccade.inference.engine.kernels.decode_attention import triton_decode_attention

        return triton_decode_attention(query, keys, values, lengths, ancestors, starts, scaling)
    return reference_decode_attention(query, keys, values, lengths, ancestors, starts, scaling)
