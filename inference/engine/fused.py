"""One decoding step of a Llama-like model in few kernels, with the weights of its Hugging Face modules.

A layer takes seven launches for one row and nine for several rows: projections of the same input share a launch, and
norms, biases, rotary embeddings, cache writes, gated activations and residual sums are part of the same kernels. Each
weight is read once and none is copied. The design is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.inference.engine.attention import decode_attention
from saccade.inference.engine.cache import KVCache
from saccade.inference.huggingface.models import language_part, layer_windows, text_config
from saccade.inference.huggingface.sublayer_skip import decoder_layers


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
    """Projections of one input with norm, activation and residual sum, in plain torch; the reference of the kernel.

    Args:
        inputs: ``[rows, depth]``.
        weights: One to three matrices ``[outputs, depth]``; two of equal size when ``gated``.
        biases: One for each matrix, or ``None``.
        norm: ``[depth]`` weights of an RMSNorm of the input, or ``None``.
        eps: Epsilon of the RMSNorm.
        gated: Whether the result is ``silu(first) * second``.
        residual: ``[rows, outputs]``, added to the result, or ``None``.

    Returns:
        ``[rows, outputs]``: the outputs of all matrices, concatenated, or of one when ``gated``.
    """
    if norm is not None:
        inputs = rms_norm(inputs, norm, eps)
    parts = [F.linear(inputs, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    out = F.silu(parts[0]) * parts[1] if gated else torch.cat(parts, -1)
    return out if residual is None else residual + out


def reference_add(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, norm: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Adds a projection to the residual stream and normalizes the sum; the reference of the kernel.

    Args:
        inputs: ``[rows, depth]``.
        weight: ``[outputs, depth]``.
        bias: ``[outputs]`` or ``None``.
        residual: ``[rows, outputs]``.
        norm: ``[outputs]`` weights of the RMSNorm of the sum.
        eps: Epsilon of the RMSNorm.

    Returns:
        The residual stream and its normalized form, ``[rows, outputs]`` each.
    """
    hidden = residual + F.linear(inputs, weight, bias)
    return hidden, rms_norm(hidden, norm, eps)


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
    """Applies rotary embeddings to queries and keys and writes keys and values; the reference of the kernel.

    Args:
        packed: ``[batch * nodes, (heads + 2 * kv_heads) * head_dim]``: queries, keys and values, concatenated.
        cos: ``[batch, nodes, head_dim]``.
        sin: Like ``cos``.
        lengths: ``[batch]``: the slot that node 0 is written to.
        keys: ``[batch, kv_heads, slots, head_dim]``, the key cache; written.
        values: Like ``keys``, the value cache.
        norms: RMSNorm weights ``[head_dim]`` of queries and keys before the rotation, or ``None``.
        eps: Epsilon of these norms.

    Returns:
        Queries ``[batch, heads, nodes, head_dim]``.
    """
    batch, nodes, head_dim = cos.shape
    kv_heads = keys.shape[1]
    heads = packed.view(batch, nodes, -1, head_dim)
    query, key, value = heads.split([heads.shape[2] - 2 * kv_heads, kv_heads, kv_heads], 2)
    if norms is not None:
        query, key = rms_norm(query, norms[0], eps), rms_norm(key, norms[1], eps)
    rotated = []
    for part in (query, key):
        low, high = part.chunk(2, -1)
        rotated.append(part * cos[:, :, None] + torch.cat([-high, low], -1) * sin[:, :, None])
    rows = torch.arange(batch, device=packed.device)[:, None]
    slots = lengths[:, None] + torch.arange(nodes, device=packed.device)
    keys[rows, :, slots] = rotated[1]
    values[rows, :, slots] = value
    return rotated[0].transpose(1, 2)


def rms_norm(inputs: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension as in transformers; the reference of the kernel."""
    exact = inputs.float()  # also for float64, as in transformers, so that fused and eager steps agree
    return weight * (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)).to(inputs.dtype)


class FusedStep:
    """The model's forward for a few new tokens. Every call reads the current weights of the Hugging Face modules.

    Args:
        model: A model for which :func:`why_not_fused` returns an empty string.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.layers: list[Any] = list(decoder_layers(model))
        part = language_part(model)
        self.base: Any = part.get_submodule("model") if part is model else part
        self.norms = hasattr(self.layers[0].self_attn, "q_norm")
        self.windows = layer_windows(model)
        self.axes = hasattr(self.base.rotary_emb, "mrope_section")

    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        lengths: Tensor,
        ancestors: Tensor,
        depths: Tensor,
        storage: KVCache,
        skipped_attention: Collection[int] = (),
        skipped_mlp: Collection[int] = (),
        observed: int | str | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Runs the model on tokens that follow the first ``lengths`` slots, and writes their keys and values.

        Args:
            tokens: ``[batch, nodes]`` ids.
            positions: ``[batch, nodes]`` rotary positions.
            lengths: ``[batch]`` slots in use.
            ancestors: ``[nodes]`` (:attr:`saccade.inference.trees.TokenTree.ancestor_bits`).
            depths: ``[nodes]`` of the tree.
            storage: The cache, with allocated buffers.
            skipped_attention: Layers whose attention is skipped.
            skipped_mlp: Layers whose MLP is skipped.
            observed: Layer whose output is also returned, or ``"norm"`` for the output of the final norm; ``None`` for
                neither.

        Returns:
            Logits ``[batch, nodes, vocabulary]``, and the output ``[batch, nodes, hidden]`` of the observed layer or
            ``None``.
        """
        kernels = _kernels(self.base.embed_tokens.weight)
        batch, nodes = tokens.shape
        hidden = self.base.embed_tokens(tokens)
        # a text token has the same position on all axes of M-RoPE, so the first axis is enough
        angles = self.base.rotary_emb(hidden, positions[None].expand(3, -1, -1) if self.axes else positions)
        cos, sin = ((part[0] if part.ndim == 4 else part).expand(batch, nodes, -1).contiguous() for part in angles)
        hidden = hidden.view(batch * nodes, -1)
        sublayers = [
            (index, layer, kind)
            for index, layer in enumerate(self.layers)
            for kind, skipped in (("attention", skipped_attention), ("mlp", skipped_mlp))
            if index not in skipped
        ]
        norms = [
            layer.input_layernorm if kind == "attention" else layer.post_attention_layernorm
            for _, layer, kind in sublayers
        ]
        stream = _Stream(kernels, hidden, [*norms, self.base.norm])
        # every sub-layer makes a new residual stream and never writes in place, so a reference to it stays valid
        last = observed % len(self.layers) if isinstance(observed, int) else -1
        states = None
        for index, layer, kind in sublayers:
            if kind == "attention":
                attention = layer.self_attn
                packed = stream.enter((attention.q_proj, attention.k_proj, attention.v_proj))
                keys, values = storage.buffers(index)
                keys, values = keys[:batch], values[:batch]
                pair = (attention.q_norm.weight, attention.k_norm.weight) if self.norms else None
                eps = attention.q_norm.variance_epsilon if self.norms else 0.0
                query = kernels.rotate(packed, cos, sin, lengths, keys, values, norms=pair, eps=eps)
                mixed = decode_attention(
                    query, keys, values, lengths, ancestors, scaling=attention.scaling, window=self.windows[index],
                    depths=depths,
                )  # fmt: skip
                stream.leave(mixed.reshape(batch * nodes, -1), attention.o_proj)
            else:
                inner = stream.enter((layer.mlp.gate_proj, layer.mlp.up_proj), gated=True)
                stream.leave(inner, layer.mlp.down_proj)
            if index <= last:
                states = stream.hidden
        logits = stream.enter((self.model.lm_head,)).view(batch, nodes, -1)
        if isinstance(observed, str):
            states = kernels.norm(stream.hidden, self.base.norm.weight, self.base.norm.variance_epsilon)
        return logits, None if states is None else states.view(batch, nodes, -1)


class _Stream:
    """The residual stream. With one row the consumer applies the RMSNorm; with several rows the producer does."""

    def __init__(self, kernels: _Kernels, hidden: Tensor, norms: list[Any]) -> None:
        self.kernels, self.hidden, self.norms = kernels, hidden, norms
        first = norms[0]
        self.ready = None if len(hidden) == 1 else kernels.norm(hidden, first.weight, first.variance_epsilon)
        self.place = 0

    def enter(self, parts: Sequence[nn.Linear], gated: bool = False) -> Tensor:
        """Projects the normalized stream, the input of a sub-layer."""
        weights, biases = [part.weight for part in parts], [part.bias for part in parts]
        if self.ready is not None:
            return self.kernels.linear(self.ready, weights, biases, gated=gated)
        norm = self.norms[self.place]
        return self.kernels.linear(
            self.hidden, weights, biases, norm=norm.weight, eps=norm.variance_epsilon, gated=gated
        )

    def leave(self, inputs: Tensor, part: nn.Linear) -> None:
        """Adds the output projection of a sub-layer to the stream."""
        self.place += 1
        if self.ready is None:
            self.hidden = self.kernels.linear(inputs, [part.weight], [part.bias], residual=self.hidden)
            return
        norm = self.norms[self.place]
        self.hidden, self.ready = self.kernels.add(
            inputs, part.weight, part.bias, self.hidden, norm.weight, norm.variance_epsilon
        )


@dataclass(frozen=True)
class _Kernels:
    """The operations of a step: the torch references, or the Triton kernels that compute the same."""

    linear: Callable[..., Tensor] = reference_linear
    add: Callable[..., tuple[Tensor, Tensor]] = reference_add
    norm: Callable[..., Tensor] = rms_norm
    rotate: Callable[..., Tensor] = reference_rotate


def _kernels(like: Tensor) -> _Kernels:
    if like.device.type == "cuda" and like.dtype != torch.float64:
        from saccade.inference.engine.kernels.linear import triton_add, triton_linear, triton_norm
        from saccade.inference.engine.kernels.rotation import triton_rotate

        return _Kernels(triton_linear, triton_add, triton_norm, triton_rotate)
    return _Kernels()


_KNOWN_MODELS = {
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen2_5_VLForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
}
_KNOWN_PARTS = {"Qwen2Model", "Qwen2_5_VLTextModel", "LlamaModel", "Qwen3Model"}  # language models of the last two


def why_not_fused(model: nn.Module) -> str:
    """The reason why :class:`FusedStep` cannot run a model, or an empty string.

    Models of other classes, with hooks, with adapters or spread over several devices are run with their own modules,
    which may still be captured as a graph.
    """
    name = type(model).__name__
    if name not in _KNOWN_MODELS or type(language_part(model)).__name__ not in _KNOWN_PARTS | {name}:
        return f"{name} is not a supported model class"
    config = text_config(model)
    if config.hidden_act not in ("silu", "swish"):
        return f"its activation is {config.hidden_act}"
    part = language_part(model)
    head = [] if part is model else [("lm_head", model.get_submodule("lm_head"))]
    weights = [*part.parameters(), *(weight for _, module in head for weight in module.parameters())]
    if len({(weight.device, weight.dtype) for weight in weights}) > 1:
        return "its weights are on several devices or have several precisions"
    for path, module in [*part.named_modules(), *head]:
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return f"{path or name} has a hook or a changed forward"
        if path.rpartition(".")[2].endswith(("_proj", "lm_head")) and type(module) is not nn.Linear:
            return f"{path} is a {type(module).__name__}, not a plain Linear"
    if any(not weight.is_contiguous() for weight in weights):
        return "a weight is not contiguous"
    return ""
