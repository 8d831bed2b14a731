"""Sets of skipped sub-layers: the file that the layer search writes, and evenly spread sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from saccade.common.files import write_json
from saccade.inference.huggingface.sublayer_skip import decoder_layers

FORMAT = "saccade.skip_layers/1"
SPREAD_SHARES = (0.15, 0.3, 0.45, 0.6)
"""Shares of the sub-layers that ``skip="auto"`` and a search try first; 0.45 is that of SWIFT (arXiv 2410.06916)."""


def model_fingerprint(model: nn.Module) -> str:
    """A short text that identifies a model by the shapes of its weights and a sample of their values.

    The sample is rounded to bfloat16, so that a model has the same fingerprint in float32 and in bfloat16. Sharded
    weights (ZeRO-3) cannot be sampled; their fingerprint matches every model with the same shapes.

    Returns:
        ``"<shapes>-<values>"``, hexadecimal; ``<values>`` is ``sharded`` without a sample.
    """
    shapes, values = hashlib.sha256(), hashlib.sha256()
    sharded = False
    for name, weight in model.named_parameters():
        shape = tuple(getattr(weight, "ds_shape", weight.shape))
        shapes.update(f"{name}{shape}".encode())
        if weight.numel() == 0 and 0 not in shape:
            sharded = True
            continue
        sample = weight.detach().flatten()[:8].to(torch.bfloat16).float().cpu()
        values.update(sample.numpy().tobytes())
    return f"{shapes.hexdigest()[:16]}-{'sharded' if sharded else values.hexdigest()[:16]}"


def check_skip_set(skip: Any) -> None:
    """Checks a skip set: a mapping with the keys ``attention`` and ``mlp`` to lists of layer indices from 0.

    Raises:
        ValueError: It is not a skip set; the message says why.
    """
    if not isinstance(skip, Mapping):
        raise ValueError(
            f"skip must be auto, a path or a mapping with attention and mlp, got {skip!r}: write a skip file with "
            "'saccade search-layers', or list the layers."
        )
    if unknown := set(skip) - {"attention", "mlp"}:
        raise ValueError(
            f"skip must have no keys other than attention and mlp, got {sorted(map(str, unknown))[0]!r}: remove it."
        )
    for kind, layers in skip.items():
        listed = isinstance(layers, Collection) and not isinstance(layers, str)
        wrong = [layer for layer in layers if type(layer) is not int or layer < 0] if listed else [layers]
        if wrong:
            raise ValueError(
                f"skip.{kind} must be a list of layer indices of at least 0, got {wrong[0]!r}: write for example "
                "[3, 5]."
            )


def write_skip_file(
    path: str | Path,
    model: nn.Module,
    attention: Collection[int],
    mlp: Collection[int],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes a skip set with the model's fingerprint, atomically.

    Args:
        path: The file; an existing skip file is replaced.
        model: The model that it was searched for.
        attention: Layers whose attention is skipped.
        mlp: Layers whose MLP is skipped.
        extra: Further entries, for example measurements of the search.

    Raises:
        ValueError: The path is a file that is not a skip file.
    """
    content = {
        "format": FORMAT,
        "fingerprint": model_fingerprint(model),
        "layers": len(decoder_layers(model)),
        "attention": sorted(attention),
        "mlp": sorted(mlp),
    }
    refuse_other_file(path)
    write_json(Path(path), dict(extra or {}) | content)


def refuse_other_file(path: str | Path) -> None:
    """Checks that writing a skip file would not replace a file of another kind.

    Args:
        path: Where the skip file is to be written.

    Raises:
        ValueError: The path is a file that is not a skip file.
    """
    if not Path(path).is_file():
        return
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{path} exists and is not a skip file: choose another path, or move the file away.")


def read_skip_file(path: str | Path, model: nn.Module) -> dict[str, list[int]]:
    """Reads a skip set and checks that it was searched for this model.

    Args:
        path: The skip file.
        model: The model that will skip the layers.

    Returns:
        ``{"attention": [...], "mlp": [...]}``.

    Raises:
        ValueError: The file does not exist, is not a skip file, or was searched for another model.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"skip file {path} does not exist: write it with 'saccade search-layers'.") from None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"skip file {path} cannot be read ({error}): write it again with 'saccade search-layers'."
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not a skip file ({FORMAT}): write one with 'saccade search-layers'.")
    for name, kind in (("fingerprint", str), ("attention", list), ("mlp", list)):
        value = content.get(name)
        if not isinstance(value, kind) or not all(type(layer) is int for layer in value if kind is list):
            wanted = "text" if kind is str else "a list of layers"
            raise ValueError(
                f"{name} of skip file {path} must be {wanted}, got {value!r}: write it again with 'saccade "
                "search-layers'."
            )
    theirs, ours = content["fingerprint"], model_fingerprint(model)
    same_values = theirs.split("-")[-1] == ours.split("-")[1] or "sharded" in (theirs + ours)
    if theirs.split("-")[0] != ours.split("-")[0] or not same_values:
        layers = content.get("layers", "unknown")
        raise ValueError(
            f"skip file {path} was searched for another model ({layers} layers, fingerprint {theirs}; this "
            f"one: {len(decoder_layers(model))} layers, {ours}): search again with 'saccade search-layers'."
        )
    return {"attention": list(content["attention"]), "mlp": list(content["mlp"])}


def spread_skip_set(layers: int, share: float) -> dict[str, list[int]]:
    """Skips a share of the sub-layers, evenly spread over all layers except the first and the last (ours).

    Args:
        layers: Number of decoder layers.
        share: Share of the sub-layers between the first and the last layer, 0 to 1.

    Returns:
        ``{"attention": [...], "mlp": [...]}``.
    """
    inner = [(kind, layer) for layer in range(1, layers - 1) for kind in ("attention", "mlp")]
    count = round(share * len(inner))
    chosen = {inner[int((index + 0.5) * len(inner) / count)] for index in range(count)} if count else set()
    return {kind: sorted(layer for k, layer in chosen if k == kind) for kind in ("attention", "mlp")}
