"""The only file that touches transformers' cache and attention internals.

Everything Saccade needs from inside a Hugging Face model passes through here, so that a new transformers release
is one file to read. Works on transformers 5.17 to 5.23. Nothing is changed at import; what is changed on a model is
changed inside a context manager that restores it, also after an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import Cache, CacheLayerMixin

from saccade.inference.engine.attention import decode_attention
from saccade.inference.engine.observation import watching

if TYPE_CHECKING:
    from saccade.inference.engine.cache import KVCache

ATTENTION_NAME = "saccade"
_DEVICE_STEP: ContextVar[tuple[Tensor, Tensor] | None] = ContextVar("saccade_device_step", default=None)


@contextmanager
def device_step(lengths: Tensor, ancestors: Tensor) -> Iterator[None]:
    """Within this context a model's attention takes lengths and tree from the device (`decode_attention`).

    Args:
        lengths: ``[batch]`` slots in use before the step.
        ancestors: ``[nodes]`` bits of the tree.
    """
    token = _DEVICE_STEP.set((lengths, ancestors))
    try:
        yield
    finally:
        _DEVICE_STEP.reset(token)


def session_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention over "prefix + token tree" as transformers' attention interface expects it.

    Grouped queries are folded into the query axis, so that key and value heads are never expanded.

    Args:
        module: The attention module that calls.
        query: ``[batch, heads, tokens, head_dim]``.
        key: ``[batch, kv_heads, slots, head_dim]``, the used part of the preallocated cache.
        value: Like ``key``.
        attention_mask: ``[batch or 1, 1, tokens, slots]``, true where a token may look, from the session.
            ``None``: causal when several tokens fill an empty cache, everything visible to a single token.
        dropout: Ignored; a session never trains.
        scaling: Factor on the scores; ``None`` is ``head_dim ** -0.5``.

    Returns:
        ``[batch, tokens, heads, head_dim]`` and ``None`` for the attention weights.
    """
    batch, heads, tokens, head_dim = query.shape
    kv_heads, slots = key.shape[1], key.shape[2]
    groups = heads // kv_heads
    if (watcher := watching()) is not None:
        watcher.add(query, key, scaling)
    if (step := _DEVICE_STEP.get()) is not None:
        return decode_attention(query, key, value, *step, scaling=scaling), None
    if attention_mask is None and tokens > 1:
        # a later piece of a prompt: its last token sees all slots
        shape: Any = {"is_causal": True} if slots == tokens else {"attn_mask": causal_lower_right(tokens, slots)}
        out = scaled_dot_product_attention(query, key, value, **shape, scale=scaling, enable_gqa=groups > 1)
        return out.transpose(1, 2).contiguous(), None
    if groups > 1:
        query = query.reshape(batch, kv_heads, groups * tokens, head_dim)
        if attention_mask is not None:
            rows, slots = attention_mask.shape[0], attention_mask.shape[-1]
            attention_mask = attention_mask.expand(rows, groups, tokens, slots).reshape(rows, 1, groups * tokens, slots)
    out = scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(batch, heads, tokens, value.shape[-1]).transpose(1, 2).contiguous(), None


class _SessionLayer(CacheLayerMixin):
    """One layer of a session's cache in the shape transformers expects; the storage is the session's."""

    is_sliding = False

    def __init__(self, storage: KVCache, index: int) -> None:
        super().__init__()
        self.storage, self.index = storage, index

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the storage allocates itself at its first write."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes new states ``[batch, kv_heads, tokens, head_dim]`` at the session's slots."""
        return self.storage.write(self.index, key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys visible in this step, and the offset of the first."""
        return self.storage.extent, 0

    def get_seq_length(self) -> int:
        """Slots in use before this step."""
        return self.storage.start

    def get_max_length(self) -> int:
        """Capacity in tokens."""
        return self.storage.capacity


def session_cache(storage: KVCache, layers: int) -> Cache:
    """A transformers ``Cache`` over ``layers`` layers whose storage is the session's preallocated buffers."""
    return Cache(layers=[_SessionLayer(storage, index) for index in range(layers)])


def text_config(model: Any) -> Any:
    """The configuration of the language part of a Hugging Face model."""
    return model.config.get_text_config(decoder=True)


def language_part(model: nn.Module) -> nn.Module:
    """The language part of a vision-language model: its embedding, decoder layers and final norm; else the model."""
    return next((part for path, part in model.named_modules() if path.split(".")[-1] == "language_model"), model)


def device_of(model: Any) -> torch.device:
    """The device on which a Hugging Face model takes its token ids."""
    device: torch.device = model.get_input_embeddings().weight.device
    return device


def precision_of(model: Any) -> torch.dtype:
    """The precision of a Hugging Face model's weights."""
    precision: torch.dtype = model.get_input_embeddings().weight.dtype
    return precision


def last_position(model: Any) -> int:
    """Index of the last position that a model knows; beyond all texts where its configuration names none."""
    context = getattr(text_config(model), "max_position_embeddings", None)
    return 2**62 if context is None else int(context) - 1


def cache_bytes(model: Any, batch: int, capacity: int) -> int:
    """Size in bytes of a key-value cache in the model's precision."""
    config = text_config(model)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    slots = 2 * config.num_hidden_layers * batch * capacity
    return int(slots * heads * head_dim * precision_of(model).itemsize)


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be allocated on a CUDA device; ``None`` elsewhere."""
    if device.type != "cuda":
        return None
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + held)


def is_sharded(model: nn.Module) -> bool:
    """Whether DeepSpeed ZeRO-3 has spread the model's weights over several ranks."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    spread = any(hasattr(weight, "ds_id") for weight in model.parameters())
    return spread and torch.distributed.get_world_size() > 1


def check_supported(model: nn.Module) -> None:
    """Refuses models whose cache or attention a session cannot drive exactly.

    Raises:
        ValueError: Names the property that stands in the way.
    """
    name = type(model).__name__
    if not hasattr(model, "config") or not hasattr(model.config, "get_text_config"):
        raise ValueError(f"{name} is not a Hugging Face model: pass a model loaded with AutoModelForCausalLM.")
    config = text_config(model)
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"{name} is an encoder-decoder: decoders work on decoder-only language models.")
    if not getattr(model, "_supports_attention_backend", False):
        raise ValueError(f"{name} does not use transformers' attention interface: its attention cannot be driven.")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(
            f"{name} has {', '.join(sorted(kinds - {'full_attention'}))} layers: only full attention is supported."
        )
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "layer_types", None) is None:
        raise ValueError(f"{name} uses a sliding window of {window}: set config.sliding_window to None.")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in {"dynamic", "longrope"}:
        raise ValueError(
            f"{name} has {rope['rope_type']} rotary scaling, whose frequencies change with the length of the text: "
            "no cached decoder can be exact with it; use linear, yarn or llama3 scaling."
        )
    if getattr(config, "attn_logit_softcapping", None) is not None:
        raise ValueError(f"{name} caps its attention logits: not supported by the session's attention.")


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers of a model, each with the sub-layers ``self_attn`` and ``mlp``.

    Args:
        model: A Hugging Face causal language model; PEFT wrappers are looked through.

    Raises:
        ValueError: When the layers are not of the pre-norm form (norm, attention, norm, MLP) that sub-layer skipping
            knows.
    """
    found = [
        child
        for child in language_part(model).modules()
        if isinstance(child, nn.ModuleList)
        and len(child) > 0
        and all(hasattr(layer, "self_attn") and hasattr(layer, "mlp") for layer in child)
    ]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(found)} lists of decoder layers with self_attn and mlp, 1 is needed: "
            "sub-layer skipping knows Llama-, Qwen2- and Qwen3-shaped models."
        )
    layers = list(found[0])
    for index, layer in enumerate(layers):
        names = {name for name, _ in layer.named_children()}
        if names != {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}:
            raise ValueError(
                f"layer {index} of {type(model).__name__} has the parts {', '.join(sorted(names))}: sub-layer skipping "
                "knows layers of input_layernorm, self_attn, post_attention_layernorm and mlp."
            )
    return layers


class SublayerSkip:
    """Lets a model run with some sub-layers skipped, without touching its weights.

    A skipped sub-layer is the identity on the residual stream and its norm is not computed (Draft & Verify,
    arXiv 2309.08168). The model is changed inside ``active()`` only, which is entered for single forwards: between
    them it is the user's own, and several skip sets can take turns on it.

    Args:
        model: A Llama-, Qwen2- or Qwen3-shaped causal language model.
        attention: Indices of the layers whose attention is skipped.
        mlp: Indices of the layers whose MLP is skipped.

    Raises:
        ValueError: An index outside the model's layers, or a model of another form.
    """

    def __init__(self, model: nn.Module, attention: Collection[int], mlp: Collection[int]) -> None:
        self.layers = decoder_layers(model)
        for name, indices in (("attention", attention), ("mlp", mlp)):
            wrong = sorted(index for index in set(indices) if not 0 <= index < len(self.layers))
            if wrong:
                raise ValueError(
                    f"skip.{name} names layer {wrong[0]}, but the model's layers are 0 to {len(self.layers) - 1}: "
                    "search a skip set for this model."
                )
        self.attention, self.mlp = frozenset(attention), frozenset(mlp)
        self._forwards = {
            index: self._forward(self.layers[index], index not in self.attention, index not in self.mlp)
            for index in sorted(self.attention | self.mlp)
        }

    @contextmanager
    def active(self) -> Iterator[SublayerSkip]:
        """Within this context the chosen sub-layers are skipped; restored on the way out, also after an exception.

        Raises:
            ValueError: A layer's forward is patched already.
        """
        changed: list[Any] = []
        try:
            for index, forward in self._forwards.items():
                layer: Any = self.layers[index]
                if "forward" in vars(layer):
                    raise ValueError(f"layer {index} has been patched by somebody else: detach that first.")
                layer.forward = forward
                changed.append(layer)
            yield self
        finally:
            for layer in changed:
                del layer.forward

    def _forward(self, layer: Any, keep_attention: bool, keep_mlp: bool) -> Callable[..., Tensor]:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if keep_attention:
                normed = layer.input_layernorm(hidden_states)
                hidden_states = hidden_states + layer.self_attn(normed, *args, **kwargs)[0]
            if keep_mlp:
                hidden_states = hidden_states + layer.mlp(layer.post_attention_layernorm(hidden_states))
            return hidden_states

        return forward


@contextmanager
def layer_output(model: nn.Module, layer: int | str | None) -> Iterator[list[Tensor]]:
    """Within this context the output ``[batch, tokens, hidden]`` of a decoder layer is put into the yielded list.

    Args:
        model: A model whose decoder layers are known.
        layer: Its index, negative from the end, or ``"norm"`` for the final norm; ``None`` for none.
    """
    if layer is None:
        yield []
        return
    layers = decoder_layers(model)
    part = language_part(model)
    part = part.get_submodule("model") if part is model else part
    watched = part.get_submodule("norm") if isinstance(layer, str) else layers[layer]
    taken: list[Tensor] = []
    handle = watched.register_forward_hook(lambda module, given, made: taken.append(made))
    try:
        yield taken
    finally:
        handle.remove()


@contextmanager
def skipped_sublayers(model: nn.Module, attention: Collection[int], mlp: Collection[int]) -> Iterator[None]:
    """Runs the model with the given sub-layers skipped for the length of the context."""
    with SublayerSkip(model, attention, mlp).active():
        yield


class SessionAttention:
    """Hands a model's attention to a session, and puts the model in evaluation mode, for single forwards.

    Between the forwards the model is the user's own: a stream may be left unfinished, two may take turns, and a target
    may share its configuration, or all of itself, with its draft.

    Args:
        model: A supported Hugging Face model.
    """

    def __init__(self, model: nn.Module) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(ATTENTION_NAME, session_attention)
        self._parts: list[Any] = list(model.modules())
        configs = {id(part.config): part.config for part in self._parts if hasattr(part, "config")}
        self._configs = [item for item in configs.values() if hasattr(item, "_attn_implementation_internal")]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within this context the model is the session's; restored on the way out, also after an exception."""
        before = [config._attn_implementation_internal for config in self._configs]
        training = [part for part in self._parts if part.training]
        try:
            for config in self._configs:
                config._attn_implementation_internal = ATTENTION_NAME
            for part in training:
                part.training = False
            yield
        finally:
            for config, implementation in zip(self._configs, before, strict=True):
                config._attn_implementation_internal = implementation
            for part in training:
                part.training = True


def generation_settings(model: nn.Module, config: Any = None) -> dict[str, Any]:
    """EOS ids and the padding id from a model's (or the given) generation configuration.

    Returns:
        ``eos`` (tuple of ids, may be empty) and ``pad`` (id or ``None``).
    """
    given, config = config is not None, config if config is not None else getattr(model, "generation_config", None)
    eos = getattr(config, "eos_token_id", None)
    if eos is None and not given:
        eos = getattr(text_config(model), "eos_token_id", None)
    if isinstance(eos, torch.Tensor):
        eos = eos.tolist()
    ids = () if eos is None else tuple(eos) if isinstance(eos, (list, tuple)) else (int(eos),)
    return {"eos": ids, "pad": getattr(config, "pad_token_id", None)}


_REFUSED = {
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_new_tokens": None,
    "min_length": 0,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "num_return_sequences": 1,
    "penalty_alpha": None,
    "max_time": None,
    "stop_strings": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": None,
    "sequence_bias": None,
    "watermarking_config": None,
    "top_h": None,
    "output_scores": False,
    "output_logits": False,
    "output_attentions": False,
    "output_hidden_states": False,
}


# what model.generate itself hands on for every text model; a session has its own cache and positions
_KNOWN_INPUTS = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep", "cache_position"}


def refuse_unknown_inputs(names: Iterable[str], known: Collection[str] = ()) -> None:
    """Refuses inputs of ``model.generate`` that would silently have no effect.

    Args:
        names: Of the inputs that are given.
        known: Further inputs that a decoder reads, for example videos.

    Raises:
        ValueError: Names the input.
    """
    for name in names:
        if name not in _KNOWN_INPUTS and name not in known:
            more = f" and {', '.join(known)}" if known else " alone"
            raise ValueError(f"the input {name} is not supported by Saccade's decoders: they read input_ids{more}.")


def refuse_other_positions(positions: Any, attention_mask: Any) -> None:
    """Refuses positions of a text that do not count its tokens from 0: a session counts them itself.

    Args:
        positions: ``position_ids`` of ``model.generate``; those of several axes belong to images and videos.
        attention_mask: Its ``attention_mask``; ``None`` is all tokens.

    Raises:
        ValueError: Names the input.
    """
    if not isinstance(positions, torch.Tensor) or positions.ndim != 2:
        return
    mask = torch.ones_like(positions) if attention_mask is None else attention_mask.to(positions)
    if mask.shape != positions.shape or bool(((positions != mask.cumsum(-1) - 1) & mask.bool()).any()):
        raise ValueError("position_ids that do not count the tokens from 0 are not supported: leave them out.")


def refuse_unsupported_generation(config: Any, logits_processor: Any, stopping_criteria: Any) -> None:
    """Refuses settings of ``model.generate`` that a speculative decoder would otherwise silently ignore.

    Raises:
        ValueError: Names the setting and its value.
    """
    for name, neutral in _REFUSED.items():
        value = getattr(config, name, neutral)
        if value is not None and value != neutral:
            raise ValueError(f"{name}={value!r} is not supported by Saccade's decoders: leave it at its default.")
    known = {"TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper"}
    for processor in logits_processor or []:
        if type(processor).__name__ not in known:
            raise ValueError(
                f"logits processor {type(processor).__name__} is not supported by Saccade's decoders: they know "
                "temperature, top-k and top-p."
            )
    for criterion in stopping_criteria or []:
        if type(criterion).__name__ not in {"MaxLengthCriteria", "EosTokenCriteria"}:
            raise ValueError(
                f"stopping criterion {type(criterion).__name__} is not supported by Saccade's decoders: they stop at "
                "EOS and at the length limit."
            )
