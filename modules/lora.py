"""LoRA adapters: their settings, how they are attached, and how they are merged."""

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from saccade.common.checks import check_count, check_number


@dataclass
class LoraSettings:
    """Low-rank adapters: the model's weights stay frozen, and each chosen layer learns a low-rank update.

    Args:
        rank: Rank of the update, at least 1.
        alpha: The update is scaled by alpha / rank.
        dropout: Dropout on the input of the adapters, at least 0 and below 1.
        target_modules: Names of the linear layers that get an adapter, such as [q_proj, v_proj]. None means every
            linear layer except the output head.

    Raises:
        ValueError: A setting is out of range.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: list[str] | None = None

    def __post_init__(self) -> None:
        check_count("lora.rank", self.rank)
        check_number("lora.alpha", self.alpha)
        if not self.alpha > 0:
            raise ValueError(f"lora.alpha must be above 0, got {self.alpha}: choose for example twice the rank.")
        check_number("lora.dropout", self.dropout)
        if not 0 <= self.dropout < 1:
            raise ValueError(
                f"lora.dropout must be at least 0 and below 1, got {self.dropout}: choose for example 0.05."
            )
        if self.target_modules is not None and not self.target_modules:
            raise ValueError(
                "lora.target_modules must name at least one layer, got []: name layers, or give null for all linear"
                " layers."
            )


def attach_lora(
    model: PreTrainedModel, settings: LoraSettings, task: str | None = "CAUSAL_LM", within: str | None = None
) -> None:
    """Add adapters to a model in place and freeze all other weights. The class of the model does not change.

    Args:
        model: The Hugging Face model.
        settings: Settings of the adapters.
        task: PEFT's name of the model's task; None for a plain encoder.
        within: Path of the part of the model that gets adapters; the rest is not touched and keeps what it trains. None
            for the whole model.

    Raises:
        ValueError: A name in `target_modules` matches no linear layer.
    """
    # PEFT ignores names that match nothing if another name matches
    part = model if within is None else model.get_submodule(within)
    linear = [name for name, module in part.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    names = settings.target_modules or []
    missing = [name for name in names if not any(_is_named(found, name) for found in linear)]
    if missing:
        raise ValueError(
            f"lora.target_modules must name linear layers of {type(model).__name__}, got {missing[0]!r}: choose among"
            f" {', '.join(sorted({name.rpartition('.')[2] for name in linear}))}."
        )
    targets: list[str] | str = names or "all-linear"
    if within is not None:
        chosen = [found for found in linear if not names or any(_is_named(found, name) for name in names)]
        targets = [f"{within}.{found}" for found in chosen]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT divides it by the rank and takes floats
        lora_dropout=settings.dropout,
        target_modules=targets,
        task_type=task,
    )
    outside = {} if within is None else _trained_outside(model, within)
    with warnings.catch_warnings():
        # the export unties a head that was tied, and a layer of GPT-2 needs no setting of its own
        warnings.filterwarnings("ignore", message="Model (with|has) `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        model.add_adapter(config)
    for parameter in outside.values():  # PEFT freezes the whole model
        parameter.requires_grad_(True)
    for name, parameter in model.named_parameters():
        if "lora_" in name:  # PEFT takes the type of the layer, in which small steps would be lost
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.get_default_dtype()))


def _is_named(found: str, name: str) -> bool:
    return found == name or found.endswith(f".{name}")


def _trained_outside(model: nn.Module, within: str) -> dict[str, nn.Parameter]:
    """The parameters outside a part that are trained."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not name.startswith(f"{within}.")
    }


def merged_parameters(layer: Any) -> dict[str, Tensor]:
    """Return the parameters of an adapted layer with the updates of its active adapters added.

    The sum is computed in float32 and rounded once to the type of the layer. The layer is not changed.

    Args:
        layer: The adapted layer.

    Returns:
        New tensors by their names in the plain layer, such as `weight`, with the shapes and types that they have there.
    """
    base = layer.get_base_layer()
    plain = dict(base.named_parameters(recurse=False))
    adapters = [name for name in layer.active_adapters if name not in layer.merged_adapters]
    with torch.no_grad():
        if any(name in layer.lora_variant or layer.lora_bias.get(name) for name in adapters):
            copied = copy.deepcopy(layer).float()  # PEFT merges in place, and knows all kinds, such as DoRA
            copied.merge()
            found = dict(copied.get_base_layer().named_parameters(recurse=False))
            return {name: found[name].detach().to(value.dtype) for name, value in plain.items()}
        wide = torch.promote_types(plain["weight"].dtype, torch.float32)
        weight = plain["weight"].to(wide) + sum(_update(layer, name).to(wide) for name in adapters)
        return {name: weight.to(value.dtype) if name == "weight" else value.clone() for name, value in plain.items()}


def _update(layer: Any, adapter: str) -> Tensor:
    """Compute the update of an adapter in at least float32; PEFT rounds it to the type of the adapter."""
    if adapter in layer.lora_A:
        down, up, turned = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.fan_in_fan_out
    elif adapter in layer.lora_embedding_A:
        down, up, turned = layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter], True
    else:
        return torch.zeros(())
    if down.ndim != 2:  # convolutions
        update: Tensor = layer.get_delta_weight(adapter)
        return update
    wide = torch.promote_types(down.dtype, torch.float32)
    update = up.to(wide) @ down.to(wide) * layer.scaling[adapter]
    return update.T if turned else update
