"""All windows and frames of a vision tower in one attention call, where transformers makes one call for each; ours."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from saccade.inference.huggingface.model_lock import ModelLock
from saccade.inference.huggingface.models import towers

# transformers hands all windows over at once, with their borders, where the name contains "flash"
_NAME = "saccade_flash_windows"


@contextmanager
def joined_windows(model: nn.Module) -> Iterator[None]:
    """Lets a model's vision tower attend to all its windows at once, for the length of the context.

    A clip of 128 frames has a thousand windows in Qwen2.5-VL; in layers that attend to whole frames, as all do in
    Qwen2-VL and Qwen3-VL, 64 pairs of frames. transformers' loop over them costs more than their attention. The outputs
    are those of ``sdpa``, up to rounding. Other attention than ``sdpa`` is left as it is, and so are towers whose
    attention is not handed the borders of windows. A forward that gradient checkpointing repeats must not run in it:
    its repetition does not.

    Args:
        model: Any model.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, window_attention)
    found = {id(part.config): part.config for part in _handed_borders(model)}
    if not found:
        yield
        return
    with ModelLock(model).held():
        changed = [config for config in found.values() if config._attn_implementation_internal == "sdpa"]
        try:
            for config in changed:
                config._attn_implementation_internal = _NAME
            yield
        finally:
            for config in changed:
                config._attn_implementation_internal = "sdpa"


def _handed_borders(model: nn.Module) -> list[Any]:
    """The attention modules of towers that are handed the borders within which patches see each other."""
    parts: list[Any] = [part for tower in towers(model) or [model] for part in tower.modules()]
    return [
        part for part in parts if hasattr(part, "config") and "cu_seqlens" in inspect.signature(part.forward).parameters
    ]


def window_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each window; transformers calls it.

    Args:
        module: The attention layer.
        query: ``[1, heads, patches, size]``.
        key: Likewise.
        value: Likewise.
        attention_mask: Unused; every patch of a window sees all of it.
        scaling: Of the scores.
        cu_seq_lens_q: Borders of the windows ``[windows + 1]``, from 0 to the number of patches; ``None``: one window.

    Returns:
        ``[1, patches, heads, size]``, and no weights.
    """
    if cu_seq_lens_q is None:
        return scaled_dot_product_attention(query, key, value, scale=scaling).transpose(1, 2), None
    sizes, places = _windows(cu_seq_lens_q)
    if len(sizes) == 1:
        q, k, v = (item.squeeze(0).unflatten(1, (-1, sizes[0])).transpose(0, 1) for item in (query, key, value))
        out = scaled_dot_product_attention(q, k, v, scale=scaling)  # [windows, heads, patches of a window, size]
        return out.transpose(1, 2).reshape(1, query.shape[2], query.shape[1], -1), None
    parts = []
    for size, place in zip(sizes, places, strict=True):
        q, k, v = (
            item[0].index_select(1, place).unflatten(1, (-1, size)).transpose(0, 1) for item in (query, key, value)
        )
        parts.append(scaled_dot_product_attention(q, k, v, scale=scaling).transpose(1, 2).flatten(0, 1))
    back = torch.argsort(torch.cat(places))
    return torch.cat(parts).index_select(0, back)[None], None


def _windows(borders: Tensor) -> tuple[list[int], list[Tensor]]:
    """Sizes of windows without repetition, and the patches of all windows of each size."""
    known: tuple[list[int], list[Tensor]] | None = getattr(borders, "_saccade_windows", None)
    if known is None:
        # all layers read the same borders: the wait for the device is paid once
        starts, lengths = borders[:-1].long(), (borders[1:] - borders[:-1]).tolist()
        sizes = sorted({length for length in lengths if length})
        places = []
        for size in sizes if len(sizes) > 1 else []:
            own = [index for index, length in enumerate(lengths) if length == size]
            first = starts[torch.tensor(own, device=borders.device)]
            places.append((first[:, None] + torch.arange(size, device=borders.device)).flatten())
        known = sizes, places
        borders._saccade_windows = known  # type: ignore[attr-defined]
    return known
