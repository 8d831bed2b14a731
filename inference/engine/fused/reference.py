"""The operations of a fused step in plain torch: each defines a Triton kernel, and is what runs where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Norm(NamedTuple):
    """An RMSNorm.

    Args:
        weight: ``[depth]``.
        eps: Epsilon.
        shift: Added to the weights; 1 in models whose weights count from 1 (Gemma), which round after the weights.
    """

    weight: Tensor
    eps: float
    shift: float = 0.0


class Units(NamedTuple):
    """Where the KV heads of a layer lie in a flat buffer, each with consecutive slots.

    Args:
        shifts: ``[batch, kv_heads]`` int64: slot of the token at a place of the text, minus that place.
        ends: ``[2]`` int64: places that a text has room for, and the first of the slots to which tokens behind the room
            are written, which nobody reads. A tensor, so that they may change in a captured step.
    """

    shifts: Tensor
    ends: Tensor

    def places(self, tokens: Tensor) -> Tensor:
        """Slots ``[batch, kv_heads, tokens]`` of tokens at places ``[batch, tokens]`` of the texts."""
        spare = self.ends[1] + torch.arange(tokens.shape[1], device=tokens.device)
        return torch.where(tokens[:, None] < self.ends[0], tokens[:, None] + self.shifts[..., None], spare)


class LowRank(NamedTuple):
    """What an adapter adds to a matrix: ``scale * up @ down`` (LoRA, arXiv 2106.09685).

    Args:
        down: ``[rank, depth]``; may be more precise than the inputs.
        up: ``[outputs, rank]``, as precise as ``down``.
        scale: Factor.
    """

    down: Tensor
    up: Tensor
    scale: float


class Experts(NamedTuple):
    """The stacked weights of a mixture of experts, and how experts are chosen.

    Args:
        gate_up: ``[experts, 2 * inner, depth]``: the gate's outputs before those that it multiplies.
        down: ``[experts, depth, inner]``.
        chosen: Experts of a token.
        normalised: Whether the probabilities of the chosen experts are divided by their sum.
        gated: Name of the activation, ``silu`` or ``gelu``.
    """

    gate_up: Tensor
    down: Tensor
    chosen: int
    normalised: bool
    gated: str


def rms_norm(inputs: Tensor, norm: Norm) -> Tensor:
    """RMSNorm over the last dimension as in transformers; the reference of the kernel."""
    exact = inputs.float()  # also for float64, as in transformers, so that fused and eager steps agree
    exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + norm.eps)
    if norm.shift:
        return (exact * (norm.shift + norm.weight.float())).to(inputs.dtype)
    return norm.weight * exact.to(inputs.dtype)


def activate(gate: Tensor, gated: str) -> Tensor:
    """The activation of a gate: ``silu``, or ``gelu`` in its form with tanh."""
    return F.silu(gate) if gated == "silu" else F.gelu(gate, approximate="tanh")


def project(inputs: Tensor, weight: Tensor, bias: Tensor | None, adapter: LowRank | None = None) -> Tensor:
    """One matrix, with what an adapter adds in the adapter's own precision, as PEFT computes it."""
    out = F.linear(inputs, weight, bias)
    if adapter is None:
        return out
    low = F.linear(inputs.to(adapter.down.dtype), adapter.down)
    return (out + F.linear(low, adapter.up) * adapter.scale).to(out.dtype)


def reference_linear(
    inputs: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    norm: Norm | None = None,
    gated: str | None = None,
    residual: Tensor | None = None,
    factor: float = 1.0,
    adapters: Sequence[LowRank | None] | None = None,
) -> Tensor:
    """Projections of one input with norm, activation and residual sum, in plain torch; the reference of the kernel.

    Args:
        inputs: ``[rows, depth]``.
        weights: One to three matrices ``[outputs, depth]``; two of equal size when ``gated``.
        biases: One for each matrix, or ``None``.
        norm: Of the input, or ``None``.
        gated: Activation of the first matrix's outputs, which then multiply the second's; ``None`` for no gate.
        residual: ``[rows, outputs]``, to which ``factor`` times the result is added, or ``None``.
        factor: Of the result where there is a residual.
        adapters: One for each matrix, or ``None``.

    Returns:
        ``[rows, outputs]``: the outputs of all matrices, concatenated, or of one when ``gated``.
    """
    if norm is not None:
        inputs = rms_norm(inputs, norm)
    extra = [None] * len(weights) if adapters is None else adapters
    parts = [project(inputs, *each) for each in zip(weights, biases, extra, strict=True)]
    out = activate(parts[0], gated) * parts[1] if gated else torch.cat(parts, -1) if len(parts) > 1 else parts[0]
    return out if residual is None else residual + (out if factor == 1 else out * factor)


def reference_add(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    norm: Norm,
    *,
    after: Norm | None = None,
    factor: float = 1.0,
    adapter: LowRank | None = None,
) -> tuple[Tensor, Tensor]:
    """Adds a projection to the residual stream and normalizes the sum; the reference of the kernel.

    Args:
        inputs: ``[rows, depth]``.
        weight: ``[outputs, depth]``.
        bias: ``[outputs]`` or ``None``.
        residual: ``[rows, outputs]``.
        norm: Of the sum.
        after: Norm of the projection itself, before it is added; ``None`` for none.
        factor: Of what is added.
        adapter: Of the matrix.

    Returns:
        The residual stream and its normalized form, ``[rows, outputs]`` each.
    """
    out = project(inputs, weight, bias, adapter)
    if after is not None:
        out = rms_norm(out, after)
    hidden = residual + (out if factor == 1 else out * factor)
    return hidden, rms_norm(hidden, norm)


def reference_rotate(
    packed: Tensor,
    cos: Tensor,
    sin: Tensor,
    lengths: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    norms: tuple[Norm, Norm] | None = None,
    units: Units | None = None,
) -> Tensor:
    """Applies rotary embeddings to queries and keys and writes keys and values; the reference of the kernel.

    Args:
        packed: ``[batch * nodes, (heads + 2 * kv_heads) * head_dim]``: queries, keys and values, concatenated.
        cos: ``[batch, nodes, head_dim]``.
        sin: Like ``cos``.
        lengths: ``[batch]``: the slot that node 0 is written to.
        keys: ``[batch, kv_heads, slots, head_dim]``, the key cache, or ``[slots, head_dim]`` with ``units``; written.
        values: Like ``keys``, the value cache.
        norms: Of every head of the queries and of the keys before the rotation, or ``None``.
        units: Where KV heads lie in a flat buffer, or ``None``.

    Returns:
        Queries ``[batch, heads, nodes, head_dim]``.
    """
    batch, nodes, head_dim = cos.shape
    kv_heads = keys.shape[1] if units is None else units.shifts.shape[1]
    heads = packed.view(batch, nodes, -1, head_dim)
    query, key, value = heads.split([heads.shape[2] - 2 * kv_heads, kv_heads, kv_heads], 2)
    if norms is not None:
        query, key = rms_norm(query, norms[0]), rms_norm(key, norms[1])
    rotated = []
    for part in (query, key):
        low, high = part.chunk(2, -1)
        rotated.append(part * cos[:, :, None] + torch.cat([-high, low], -1) * sin[:, :, None])
    steps = torch.arange(nodes, device=packed.device)
    slots = lengths[:, None] + steps
    if units is not None:
        place = units.places(slots)
        keys[place], values[place] = rotated[1].transpose(1, 2), value.transpose(1, 2)
    else:
        rows = torch.arange(batch, device=packed.device)[:, None]
        keys[rows, :, slots] = rotated[1]
        values[rows, :, slots] = value
    return rotated[0].transpose(1, 2)


def choose_experts(logits: Tensor, count: int, normalised: bool) -> tuple[Tensor, Tensor]:
    """The experts of every token and their weights, as transformers' routers with a softmax choose them.

    Args:
        logits: ``[rows, experts or more]``, those of the router first.
        count: Experts of a token.
        normalised: Whether the weights are divided by their sum.

    Returns:
        Weights and indices, ``[rows, count]`` each, the best expert first.
    """
    best, index = torch.topk(torch.softmax(logits, -1, dtype=torch.float), count, -1)
    return (best / best.sum(-1, keepdim=True) if normalised else best), index


def reference_experts(
    inputs: Tensor,
    logits: Tensor,
    experts: Experts,
    residual: Tensor,
    *,
    norm: Norm | None = None,
    factor: float = 1.0,
) -> Tensor:
    """Adds the outputs of the chosen experts to the residual stream, in plain torch; the reference of the kernels.

    Args:
        inputs: ``[rows, depth]``.
        logits: ``[rows, experts or more]``, those of the router first.
        experts: Their weights.
        residual: ``[rows, depth]``.
        norm: Of the input, or ``None``.
        factor: Of what is added.

    Returns:
        ``[rows, depth]``.
    """
    if norm is not None:
        inputs = rms_norm(inputs, norm)
    weights, index = choose_experts(logits[:, : len(experts.down)], experts.chosen, experts.normalised)
    gate, up = (experts.gate_up[index] @ inputs[:, None, :, None])[..., 0].chunk(2, -1)
    out = (experts.down[index] @ (activate(gate, experts.gated) * up)[..., None])[..., 0]
    total = (out * weights.to(inputs.dtype)[..., None]).sum(1)
    return residual + (total if factor == 1 else total * factor)


def reference_experts_add(
    inputs: Tensor, logits: Tensor, experts: Experts, residual: Tensor, norm: Norm, *, factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The same for normalized inputs, with the norm of the sum; the reference of the kernels for several rows.

    Args:
        inputs: ``[rows, depth]``; this and the others as in :func:`reference_experts`.
        logits: ``[rows, experts or more]``.
        experts: Their weights.
        residual: ``[rows, depth]``.
        norm: Of the sum.
        factor: Of what is added.

    Returns:
        The residual stream and its normalized form, ``[rows, depth]`` each.
    """
    hidden = reference_experts(inputs, logits, experts, residual, factor=factor)
    return hidden, rms_norm(hidden, norm)
