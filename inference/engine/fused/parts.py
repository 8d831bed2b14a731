"""What a fused step reads of a model's layers, found by their properties, and which models it can run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from saccade.inference.engine.fused.reference import Experts, LowRank, Norm
from saccade.inference.huggingface.models import (
    base_model,
    language_part,
    layer_kinds,
    layer_windows,
    rotary_settings,
    text_config,
)
from saccade.inference.huggingface.sublayer_skip import decoder_layers, sublayers

FUSED = {
    "GemmaForCausalLM",
    "Gemma3ForCausalLM",
    "GraniteForCausalLM",
    "GraniteMoeForCausalLM",
    "InternVLForConditionalGeneration",
    "LlamaForCausalLM",
    "LlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
    "MinistralForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
    "SeedOssForCausalLM",
    "SmolLM3ForCausalLM",
}
"""The classes whose layers are what their properties say, as tests compare. Others of the same shape may not be."""
_LANGUAGE_PARTS = {
    "LlamaModel",
    "Qwen2Model",
    "Qwen2VLTextModel",
    "Qwen2_5_VLTextModel",
    "Qwen3Model",
    "Qwen3VLMoeTextModel",
    "Qwen3VLTextModel",
}
"""Of vision-language models; behind a prompt they compute what their language models do."""
_GATES = {"SiLU": "silu", "SiLUActivation": "silu", "GELUTanh": "gelu", "PytorchGELUTanh": "gelu"}
_LORA = ("peft.tuners.lora.layer", "Linear")


@dataclass(frozen=True)
class Matrix:
    """A matrix as kernels read it: a whole linear layer, or a part of its outputs.

    Args:
        module: The linear layer, perhaps with an adapter of PEFT around it.
        part: Which of ``parts`` equal parts of the outputs.
        parts: Number of parts.
    """

    module: Any
    part: int = 0
    parts: int = 1

    def read(self) -> tuple[Tensor, Tensor | None, LowRank | None]:
        """The current weight, bias and active adapter; views, no copies."""
        layer = getattr(self.module, "base_layer", self.module)
        adapter = _adapter(self.module)
        bias = layer.bias
        return (
            self._cut(layer.weight),
            None if bias is None else self._cut(bias),
            None if adapter is None else adapter._replace(up=self._cut(adapter.up)),
        )

    def _cut(self, whole: Tensor) -> Tensor:
        return whole if self.parts == 1 else whole.detach().chunk(self.parts)[self.part]


@dataclass(frozen=True)
class Attention:
    """An attention sub-layer: the projections to queries, keys and values, that of the output, and what is between."""

    inputs: tuple[Matrix, ...]
    output: Matrix
    norms: tuple[Any, Any] | None
    scaling: float
    window: int | None
    rotated: bool
    kind: str

    def head_norms(self) -> tuple[Norm, Norm] | None:
        """The norms of queries and keys, or ``None``."""
        return None if self.norms is None else (norm_of(self.norms[0]), norm_of(self.norms[1]))


@dataclass(frozen=True)
class Gated:
    """A gated MLP: gate and up projection of the same input, then the projection of their product."""

    inputs: tuple[Matrix, ...]
    output: Matrix
    gated: str


@dataclass(frozen=True)
class Mixture:
    """A mixture of experts, perhaps with one expert that every token takes, times a gate of its own."""

    router: Any
    experts: Any
    gated: str
    shared: Gated | None = None
    shared_gate: Any = None

    def read(self) -> Experts:
        """The current weights of the experts."""
        normalised = bool(getattr(self.router, "norm_topk_prob", True))
        return Experts(
            self.experts.gate_up_proj, self.experts.down_proj, int(self.router.top_k), normalised, self.gated
        )


@dataclass(frozen=True)
class SubLayer:
    """A sub-layer with its norms: ``stream + factor * after(part(before(stream)))``."""

    layer: int
    part: Attention | Gated | Mixture
    before: Any
    after: Any
    factor: float


def norm_of(module: Any) -> Norm:
    """The RMSNorm of a module. Gemma's ``eps`` marks weights that count from 1."""
    if hasattr(module, "variance_epsilon"):
        return Norm(module.weight, module.variance_epsilon)
    return Norm(module.weight, module.eps, 1.0)


def read_sublayers(model: nn.Module) -> list[SubLayer]:
    """The sub-layers of a model for which :func:`why_not_fused` returns an empty string, in their order."""
    found = []
    windows, kinds = layer_windows(model), layer_kinds(model)
    for index, layer in enumerate(decoder_layers(base_model(model))):
        attention, mlp = _attention(layer, windows[index], kinds[index]), _mlp(sublayers(layer)[1])
        names: Any = layer
        factor = float(getattr(layer, "residual_multiplier", 1.0))
        if hasattr(layer, "pre_feedforward_layernorm"):
            norms = (names.pre_feedforward_layernorm, names.post_feedforward_layernorm)
            found.append(SubLayer(index, attention, names.input_layernorm, names.post_attention_layernorm, factor))
            found.append(SubLayer(index, mlp, *norms, factor))
        else:
            found.append(SubLayer(index, attention, names.input_layernorm, None, factor))
            found.append(SubLayer(index, mlp, names.post_attention_layernorm, None, factor))
    return found


def _attention(layer: Any, window: int | None, kind: str) -> Attention:
    own = layer.self_attn
    packed = hasattr(own, "qkv_proj")
    names = ("qkv_proj",) if packed else ("q_proj", "k_proj", "v_proj")
    return Attention(
        inputs=tuple(Matrix(getattr(own, name)) for name in names),
        output=Matrix(own.o_proj),
        norms=(own.q_norm, own.k_norm) if hasattr(own, "q_norm") else None,
        scaling=own.scaling,
        window=window,
        rotated=bool(getattr(own, "use_rope", True)),
        kind=kind,
    )


def _mlp(part: Any) -> Gated | Mixture:
    if not hasattr(part, "experts"):
        return _gated(part)
    shared = getattr(part, "shared_expert", None)
    return Mixture(
        router=part.gate if hasattr(part, "gate") else part.router,
        experts=part.experts,
        gated=_GATES[type(part.experts.act_fn).__name__],
        shared=None if shared is None else _gated(shared),
        shared_gate=getattr(part, "shared_expert_gate", None),
    )


def _gated(part: Any) -> Gated:
    if hasattr(part, "gate_up_proj"):
        inputs: Sequence[Matrix] = [Matrix(part.gate_up_proj, place, 2) for place in range(2)]
    else:
        inputs = [Matrix(part.gate_proj), Matrix(part.up_proj)]
    return Gated(tuple(inputs), Matrix(part.down_proj), _GATES[type(_activation(part)).__name__])


def _activation(part: Any) -> Any:
    return next(getattr(part, name) for name in ("act_fn", "activation_fn") if hasattr(part, name))


def _adapter(module: Any) -> LowRank | None:
    """The active adapter of a linear layer; ``None`` where there is none, or its weights are merged."""
    if not hasattr(module, "base_layer") or module.disable_adapters or module.merged:
        return None
    active = [name for name in module.active_adapters if name in module.lora_A]
    if not active:
        return None
    return LowRank(module.lora_A[active[0]].weight, module.lora_B[active[0]].weight, float(module.scaling[active[0]]))


def why_not_fused(model: nn.Module) -> str:
    """The reason why the fused step cannot run a model, or an empty string.

    Models of other classes, with hooks, with adapters that are not plain LoRA or spread over several devices are run
    with their own modules, which may still be captured as a graph.
    """
    inner = base_model(model)
    name = type(inner).__name__
    part = language_part(inner)
    if name not in FUSED or type(part).__name__ not in _LANGUAGE_PARTS | {name}:
        return f"{name} is not a supported model class"
    return next(_obstacles(model, inner, part, name), "")


def _obstacles(model: nn.Module, inner: nn.Module, part: nn.Module, name: str) -> Iterator[str]:
    config = text_config(inner)
    head = [] if part is inner else [("lm_head", inner.get_submodule("lm_head"))]
    modules = [*part.named_modules(), *head]
    named = [*part.named_parameters(), *(item for _, module in head for item in module.named_parameters())]
    for path, weight in named:
        if type(weight) is not nn.Parameter:
            yield f"{path} is a {type(weight).__name__}, not a plain tensor"
    weights = [weight for path, weight in named if ".lora_" not in path]
    if len({(weight.device, weight.dtype) for weight in weights}) > 1:
        yield "its weights are on several devices or have several precisions"
    wrappers = [("", item) for item in model.modules() if item is not inner] if model is not inner else []
    outside = {id(item) for _, item in modules}
    for path, module in [*modules, *((path, item) for path, item in wrappers if id(item) not in outside)]:
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            yield f"{path or name} has a hook or a changed forward"
        kind = type(module)
        last = path.rpartition(".")[2]
        if last.endswith(("_proj", "lm_head", "shared_expert_gate")):
            if (kind.__module__, kind.__name__) == _LORA:
                yield from _adapter_obstacles(path, module)
            elif kind is not nn.Linear:
                yield f"{path} is a {kind.__name__}, not a plain Linear"
        elif hasattr(module, "base_layer"):
            yield f"{path} is a {kind.__name__} of an adapter"
        elif last in ("act_fn", "activation_fn") and kind.__name__ not in _GATES:
            yield f"its activation is {kind.__name__}"
    if any(not weight.is_contiguous() for _, weight in named):
        yield "a weight is not contiguous"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        yield "its scores are capped"
    for layer in decoder_layers(inner):
        own: Any = layer
        norm = getattr(own.self_attn, "q_norm", None)
        if norm is not None and len(norm.weight) != own.self_attn.head_dim:
            yield "the norms of its queries span all heads"
    for rope in rotary_settings(config):
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            yield "a part of each head is not rotated"


def _adapter_obstacles(path: str, module: Any) -> Iterator[str]:
    active = [name for name in module.active_adapters if name in module.lora_A]
    if type(module.base_layer) is not nn.Linear:
        yield f"the base of {path} is a {type(module.base_layer).__name__}, not a plain Linear"
    if module.disable_adapters and module.merged:
        yield f"the adapter of {path} is merged, but switched off"
    if len(active) > 1:
        yield f"{path} has {len(active)} active adapters"
    for name in active:
        if name in module.lora_variant or module.lora_B[name].bias is not None:
            yield f"the adapter of {path} is not plain LoRA"
        if module.lora_A[name].weight.dtype != module.lora_B[name].weight.dtype:
            yield f"the adapter of {path} has two precisions"


def adapter_states(model: nn.Module) -> tuple[Any, ...]:
    """What adapters of PEFT keep on the host: which are active, merged or switched off, and their factors."""
    layers: list[Any] = [part for part in model.modules() if hasattr(part, "base_layer")]
    return tuple(
        (
            tuple(layer.active_adapters),
            layer.disable_adapters,
            tuple(layer.merged_adapters),
            tuple(sorted((name, float(value)) for name, value in getattr(layer, "scaling", {}).items())),
        )
        for layer in layers
        if hasattr(layer, "merged_adapters")
    )
