"""Loads a model from a folder or the hub, and says in one line why it cannot be loaded."""

from __future__ import annotations

from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

_LONGEST_REASON = 200  # transformers lists all its classes in some


def load_model(
    path: str, dtype: torch.dtype | Literal["auto"], auto_class: Any = AutoModelForCausalLM
) -> PreTrainedModel:
    """Loads a model whose class is one of transformers' and whose weights are all there.

    Args:
        path: Folder or hub id.
        dtype: Precision of the weights; "auto" for that of their files.
        auto_class: The auto class of transformers that chooses the model's class.

    Raises:
        ValueError: The reason in one line: no such model, a class that transformers does not know, code of its own,
            broken files, missing weights.
    """
    try:
        # without an answer to trust_remote_code transformers asks at the terminal
        model, found = auto_class.from_pretrained(path, dtype=dtype, trust_remote_code=False, output_loading_info=True)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(load_error(error)) from error
    # weights that the files lack are random: a mixture without its router, a model without its head
    if missing := sorted(found["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(
            f"its files lack the weight {missing[0]}{more} of {type(model).__name__}, which would be random"
        )
    loaded: PreTrainedModel = model
    return loaded


def load_error(error: Exception) -> str:
    """Why transformers could not load a model or its configuration, in one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if "does not recognize this architecture" in lines[0]:
        kind = lines[0].split("`")[1] if "`" in lines[0] else "?"
        return f"its model type {kind} is unknown to transformers {transformers.__version__}, which may be too old"
    if "custom code" in lines[0]:
        return "its class is code in the checkpoint, which is not run: transformers has no class for it"
    return lines[0].rstrip(".")[:_LONGEST_REASON]
