"""Attention over units of different lengths in one flat buffer, and how some rows attend to a prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.inference.compression.observation import attention_scores
from saccade.inference.engine.attention import WIDEST, runs_kernels, weighted_values
from saccade.inference.engine.compressed.kept import Groups


def reference_ragged_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bases: Tensor,
    lengths: Tensor,
    ancestors: Tensor,
    span: int,
    room: int,
    scaling: float | None = None,
    *,
    seen: Tensor | None = None,
    packed: Groups | None = None,
) -> Tensor:
    """Reference implementation in plain torch (ours); the Triton kernel is tested against it.

    A node of row ``b`` attends, in KV head ``h``, to the slots ``bases .. bases + lengths - 1`` and, of the ``span``
    slots of the step behind them, to those of its ancestors and itself.

    Args:
        query: ``[batch, heads, nodes, head_dim]``; fewer nodes than ``span`` where a step is computed in parts.
        keys: ``[slots, head_dim]`` of all units.
        values: Like ``keys``.
        bases: ``[batch, kv_heads]`` first slot of every unit.
        lengths: ``[batch, kv_heads]`` slots of a unit in use before the step.
        ancestors: ``[nodes]`` int64 bits (:attr:`saccade.inference.trees.TokenTree.ancestor_bits`).
        span: Slots that the step has written, at most 64.
        room: The most slots that a unit has in use, those of the step included.
        scaling: Factor of the scores; ``None`` is ``head_dim ** -0.5``.
        seen: ``[slots]`` booleans: which slots of ``keys`` hold a token; ``None`` is all.
        packed: Further tokens of every unit, in few bits, to which all nodes attend; ``None`` is none.

    Returns:
        ``[batch, nodes, heads, head_dim]`` in the precision of ``query``.
    """
    slot = torch.arange(room, device=query.device)
    own = slot - lengths[..., None]  # [batch, kv_heads, room]
    at = (bases[..., None] + slot).clamp(max=len(keys) - 1)
    bits = (ancestors[:, None, None, None] >> own.clamp(0, 63)) & 1  # [nodes, batch, kv_heads, room]
    visible = (own < 0) | ((own < span) & (bits == 1))
    if seen is not None:
        visible = visible & seen[at]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # slots behind a unit belong to other units, and what no node sees must not be NaN
    held = (own < span)[..., None]
    picked = (keys[at].masked_fill(~held, 0.0), values[at].masked_fill(~held, 0.0))
    visible = visible.permute(1, 2, 0, 3)
    if packed is not None:
        *more, whose = packed.unpacked(keys.shape[1], keys.dtype)
        picked = (torch.cat([more[0], picked[0]], 2), torch.cat([more[1], picked[1]], 2))
        visible = torch.cat([whose[:, :, None].expand(-1, -1, visible.shape[2], -1), visible], -1)
    return weighted_values(query, *picked, visible, scale, None, None).transpose(1, 2)


def ragged_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bases: Tensor,
    lengths: Tensor,
    ancestors: Tensor,
    span: int,
    room: int,
    scaling: float | None = None,
    *,
    seen: Tensor | None = None,
    packed: Groups | None = None,
) -> Tensor:
    """Attention of :func:`reference_ragged_attention`, with the Triton kernel on CUDA unless in float64."""
    attend = reference_ragged_attention
    if runs_kernels(query) and keys.shape[-1] <= WIDEST:
        from saccade.inference.engine.kernels.decode_attention import triton_ragged_attention

        attend = triton_ragged_attention
    return attend(query, keys, values, bases, lengths, ancestors, span, room, scaling, seen=seen, packed=packed)


def row_scores(
    query: Tensor, keys: Tensor, first: int, scaling: float, alive_share: float = 0.01, late: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`saccade.inference.compression.observation.attention_scores`, by kernels on CUDA unless in float64."""
    if runs_kernels(query):
        from saccade.inference.engine.kernels.observe import MOST_ROWS, MOST_WIDTH, triton_attention_scores

        if query.shape[1] <= MOST_ROWS and query.shape[2] <= MOST_WIDTH:
            return triton_attention_scores(query, keys, first, scaling, alive_share, late)
    return attention_scores(query, keys, first, scaling, alive_share, late)
