"""One decoding step of a Llama-shaped model in few kernels, on the weights of its Hugging Face modules.

Seven launches a layer, nine for several rows: projections of the same input share one, and norms, biases, rotation,
cache writes, gated activation and residual sums happen inside them. The weights stay where they are and are read once.
Ours.
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
from saccade.inference.huggingface.models import language_part, text_config
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
        inputs = rms_norm(inputs, norm, eps)
    parts = [F.linear(inputs, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    out = F.silu(parts[0]) * parts[1] if gated else torch.cat(parts, -1)
    return out if residual is None else residual + out


def reference_add(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, norm: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """A projection onto the residual stream and the norm behind it; defines the kernel.

    Args:
        inputs: ``[rows, depth]``.
        weight: ``[outputs, depth]``.
        bias: ``[outputs]`` or ``None``.
        residual: ``[rows, outputs]``.
        norm: ``[outputs]`` weights of the RMSNorm behind.
        eps: Of that norm.

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
        query, key = rms_norm(query, norms[0], eps), rms_norm(key, norms[1], eps)
    turned = []
    for part in (query, key):
        low, high = part.chunk(2, -1)
        turned.append(part * cos[:, :, None] + torch.cat([-high, low], -1) * sin[:, :, None])
    rows = torch.arange(batch, device=packed.device)[:, None]
    slots = lengths[:, None] + torch.arange(nodes, device=packed.device)
    keys[rows, :, slots] = turned[1]
    values[rows, :, slots] = value
    return turned[0].transpose(1, 2)


def rms_norm(inputs: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm ``[..., depth]`` as transformers' modules compute it; defines the kernel."""
    exact = inputs.float()  # in float64 too, as transformers' modules do: the engines shall not differ
    return weight * (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)).to(inputs.dtype)


class FusedStep:
    """The model's forward for a few new tokens, its weights those of the Hugging Face modules at the time of the call.

    Args:
        model: A model for which :func:`why_not_fused` is empty.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.layers: list[Any] = list(decoder_layers(model))
        part = language_part(model)
        self.base: Any = part.get_submodule("model") if part is model else part
        self.norms = hasattr(self.layers[0].self_attn, "q_norm")
        self.axes = hasattr(self.base.rotary_emb, "mrope_section")

    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        lengths: Tensor,
        ancestors: Tensor,
        storage: KVCache,
        skipped_attention: Collection[int] = (),
        skipped_mlp: Collection[int] = (),
        observed: int | str | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Reads the tokens behind ``lengths``, whose keys and values it writes.

        Args:
            tokens: ``[batch, nodes]`` ids.
            positions: ``[batch, nodes]`` rotary positions.
            lengths: ``[batch]`` slots in use.
            ancestors: ``[nodes]`` (:attr:`saccade.inference.trees.TokenTree.ancestor_bits`).
            storage: The cache, allocated.
            skipped_attention: Layers whose attention is left out.
            skipped_mlp: Layers whose MLP is left out.
            observed: Layer whose output is returned too, or ``"norm"`` for the final norm's; ``None`` for none.

        Returns:
            Logits ``[batch, nodes, vocabulary]``, and ``[batch, nodes, hidden]`` of the observed layer.
        """
        kernels = _kernels(self.base.embed_tokens.weight)
        batch, nodes = tokens.shape
        hidden = self.base.embed_tokens(tokens)
        # new tokens stand at the same place on all axes of M-RoPE, so one of them says all
        turns = self.base.rotary_emb(hidden, positions[None].expand(3, -1, -1) if self.axes else positions)
        cos, sin = ((part[0] if part.ndim == 4 else part).expand(batch, nodes, -1).contiguous() for part in turns)
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
        # the residual stream is replaced, never written in place: what is noted stays
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
                mixed = decode_attention(query, keys, values, lengths, ancestors, scaling=attention.scaling)
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
    """The residual stream: one row is normalized by whoever reads it, several rows by whoever wrote them."""

    def __init__(self, kernels: _Kernels, hidden: Tensor, norms: list[Any]) -> None:
        self.kernels, self.hidden, self.norms = kernels, hidden, norms
        first = norms[0]
        self.ready = None if len(hidden) == 1 else kernels.norm(hidden, first.weight, first.variance_epsilon)
        self.place = 0

    def enter(self, parts: Sequence[nn.Linear], gated: bool = False) -> Tensor:
        """Projections of the normalized stream."""
        weights, biases = [part.weight for part in parts], [part.bias for part in parts]
        if self.ready is not None:
            return self.kernels.linear(self.ready, weights, biases, gated=gated)
        norm = self.norms[self.place]
        return self.kernels.linear(
            self.hidden, weights, biases, norm=norm.weight, eps=norm.variance_epsilon, gated=gated
        )

    def leave(self, inputs: Tensor, part: nn.Linear) -> None:
        """Adds a projection to the stream."""
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
    """What a step is made of: the definitions, or the kernels that compute the same."""

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
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen2_5_VLForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
}
_KNOWN_PARTS = {"Qwen2Model", "Qwen2_5_VLTextModel", "LlamaModel", "Qwen3Model"}  # language parts of the last two


def why_not_fused(model: nn.Module) -> str:
    """Why :class:`FusedStep` cannot run a model, or an empty string.

    A model of another class, with hooks, with adapters, or spread over devices keeps its own modules: they run in the
    captured graph as they are.
    """
    name = type(model).__name__
    if name not in _KNOWN_MODELS or type(language_part(model)).__name__ not in _KNOWN_PARTS | {name}:
        return f"{name} is not one of the model classes that are known"
    config = text_config(model)
    if config.hidden_act not in ("silu", "swish"):
        return f"its activation is {config.hidden_act}"
    part = language_part(model)
    beside = [] if part is model else [("lm_head", model.get_submodule("lm_head"))]
    weights = [*part.parameters(), *(weight for _, module in beside for weight in module.parameters())]
    if len({(weight.device, weight.dtype) for weight in weights}) > 1:
        return "its weights lie on several devices or have several precisions"
    for path, module in [*part.named_modules(), *beside]:
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return f"{path or name} has a hook or a changed forward"
        if path.rpartition(".")[2].endswith(("_proj", "lm_head")) and type(module) is not nn.Linear:
            return f"{path} is a {type(module).__name__}, not a plain Linear"
    if any(not weight.is_contiguous() for weight in weights):
        return "a weight is not contiguous"
    return ""
