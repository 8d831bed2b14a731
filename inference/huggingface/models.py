"""What decoders ask of a Hugging Face model: its text configuration, device, limits, and whether it can be driven."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from saccade.inference.recurrent.mixers import called_names, why_not_followed

_FULL = "full_attention"
# Layers that see a part of the prefix, and the setting of a configuration that says how much.
_LOCAL = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
# Layers with a state that every token changes: in the place of attention, or beside it.
_RECURRENT = frozenset({"conv", "linear_attention", "mamba"})
_HYBRID = "hybrid"
# Layers that neither attend nor remember.
_WITHOUT = frozenset({"mlp", "moe"})
# What transformers' vision-language models call their language part.
_LANGUAGE_PARTS = ("language_model", "text_model")
# Rotary scalings whose frequencies do not change with the length of the text; the factor says how far they reach.
_FIXED_SCALINGS = ("linear", "yarn", "llama3")


def text_config(model: Any) -> Any:
    """The configuration of the language part of a Hugging Face model."""
    return model.config.get_text_config(decoder=True)


def language_part(model: nn.Module) -> nn.Module:
    """The language part of a vision-language model: its embedding, decoder layers and final norm; else the model."""
    return next((part for path, part in model.named_modules() if _is_language(path)), model)


def _is_language(path: str) -> bool:
    return path.rpartition(".")[2] in _LANGUAGE_PARTS


def towers(model: nn.Module) -> list[nn.Module]:
    """What stands beside the language part as a model of its own and reads images, videos or sound, not text."""
    path, part = next(((path, part) for path, part in model.named_modules() if _is_language(path)), ("", model))
    if part is model:
        return []
    beside = model.get_submodule(path.rpartition(".")[0]).children()
    return [child for child in beside if child is not part and hasattr(child, "config")]


def base_model(model: Any) -> Any:
    """The Hugging Face model inside wrappers of PEFT; the model itself where there are none."""
    wrapped: Any = model
    while hasattr(wrapped, "peft_config") and hasattr(wrapped, "get_base_model"):
        wrapped = wrapped.get_base_model()
    inner: nn.Module = wrapped
    return inner


def takes_logits_to_keep(model: nn.Module) -> bool:
    """Whether a model's forward names ``logits_to_keep``, as seen through wrappers of PEFT.

    A forward with ``**kwargs`` may swallow it, so it is not handed over there; see :func:`kept_logits`.
    """
    return "logits_to_keep" in inspect.signature(base_model(model).forward).parameters


def kept_logits(logits: Tensor, keep: Tensor | int, tokens: int) -> Tensor:
    """The wanted logits, whether or not the model has left out the others.

    Args:
        logits: ``[batch, tokens or kept, vocabulary]``, as a forward returned them.
        keep: Indices of the wanted places; a number counts them from the end, 0 is all.
        tokens: Places that the forward has read.

    Returns:
        ``[batch, kept, vocabulary]``.

    Raises:
        ValueError: Neither all places nor the wanted ones came back.
    """
    wanted = len(keep) if isinstance(keep, Tensor) else keep or tokens
    if logits.shape[1] == wanted:
        return logits
    if logits.shape[1] != tokens:
        raise ValueError(
            f"the forward returned logits of {logits.shape[1]} places, {wanted} of {tokens} were wanted: its "
            "logits_to_keep must be that of transformers."
        )
    return logits[:, keep.to(logits.device)] if isinstance(keep, Tensor) else logits[:, -wanted:]


def device_of(model: Any) -> torch.device:
    """The device on which a Hugging Face model takes its token ids, also where accelerate has offloaded its weights."""
    embedding = model.get_input_embeddings()
    device: torch.device = embedding.weight.device
    if device.type == "meta":
        hook = getattr(embedding, "_hf_hook", None)
        for each in getattr(hook, "hooks", [hook]):
            place = getattr(each, "execution_device", None)
            if place is not None:
                return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
    return device


def weights_in_place(model: nn.Module) -> bool:
    """Whether all weights lie where they are used: none on ``meta``, none moved by accelerate for each forward."""
    return not any(weight.is_meta for weight in model.parameters()) and not any(
        getattr(each, "offload", False)
        for part in model.modules()
        for each in getattr(getattr(part, "_hf_hook", None), "hooks", [getattr(part, "_hf_hook", None)])
    )


def precision_of(model: Any) -> torch.dtype:
    """The precision of a Hugging Face model's weights."""
    precision: torch.dtype = model.get_input_embeddings().weight.dtype
    return precision


def last_position(model: Any) -> int:
    """Index of the last position in a model's table of positions; beyond all texts where positions are rotary."""
    config = text_config(model)
    context = getattr(config, "max_position_embeddings", None)
    return 2**62 if context is None or getattr(config, "rope_parameters", None) else int(context) - 1


def context_length(model: Any) -> int | None:
    """Positions that a model is made for, those that its rotary scaling adds included; ``None`` where it names none."""
    config = text_config(model)
    context: int | None = getattr(config, "max_position_embeddings", None)
    if context is None:
        return None
    for rope in rotary_settings(config):
        if rope.get("rope_type") in _FIXED_SCALINGS and rope.get("factor"):
            original = rope.get("original_max_position_embeddings") or context
            context = max(context, int(rope["factor"] * original))
    return context


def rotary_settings(config: Any) -> list[dict[str, Any]]:
    """The settings of rotary positions in a text configuration: one for all layers, or one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [item for item in rope.values() if isinstance(item, dict)]
    return nested or [dict(rope)]


def layer_kinds(model: Any) -> list[str]:
    """How each layer attends, in transformers' words: ``full_attention``, ``sliding_attention``, ..."""
    config = text_config(model)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return list(kinds)
    everywhere = next((kind for kind, size in _LOCAL.items() if getattr(config, size, None) is not None), _FULL)
    return [everywhere] * config.num_hidden_layers


def recurrent_layers(model: Any) -> list[int]:
    """Indices of the layers with a state that every token changes."""
    return [index for index, kind in enumerate(layer_kinds(model)) if kind in {*_RECURRENT, _HYBRID}]


def attention_layers(model: Any) -> list[int]:
    """Indices of the layers with keys and values."""
    return [index for index, kind in enumerate(layer_kinds(model)) if kind not in _RECURRENT | _WITHOUT]


def has_attention(model: Any) -> bool:
    """Whether some layers attend to the text; a model of recurrent layers alone takes no masks."""
    return bool(attention_layers(model))


def cache_argument(model: Any) -> str:
    """The name under which a model's forward takes its cache."""
    known = inspect.signature(base_model(model).forward).parameters
    return "cache_params" if "cache_params" in known else "past_key_values"


def is_windowed(model: Any) -> bool:
    """Whether some layers see a part of the prefix only: a sliding window, or a chunk."""
    return any(kind in _LOCAL for kind in layer_kinds(model))


def attention_spans(model: Any) -> list[int]:
    """Tokens of the windows and chunks of a model's layers, each size once."""
    config = text_config(model)
    return sorted({int(getattr(config, _LOCAL[kind])) for kind in set(layer_kinds(model)) & set(_LOCAL)})


def layer_windows(model: Any) -> list[int | None]:
    """The sliding window of each layer in tokens; ``None`` for full attention."""
    window = getattr(text_config(model), "sliding_window", None)
    return [window if kind == "sliding_attention" else None for kind in layer_kinds(model)]


def head_widths(model: Any) -> list[int]:
    """Dimensions of an attention head: one number, or one for each layer where layers differ."""
    return [width for width, _ in _heads(model)]


def _heads(model: Any) -> list[tuple[int, int]]:
    """Dimensions and number of KV heads; layers may differ, as in Gemma 4."""
    config = text_config(model)
    layers = config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]
    return [
        (
            getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads,
            getattr(layer, "num_key_value_heads", None) or layer.num_attention_heads,
        )
        for layer in layers
    ]


def cache_bytes(model: Any, batch: int, capacity: int) -> int:
    """Size in bytes of a key-value cache in the model's precision; the states of recurrent layers are not in it."""
    attending = len(attention_layers(model))
    if not attending:
        return 0
    widths = [width * heads for width, heads in _heads(model)]
    total = sum(widths) * attending // len(widths)
    return int(2 * batch * capacity * total * precision_of(model).itemsize)


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


def check_cache_fits(model: nn.Module, batch: int, capacity: int, device: torch.device) -> None:
    """Checks that there is memory for a cache.

    Args:
        model: The model.
        batch: Rows.
        capacity: Tokens of each row.
        device: Where the cache will be.

    Raises:
        ValueError: There is not; the message says how much is needed.
    """
    needed, free = cache_bytes(model, batch, capacity), free_bytes(device)
    if free is not None and needed > free:
        raise ValueError(
            f"the cache of {batch} x {capacity} tokens needs {needed:,} bytes, but {free:,} are free on {device}: "
            "shorten the texts, lower engine.capacity, or use fewer rows."
        )


def check_supported(model: nn.Module) -> None:
    """Refuses models whose cache or attention a session cannot drive exactly.

    Raises:
        ValueError: Names the property of the model, and what to do.
    """
    name = type(model).__name__
    if not hasattr(model, "config") or not hasattr(model.config, "get_text_config"):
        raise ValueError(f"{name} is not a Hugging Face model: pass a model loaded with AutoModelForCausalLM.")
    config = text_config(model)
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"{name} is an encoder-decoder: pass a decoder-only language model.")
    kinds = set(layer_kinds(model))
    recurrent = ", ".join(sorted(kinds & {*_RECURRENT, _HYBRID}))
    if recurrent and getattr(model.config, "vision_config", None) is not None:
        raise ValueError(
            f"{name} reads images or videos and has {recurrent} layers, which decoders follow in language models only: "
            "load it with AutoModelForCausalLM for text, or decode it with model.generate."
        )
    if recurrent and (reason := why_not_followed(model, recurrent_layers(model), weights_in_place(model))):
        raise ValueError(f"{name} has {recurrent} layers{reason}.")
    if unknown := sorted(kinds - {_FULL, _HYBRID, *_LOCAL, *_RECURRENT, *_WITHOUT}):
        raise ValueError(
            f"{name} has {', '.join(unknown)} layers, and a session's attention knows full, sliding and chunked ones: "
            "decode it with model.generate."
        )
    if has_attention(model) and not _uses_attention_interface(model):
        raise ValueError(
            f"{name} does not use transformers' attention interface, so a session cannot drive its attention: decode "
            "it with model.generate."
        )
    for kind in sorted(kinds & set(_LOCAL)):
        size = getattr(config, _LOCAL[kind], None)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(
                f"{_LOCAL[kind]} of {name}'s configuration must be at least 1 token, because it has {kind} layers, got "
                f"{size!r}: correct config.json."
            )
    for rope in rotary_settings(config):
        if rope.get("rope_type") in {"dynamic", "longrope"}:
            raise ValueError(
                f"{name} has {rope['rope_type']} rotary scaling, whose frequencies change with the length of the text, "
                "so that no cached decoder can be exact with it: use linear, yarn or llama3 scaling."
            )
    _refuse_soft_prompts(model)
    _refuse_missing_weights(model)


def _uses_attention_interface(model: Any) -> bool:
    """Whether a model's attention is called through transformers' interface; some classes do not say that they do."""
    if getattr(language_part(model), "_supports_attention_backend", False):
        return True
    parts = [part for part in model.modules() if hasattr(part, "layer_idx")]
    asking = {part.layer_idx for part in parts if "ALL_ATTENTION_FUNCTIONS" in called_names(type(part).forward)}
    return bool(recurrent_layers(model)) and set(attention_layers(model)) <= asking


def _refuse_soft_prompts(model: nn.Module) -> None:
    """Refuses adapters of PEFT whose effect is not in the layers: it would be lost, or be there at every step."""
    # inside PeftModel.generate the base model is what decoders see; PEFT has put a method of its own on it
    method = vars(model).get("prepare_inputs_for_generation")
    for holder in (model, getattr(method, "__self__", None)):
        configs = getattr(holder, "peft_config", None)
        active = getattr(holder, "active_adapter", None)
        if not isinstance(configs, dict) or callable(active):
            continue
        for adapter in [active] if isinstance(active, str) else list(active or []):
            config = configs.get(adapter)
            kind = getattr(getattr(config, "peft_type", None), "value", "")
            if getattr(config, "is_prompt_learning", False):
                raise ValueError(
                    f"the PEFT adapter {adapter!r} is of type {kind} and puts virtual tokens before the prompt, which "
                    "Saccade's decoders do not read: use model.generate, or an adapter of the layers such as LoRA."
                )
            if getattr(config, "alora_invocation_tokens", None):
                raise ValueError(
                    f"the PEFT adapter {adapter!r} begins at its alora_invocation_tokens, which Saccade's decoders do "
                    "not follow: use model.generate, or plain LoRA."
                )
    for part in model.modules():
        for hook in part._forward_pre_hooks.values():
            given = hook.keywords if isinstance(hook, partial) else {}
            for argument in ("adapter_names", "alora_offsets"):
                if given.get(argument) is not None:
                    raise ValueError(
                        f"{argument} of PEFT is not supported by Saccade's decoders: choose one adapter for the batch "
                        "with set_adapter."
                    )


def _refuse_missing_weights(model: nn.Module) -> None:
    """Refuses weights on ``meta`` that no hook of accelerate brings to the device for a forward."""
    if not any(weight.is_meta for weight in model.parameters()):
        return
    hooked = {path for path, part in model.named_modules() if getattr(part, "_hf_hook", None) is not None}
    for path, weight in model.named_parameters():
        parts = path.split(".")
        if weight.is_meta and not any(".".join(parts[:end]) in hooked for end in range(len(parts))):
            raise ValueError(
                f"the weight {path} of {type(model).__name__} has no values (it lies on the device meta): load the "
                "model with from_pretrained."
            )
