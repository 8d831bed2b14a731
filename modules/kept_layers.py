"""Make a smaller model of some layers of a trained one, for example to train it as a draft model."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def keep_layers(model: PreTrainedModel, keep: Sequence[int]) -> None:
    """Leave out all decoder layers of a model but some, in place. Embedding, last norm and head stay.

    Without training the result writes nonsense; training repairs much of it in few steps, because embedding and head
    have been trained already. The literature calls it layer pruning, for example Minitron
    (https://arxiv.org/abs/2407.14679), which trains much longer.

    Args:
        model: A Hugging Face causal language model.
        keep: The layers to keep, by number from 0; negative numbers count from the end, -1 is the last layer. They stay
            in the order of the model.

    Raises:
        ValueError: A number names no layer, a layer is named twice, or the model has no list of layers from which some
            can be left out.
    """
    config = model.config.get_text_config(decoder=True)
    count = config.num_hidden_layers
    kept = _numbers(keep, count)
    lists = [
        (path, part)
        for path, part in model.named_modules()
        if isinstance(part, nn.ModuleList) and len(part) == count and any(True for _ in part.parameters())
    ]
    # lists inside the layers, such as experts, may be as long
    lists = [(path, part) for path, part in lists if not any(path.startswith(f"{other}.") for other, _ in lists)]
    if len(lists) != 1:
        raise ValueError(
            f"keep_layers needs a model with one list of its {count} layers, got {type(model).__name__} with"
            f" {len(lists)}: leave keep_layers out, or use a model such as Llama or Qwen3."
        )
    path, layers = lists[0]
    for new, old in enumerate(kept):
        for part in layers[old].modules():
            if hasattr(part, "layer_idx"):  # where a layer finds its keys and values in the cache
                setattr(part, "layer_idx", new)  # noqa: B010 -- modules declare no such attribute
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.ModuleList(layers[old] for old in kept))
    for setting, value in vars(config).items():
        if "layer" in setting and isinstance(value, list) and len(value) == count:  # such as layer_types
            setattr(config, setting, [value[old] for old in kept])
    config.num_hidden_layers = len(kept)
    _check_configured(model)


def _numbers(keep: Sequence[int], count: int) -> list[int]:
    """The numbers of the kept layers from 0, in the order of the model."""
    for number in keep:
        if not -count <= number < count:
            raise ValueError(
                f"keep_layers must name layers from {-count} to {count - 1} of the model's {count}, got {number}:"
                " correct it."
            )
    kept = sorted(number % count for number in keep)
    twice = [number for number, other in pairwise(kept) if number == other]
    if twice:
        raise ValueError(f"keep_layers must name every layer once, got layer {twice[0]} twice: name another one.")
    return kept


def _check_configured(model: PreTrainedModel) -> None:
    """Check that the configuration describes the smaller model, so that an exported folder loads."""
    with torch.device("meta"):
        wanted: Any = type(model)(model.config)
    shapes = [{name: value.shape for name, value in each.state_dict().items()} for each in (model, wanted)]
    if shapes[0] != shapes[1]:
        name = next(iter(sorted(shapes[0].items() ^ shapes[1].items())))[0]
        raise ValueError(
            f"keep_layers cannot shorten {type(model).__name__}, whose layers differ in {name}: keep other layers, or"
            " leave keep_layers out."
        )
