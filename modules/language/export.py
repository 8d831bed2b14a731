"""Export a trained model as a Hugging Face folder."""

import copy
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from saccade.common.files import replacing_folder
from saccade.modules.lora import merged_weight


def gathered(parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
    """Gather parameters that DeepSpeed ZeRO-3 has partitioned, for the duration of a `with` block.

    Args:
        parameters: Parameters of the model; all ranks must pass the same ones in the same order.

    Returns:
        A context manager; it does nothing if no parameter is partitioned.
    """
    partitioned = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not partitioned:
        return nullcontext()
    import deepspeed

    whole: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(partitioned)
    return whole


def merged_state_dict(model: PreTrainedModel, keep: bool = True) -> dict[str, Tensor]:
    """Copy all weights to the CPU, with LoRA merged, under the names of the plain model. The model is not changed.

    Under ZeRO-3 this is a collective operation: all ranks must call it.

    Args:
        model: The Hugging Face model.
        keep: Whether this rank needs the result; the other ranks only take part and get an empty dictionary.

    Returns:
        Tensors by name; tied weights share one tensor.
    """
    state: dict[str, Tensor] = {}
    copies: dict[int, Tensor] = {}

    def add(name: str, original: Tensor, value: Tensor) -> None:
        if keep:
            if id(original) not in copies:
                copies[id(original)] = value.detach().to("cpu", copy=True)
            state[name] = copies[id(original)]

    adapted: list[str] = []
    for prefix, module in model.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        if any(prefix.startswith(inside) for inside in adapted):
            continue
        if isinstance(module, LoraLayer):
            adapted.append(dot)
            base = module.get_base_layer()
            with gathered(module.parameters()):  # type: ignore[attr-defined]
                for name, parameter in base.named_parameters(recurse=False):
                    add(dot + name, parameter, merged_weight(module) if name == "weight" else parameter)
            continue
        own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        with gathered(own.values()):
            for name, parameter in own.items():
                add(dot + name, parameter, parameter)
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            if name not in module._non_persistent_buffers_set:
                add(dot + name, buffer, buffer)
    return state


def write_pretrained(
    model: PreTrainedModel, state: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase | None, folder: Path
) -> None:
    """Write a model and its tokenizer to a folder that transformers loads with `from_pretrained`.

    The folder is written under a temporary name and then renamed, so that it is never left half written.

    Args:
        model: Provides the class, the configuration and the generation settings.
        state: All weights, from `merged_state_dict`.
        tokenizer: Tokenizer to save with the model; None saves none.
        folder: Target folder; an existing one is replaced.

    Raises:
        ValueError: The folder cannot be written.
    """
    with replacing_folder(folder) as unfinished:
        # a model without memory, adapters and hooks, whose save_pretrained writes the given weights only
        with torch.device("meta"):
            empty = type(model)(copy.deepcopy(model.config))
        nn.Module.to(empty, dtype=model.dtype)
        empty.generation_config = copy.deepcopy(model.generation_config)
        empty.save_pretrained(unfinished, state_dict=state)
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)
