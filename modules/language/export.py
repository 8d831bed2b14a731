"""Export a trained model as a Hugging Face folder."""

import copy
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from saccade.common.files import replacing_folder
from saccade.modules.lora import merged_parameters


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
    """Copy all weights to the CPU, with adapters merged, under the names of the plain model. The model is not changed.

    Under ZeRO-3 this is a collective operation: all ranks must call it.

    Args:
        model: The Hugging Face model, with LoRA or modules that PEFT saves whole, or without.
        keep: Whether this rank needs the result; the other ranks only take part and get an empty dictionary.

    Returns:
        Tensors by name. Tied weights share one tensor, unless an adapter changed one of them only.

    Raises:
        ValueError: The model has adapters of another kind.
    """
    state: dict[str, Tensor] = {}
    copies: dict[tuple[int, ...], Tensor] = {}

    def add(name: str, value: Tensor, *source: int) -> None:
        if keep:
            if source not in copies:
                copies[source] = value.detach().to("cpu", copy=True)
            state[name] = copies[source]

    replaced: list[str] = []
    for prefix, module in model.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        if any(prefix.startswith(inside) for inside in replaced):
            continue
        if isinstance(module, LoraLayer):
            replaced.append(dot)
            with gathered(module.parameters()):  # type: ignore[attr-defined]
                base = module.get_base_layer()
                merged = merged_parameters(module)
                for name, parameter in base.named_parameters(recurse=False):
                    # what an adapter changed is no longer what it was tied to
                    changed = (id(module),) if name == "weight" or not torch.equal(parameter, merged[name]) else ()
                    add(dot + name, merged[name], id(parameter), *changed)
            continue
        if isinstance(module, ModulesToSaveWrapper):
            replaced.append(dot)
            active = module.active_adapters
            whole = module.modules_to_save[active[0]] if active else module.original_module
            with gathered(whole.parameters()):
                for name, value in whole.state_dict(keep_vars=True).items():
                    add(dot + name, value, id(value))
            continue
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            raise ValueError(
                f"model must have adapters of LoRA only to be exported, got {type(module).__name__} in {prefix}: merge"
                " it with PEFT first."
            )
        own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        with gathered(own.values()):
            for name, parameter in own.items():
                add(dot + name, parameter, id(parameter))
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            if name not in module._non_persistent_buffers_set:
                add(dot + name, buffer, id(buffer))
    return state


def write_weights(model: PreTrainedModel, state: dict[str, Tensor], folder: Path) -> None:
    """Write weights and configuration into a folder that exists, for `from_pretrained` of transformers.

    Args:
        model: Provides the class, the configuration and the generation settings.
        state: All weights, from `merged_state_dict`. If it has several tensors for tied weights, the configuration
            says that they are not tied.
        folder: The folder.
    """
    config = copy.deepcopy(model.config)
    # T5 knows no untied head: it reads from this setting whether to scale outputs, and unties what differs in the file
    ties = not hasattr(config, "scale_decoder_outputs")
    if ties and any(not torch.equal(state[name], state[other]) for name, other in _tied(model, state)):
        config.tie_word_embeddings = config.get_text_config(decoder=True).tie_word_embeddings = False
    # a model without memory, adapters and hooks, whose save_pretrained writes the given weights only
    with torch.device("meta"):
        empty = type(model)(config)
    nn.Module.to(empty, dtype=model.dtype)
    if hasattr(model, "generation_config"):
        empty.generation_config = copy.deepcopy(model.generation_config)
    empty.save_pretrained(folder, state_dict=state)


def _tied(model: PreTrainedModel, state: dict[str, Tensor]) -> list[tuple[str, str]]:
    """Return pairs of names of weights that the model's configuration ties, and of which both are there."""
    pairs: dict[str, str] = model.all_tied_weights_keys
    return [(name, other) for name, other in pairs.items() if name in state and other in state]


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
        write_weights(model, state, unfinished)
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)
