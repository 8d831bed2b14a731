"""LoRA: settings, attaching, and the merged weights."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


@dataclass
class LoraSettings:
    """Low-rank adapters: the model's own weights stay frozen, and each chosen layer learns a small correction.

    Args:
        rank: Rank of the correction, at least 1.
        alpha: The correction is scaled by alpha / rank.
        dropout: Dropout on the adapters' input, 0 to 1.
        target_modules: Names of the linear layers that get one, such as [q_proj, v_proj]. None means every linear layer
            but the output head.

    Raises:
        ValueError: A setting is out of range.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: list[str] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank: must be at least 1, but is {self.rank}")
        if self.alpha <= 0:
            raise ValueError(f"lora.alpha: must be above 0, but is {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout: must be at least 0 and below 1, but is {self.dropout}")
        if self.target_modules is not None and not self.target_modules:
            raise ValueError("lora.target_modules: the list is empty; name layers, or null for all linear layers")


def attach_lora(model: PreTrainedModel, settings: LoraSettings, task: str | None = "CAUSAL_LM") -> None:
    """Put adapters into the model, in place, and freeze everything else; the model keeps its class.

    Args:
        model: The Hugging Face model.
        settings: Of the adapters.
        task: PEFT's name of what the model does; None for a plain encoder.

    Raises:
        ValueError: No layer has one of the names in `target_modules`.
    """
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT divides it by the rank and takes floats
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules or "all-linear",
        task_type=task,
    )
    # PEFT is silent about names that match nothing, as long as another one matches
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    names = settings.target_modules or []
    missing = [name for name in names if not any(found == name or found.endswith(f".{name}") for found in linear)]
    if missing:
        raise ValueError(f"lora.target_modules: no linear layer of {type(model).__name__} is called {missing[0]!r}")
    model.add_adapter(config)


def merged_weight(layer: Any) -> Tensor:
    """Return the weight of an adapted layer with the correction added, without touching the layer.

    Args:
        layer: The adapted layer.

    Returns:
        Weight of the shape and type of the layer's own.
    """
    weight: Tensor = layer.get_base_layer().weight.detach().clone()
    with torch.no_grad():
        for adapter in layer.active_adapters:
            weight += layer.get_delta_weight(adapter).to(weight.dtype)
    return weight
