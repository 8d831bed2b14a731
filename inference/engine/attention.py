"""Decode attention: a few new tokens, a chain or a tree, attend to a cache whose lengths are on the device."""

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
    """Reference implementation of decode attention in plain torch (ours); the Triton kernel is tested against it.

    A node of row ``b`` attends, in every KV head, to the slots ``starts .. lengths - 1`` and, of the step's own slots
    ``lengths .. lengths + nodes - 1``, to those of its ancestors and itself. Scores and sums are computed in float32,
    or in float64 for float64 inputs.

    Args:
        query: ``[batch, heads, nodes, head_dim]``, at most 64 nodes.
        keys: ``[batch, kv_heads, slots, head_dim]``; ``kv_heads`` divides ``heads``. Slots that no node attends to must
            not hold NaN; other values are ignored.
        values: Like ``keys``.
        lengths: Slots in use before the step, ``[batch]`` or, where KV heads differ in length, ``[batch, kv_heads]``.
        ancestors: ``[nodes]`` int64 (:attr:`saccade.inference.trees.TokenTree.ancestor_bits`).
        starts: First slot in use, of the shape of ``lengths``; ``None`` is 0.
        scaling: Factor of the scores; ``None`` is ``head_dim ** -0.5``.

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
    """Decode attention with the Triton kernel on CUDA, otherwise, and in float64, with the reference.

    Args:
        query: ``[batch, heads, nodes, head_dim]``; this and the others as in :func:`reference_decode_attention`.
        keys: ``[batch, kv_heads, slots, head_dim]``.
        values: Like ``keys``.
        lengths: ``[batch]`` or ``[batch, kv_heads]``.
        ancestors: ``[nodes]`` int64.
        starts: Of the shape of ``lengths``, or ``None``.
        scaling: Factor of the scores.

    Returns:
        ``[batch, nodes, heads, head_dim]``.
    """
    if query.device.type == "cuda" and query.dtype != torch.float64:
        from saccade.inference.engine.kernels.decode_attention import triton_decode_attention

        return triton_decode_attention(query, keys, values, lengths, ancestors, starts, scaling)
    return reference_decode_attention(query, keys, values, lengths, ancestors, starts, scaling)
