"""What decoders ask of a Hugging Face model: its text configuration, device, limits, and whether it can be driven."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    pass


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
