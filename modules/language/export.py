"""Write a trained model as a Hugging Face folder."""

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
    """Make parameters whole that DeepSpeed ZeRO-3 has partitioned, for the length of a `with` block.

    Args:
        parameters: Of the model; all ranks must name the same ones in the same order.

    Returns:
        A context manager; it does nothing when the parameters are whole anyway.
    """
    partitioned = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not partitioned:
        return nullcontext()
    import deepspeed

    whole: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(partitioned)
    return whole


def merged_state_dict(model: PreTrainedModel, keep: bool = True) -> dict[str, Tensor]:
    """Copy all weights to the CPU, LoRA merged, under the names of the plain model. The model is not changed.

    Under ZeRO-3 this is a collective call: all ranks must make it.

    Args:
        model: The Hugging Face model.
        keep: Whether this rank wants the result; others only take part and get an empty dictionary.

    Returns:
        Names and tensors; tied weights share one tensor.
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
    """Write a folder that `from_pretrained` of transformers' own classes loads, `AutoTokenizer` among them.

    It is written under another name and then renamed: the folder is never half written.

    Args:
        model: Gives class, configuration and generation settings.
        state: All weights, from `merged_state_dict`.
        tokenizer: Saved beside the model, if there is one.
        folder: Where to; a folder that is there already is replaced.

    Raises:
        ValueError: The place cannot be written.
    """
    with replacing_folder(folder) as unfinished:
        # a hull without memory: its own save_pretrained knows nothing of adapters and hooks
        with torch.device("meta"):
            hull = type(model)(copy.deepcopy(model.config))
        nn.Module.to(hull, dtype=model.dtype)
        hull.generation_config = copy.deepcopy(model.generation_config)
        hull.save_pretrained(unfinished, state_dict=state)
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)
