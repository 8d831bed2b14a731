"""One decoding step of a Llama-shaped model in few kernels, on the weights of its Hugging Face modules.

Seven launches a layer: projections of the same input share one, and norms, biases, rotation, cache writes, gated
activation and residual sums happen inside them. The weights stay where they are and are read once. Ours.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.inference import compat
from saccade.inference.engine.attention import decode_attention
from saccade.inference.engine.cache import KVCache


def reference_linear(
    inputs: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """Projections of one input with what surrounds them, in plain torch; defines the kernel.

    Args:
        inputs: ``[rows, depth]``.
        weights: One to three matrices ``[outputs, depth]``; two of equal size when ``gated``.
        biases: One for each matrix, or ``None``.
        norm: ``[depth]`` weights of an RMSNorm before, or ``None``.
        eps: Of that norm.
        gated: Whether the result is ``silu(first) * second``.
        residual: ``[rows, outputs]``, added to the result, or ``None``.

    Returns:
        ``[rows, outputs]``: those of all matrices side by side, or of one when ``gated``.
    """
    if norm is not None:
        inputs = _rms_norm(inputs, norm, eps)
    parts = [F.linear(inputs, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    out = F.silu(parts[0]) * parts[1] if gated else torch.cat(parts, -1)
    return out if residual is None else residual + out


def reference_rotate(
    packed: Tensor,
    cos: Tensor,
    sin: Tensor,
    lengths: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    norms: tuple[Tensor, Tensor] | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Turns queries and keys by their positions and writes keys and values into the cache; defines the kernel.

    Args:
        packed: ``[batch * nodes, (heads + 2 * kv_heads) * head_dim]``: queries, keys, values side by side.
        cos: ``[batch, nodes, head_dim]``.
        sin: Like ``cos``.
        lengths: ``[batch]``: the slot that node 0 is written to.
        keys: ``[batch, kv_heads, slots, head_dim]``; written.
        values: Like ``keys``.
        norms: RMSNorm weights ``[head_dim]`` of queries and keys before they are turned, or ``None``.
        eps: Of these norms.

    Returns:
        Queries ``[batch, heads, nodes, head_dim]``.
    """
    batch, nodes, head_dim = cos.shape
    kv_heads = keys.shape[1]
    apart = packed.view(batch, nodes, -1, head_dim)
    query, key, value = apart.split([apart.shape[2] - 2 * kv_heads, kv_heads, kv_heads], 2)
    if norms is not None:
        query, key = _rms_norm(query, norms[0], eps), _rms_norm(key, norms[1], eps)
    turned = []
    for part in (query, key):
        low, high = part.chunk(2, -1)
        turned.append(part * cos[:, :, None] + torch.cat([-high, low], -1) * sin[:, :, None])
    rows = torch.arange(batch, device=packed.device)[:, None]
    slots = lengths[:, None] + torch.arange(nodes, device=packed.device)
    keys[rows, :, slots] = turned[1]
    values[rows, :, slots] = value
    return turned[0].transpose(1, 2)


def _rms_norm(inputs: Tensor, weight: Tensor, eps: float) -> Tensor:
    exact = inputs.float()  # in float64 too, as transformers' modules do: the engines shall not differ
    return weight * (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)).to(inputs.dtype)


class FusedStep:
    """The model's forward for a few new tokens, its weights those of the Hugging Face modules at the time of the call.

    Args:
        model: A model for which :func:`why_not_fused` is empty.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.layers: list[Any] = list(compat.decoder_layers(model))
        self.base: Any = model.get_submodule("model")
        self.norms = hasattr(self.layers[0].self_attn, "q_norm")

    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        lengths: Tensor,
        ancestors: Tensor,
        storage: KVCache,
        skipped_attention: Collection[int] = (),
        skipped_mlp: Collection[int] = (),
    ) -> Tensor:
        """Reads the tokens behind ``lengths``, whose keys and values it writes.

        Args:
            tokens: ``[batch, nodes]`` ids.
            positions: ``[batch, nodes]`` rotary positions.
            lengths: ``[batch]`` slots in use.
            ancestors: ``[nodes]`` (:attr:`saccade.inference.trees.TokenTree.ancestor_bits`).
            storage: The cache, allocated.
            skipped_attention: Layers whose attention is left out.
            skipped_mlp: Layers whose MLP is left out.

        Returns:
            Logits ``[batch, nodes, vocabulary]``.
        """
        linear, rotate = _kernels(self.base.embed_tokens.weight)
        batch, nodes = tokens.shape
        hidden = self.base.embed_tokens(tokens)
        cos, sin = (part.expand(batch, nodes, -1).contiguous() for part in self.base.rotary_emb(hidden, positions))
        hidden = hidden.view(batch * nodes, -1)
        for index, layer in enumerate(self.layers):
            if index not in skipped_attention:
                attention, before = layer.self_attn, layer.input_layernorm
                triple = (attention.q_proj, attention.k_proj, attention.v_proj)
                packed = linear(hidden, *_of(triple), norm=before.weight, eps=before.variance_epsilon)
                keys, values = storage.buffers(index)
                keys, values = keys[:batch], values[:batch]
                norms = (attention.q_norm.weight, attention.k_norm.weight) if self.norms else None
                eps = attention.q_norm.variance_epsilon if self.norms else 0.0
                query = rotate(packed, cos, sin, lengths, keys, values, norms=norms, eps=eps)
                mixed = decode_attention(query, keys, values, lengths, ancestors, scaling=attention.scaling)
                mixed = mixed.reshape(batch * nodes, -1)
                hidden = linear(mixed, *_of((attention.o_proj,)), residual=hidden)
            if index not in skipped_mlp:
                mlp, before = layer.mlp, layer.post_attention_layernorm
                pair = (mlp.gate_proj, mlp.up_proj)
                inner = linear(hidden, *_of(pair), norm=before.weight, eps=before.variance_epsilon, gated=True)
                hidden = linear(inner, *_of((mlp.down_proj,)), residual=hidden)
        last, head = self.base.norm, self.model.lm_head
        logits = linear(hidden, *_of((head,)), norm=last.weight, eps=last.variance_epsilon)
        return logits.view(batch, nodes, -1)


def _of(parts: Sequence[nn.Linear]) -> tuple[list[Tensor], list[Tensor | None]]:
    return [part.weight for part in parts], [part.bias for part in parts]


def _kernels(like: Tensor) -> tuple[Any, Any]:
    if like.device.type == "cuda" and like.dtype != torch.float64:
        from saccade.inference.engine.kernels.linear import triton_linear, triton_rotate

        return triton_linear, triton_rotate
    return reference_linear, reference_rotate


def why_not_fused(model: nn.Module) -> str:
    """Why :class:`FusedStep` cannot run a model, or an empty string.

    A model of another class, with hooks, with adapters, or spread over devices keeps its own modules: they run in the
    captured graph as they are.
    """
    name = type(model).__name__
    if name not in ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        return f"{name} is not one of the model classes that are known"
    config = compat.text_config(model)
    if config.hidden_act not in ("silu", "swish"):
        return f"its activation is {config.hidden_act}"
    weights = list(model.parameters())
    if len({(weight.device, weight.dtype) for weight in weights}) > 1:
        return "its weights lie on several devices or have several precisions"
    for path, part in model.named_modules():
        if part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part):
            return f"{path or name} has a hook or a changed forward"
        if path.rpartition(".")[2].endswith(("_proj", "lm_head")) and type(part) is not nn.Linear:
            return f"{path} is a {type(part).__name__}, not a plain Linear"
    if any(not weight.is_contiguous() for weight in weights):
        return "a weight is not contiguous"
    return ""
