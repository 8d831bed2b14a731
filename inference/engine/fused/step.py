"""One decoding step of a Llama-like model in few kernels, with the weights of its Hugging Face modules.

A layer takes seven launches for one row and nine for several rows, a mixture of experts one more: projections of the
same input share a launch, and norms, biases, rotary embeddings, cache writes, gated activations and residual sums are
part of the same kernels. Each weight is read once and none is copied. The design is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saccade.inference.engine.attention import runs_kernels
from saccade.inference.engine.cache import KVCache
from saccade.inference.engine.compressed.cache import RaggedCache
from saccade.inference.engine.fused.parts import Attention, Gated, Matrix, Mixture, SubLayer, norm_of, read_sublayers
from saccade.inference.engine.fused.reference import (
    Norm,
    reference_add,
    reference_experts,
    reference_experts_add,
    reference_linear,
    reference_rotate,
    rms_norm,
)
from saccade.inference.huggingface.models import base_model, language_part, text_config


class FusedStep:
    """The model's forward for a few new tokens. Every call reads the current weights of the Hugging Face modules.

    Args:
        model: A model for which :func:`why_not_fused` returns an empty string.
    """

    def __init__(self, model: nn.Module) -> None:
        inner = base_model(model)
        part = language_part(inner)
        self.head = Matrix(inner.get_submodule("lm_head"))
        self.base: Any = part.get_submodule("model") if part is inner else part
        self.sublayers = read_sublayers(model)
        self.layers = 1 + max(item.layer for item in self.sublayers)
        config = text_config(inner)
        self.embedding_factor = float(getattr(self.base, "embedding_multiplier", 1.0))
        self.logits_divisor = float(getattr(config, "logits_scaling", 1.0))
        self.logits_cap: float | None = getattr(config, "final_logit_softcapping", None)

    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        lengths: Tensor,
        ancestors: Tensor,
        depths: Tensor,
        storage: KVCache | RaggedCache,
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
        if self.embedding_factor != 1:
            hidden = hidden * self.embedding_factor
        angles = self._angles(hidden, positions)
        chosen = [
            item
            for item in self.sublayers
            if item.layer not in (skipped_attention if isinstance(item.part, Attention) else skipped_mlp)
        ]
        stream = _Stream(kernels, hidden.view(batch * nodes, -1), chosen, norm_of(self.base.norm))
        # every sub-layer makes a new residual stream and never writes in place, so a reference to it stays valid
        last = observed % self.layers if isinstance(observed, int) else -1
        states = None
        for item in chosen:
            if isinstance(item.part, Attention):
                packed = stream.enter(item.part.inputs)
                keys, values, units = storage.targets(item.layer, batch)
                turn = angles[item.part.kind if item.part.rotated else ""]
                query = kernels.rotate(packed, *turn, lengths, keys, values, norms=item.part.head_norms(), units=units)
                mixed = storage.attend(
                    item.layer, query, lengths, ancestors, depths, item.part.scaling, item.part.window
                )
                stream.leave(mixed.reshape(batch * nodes, -1), item.part.output)
            elif isinstance(item.part, Gated):
                stream.leave(stream.enter(item.part.inputs, item.part.gated), item.part.output)
            else:
                stream.mix(item.part)
            if item.layer <= last:
                states = stream.hidden
        logits = self._capped(stream.enter((self.head,))).view(batch, nodes, -1)
        if isinstance(observed, str):
            states = kernels.norm(stream.hidden, norm_of(self.base.norm))
        return logits, None if states is None else states.view(batch, nodes, -1)

    def _angles(self, hidden: Tensor, positions: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Cosines and sines ``[batch, nodes, head_dim]`` for each kind of layer; under ``""`` those of no rotation."""
        rotary = self.base.rotary_emb
        kinds = {item.part.kind for item in self.sublayers if isinstance(item.part, Attention)}
        found = {}
        if hasattr(rotary, "layer_types"):
            made = {kind: rotary(hidden, positions, kind) for kind in kinds}
        else:
            # a text token has the same position on all axes of M-RoPE, so the first axis is enough
            axes = hasattr(rotary, "mrope_section")
            made = dict.fromkeys(kinds, rotary(hidden, positions[None].expand(3, -1, -1) if axes else positions))
        ready: dict[int, tuple[Tensor, Tensor]] = {}
        for kind, pair in made.items():
            if id(pair) not in ready:
                whole = ((part[0] if part.ndim == 4 else part) for part in pair)
                cos, sin = (part.expand(*positions.shape, -1).contiguous() for part in whole)
                ready[id(pair)] = cos, sin
            found[kind] = ready[id(pair)]
        if any(isinstance(item.part, Attention) and not item.part.rotated for item in self.sublayers):
            cos, sin = next(iter(found.values()))
            found[""] = torch.ones_like(cos), torch.zeros_like(sin)
        return found

    def _capped(self, logits: Tensor) -> Tensor:
        if self.logits_divisor != 1:
            logits = logits / self.logits_divisor
        return logits if self.logits_cap is None else torch.tanh(logits / self.logits_cap) * self.logits_cap


class _Stream:
    """The residual stream. With one row the consumer applies the RMSNorm; with several rows the producer does.

    Where sub-layers end in a norm, the producer sees their whole output anyway and applies both, also for one row.
    """

    def __init__(self, kernels: _Kernels, hidden: Tensor, sublayers: Sequence[SubLayer], last: Norm) -> None:
        self.kernels, self.hidden, self.sublayers = kernels, hidden, sublayers
        self.norms = [*(norm_of(item.before) for item in sublayers), last]
        late = len(hidden) == 1 and all(item.after is None for item in sublayers)
        self.ready = None if late else kernels.norm(hidden, self.norms[0])
        self.place = 0

    @property
    def _input(self) -> tuple[Tensor, Norm | None]:
        """The input of a sub-layer, and the norm that is still to be applied."""
        return (self.hidden, self.norms[self.place]) if self.ready is None else (self.ready, None)

    def enter(self, parts: Sequence[Matrix], gated: str | None = None) -> Tensor:
        """Projects the normalized stream, the input of a sub-layer."""
        inputs, norm = self._input
        weights, biases, adapters = zip(*(part.read() for part in parts), strict=True)
        return self.kernels.linear(inputs, weights, biases, norm=norm, gated=gated, adapters=adapters)

    def leave(self, inputs: Tensor, part: Matrix) -> None:
        """Adds the output projection of a sub-layer to the stream."""
        item = self.sublayers[self.place]
        self.place += 1
        weight, bias, adapter = part.read()
        if self.ready is None:
            self.hidden = self.kernels.linear(
                inputs, [weight], [bias], residual=self.hidden, factor=item.factor, adapters=[adapter]
            )
            return
        self.hidden, self.ready = self.kernels.add(
            inputs, weight, bias, self.hidden, self.norms[self.place], factor=item.factor, adapter=adapter,
            after=None if item.after is None else norm_of(item.after),
        )  # fmt: skip

    def mix(self, part: Mixture) -> None:
        """Adds the outputs of the experts that the router chooses to the stream."""
        item, (inputs, norm) = self.sublayers[self.place], self._input
        weights, biases = [part.router.weight], [None]
        if part.shared_gate is not None:
            weights, biases = [*weights, part.shared_gate.weight], [None, None]
        # one launch for the router and the gate of the shared expert, whose logit comes last
        logits = self.kernels.linear(inputs, weights, biases, norm=norm)
        hidden, experts = self.hidden, part.read()
        if part.shared is not None:
            inner = self.enter(part.shared.inputs, part.shared.gated) * torch.sigmoid(logits[:, -1:])
            weight, bias, adapter = part.shared.output.read()
            hidden = self.kernels.linear(
                inner, [weight], [bias], residual=hidden, factor=item.factor, adapters=[adapter]
            )
        self.place += 1
        if self.ready is None:
            self.hidden = self.kernels.experts(inputs, logits, experts, hidden, norm=norm, factor=item.factor)
            return
        self.hidden, self.ready = self.kernels.experts_add(
            inputs, logits, experts, hidden, self.norms[self.place], factor=item.factor
        )


@dataclass(frozen=True)
class _Kernels:
    """The operations of a step: the torch references, or the Triton kernels that compute the same."""

    linear: Callable[..., Tensor] = reference_linear
    add: Callable[..., tuple[Tensor, Tensor]] = reference_add
    norm: Callable[..., Tensor] = rms_norm
    rotate: Callable[..., Tensor] = reference_rotate
    experts: Callable[..., Tensor] = reference_experts
    experts_add: Callable[..., tuple[Tensor, Tensor]] = reference_experts_add


def _kernels(like: Tensor) -> _Kernels:
    if runs_kernels(like):
        from saccade.inference.engine.kernels.experts import triton_experts, triton_experts_add
        from saccade.inference.engine.kernels.linear import triton_add, triton_linear
        from saccade.inference.engine.kernels.norms import triton_norm
        from saccade.inference.engine.kernels.rotation import triton_rotate

        return _Kernels(triton_linear, triton_add, triton_norm, triton_rotate, triton_experts, triton_experts_add)
    return _Kernels()
