"""Positions of a batch of clips with the same layout, computed for one clip (ours).

transformers computes the positions of tokens and patches of a Qwen clip by clip, and waits for the GPU several
times for each clip; for 64 clips of 8 frames this takes longer than all layers. Clips with the same shape that start at
the same place of their sequences have the same positions, so they are computed once.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index


def shared_positions(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Compute the positions that a Qwen would compute itself, if all clips have the same layout.

    The positions are computed by transformers' functions for the longest sequence and repeated for the others.

    Args:
        model: Any model.
        inputs: Inputs of its forward: `input_ids`, `mm_token_type_ids` and `attention_mask` [B, L], and
            `video_grid_thw` [B, 3], one video in each sequence.

    Returns:
        Additional inputs of its forward: `position_ids` LongTensor [3, B, L], 0 at padding; and for the vision tower
        `video_position_ids` [patches, 2], and where it has windows `video_window_index` [tokens] and
        `video_cu_window_seqlens` [windows + 1], equal to those that the model would compute. Empty if clips or
        sequences have different layouts, for other model families, for left padding, and if `inputs` contain positions.
    """
    types, mask, grids = (inputs.get(name) for name in ("mm_token_type_ids", "attention_mask", "video_grid_thw"))
    if types is None or mask is None or grids is None or "position_ids" in inputs:
        return {}
    part: Any = next((part for part in model.modules() if hasattr(part, "get_rope_index")), None)
    if part is None or "pixel_values" in inputs or len(grids) != len(types):
        return {}
    longest = mask.sum(1).argmax()[None]
    row = types.index_select(0, longest)
    alike = ((types == row) | (mask == 0)).all() & (grids == grids[:1]).all() & (mask[:, 1:] <= mask[:, :-1]).all()
    if not alike:  # the only synchronisation with the GPU
        return {}
    positions, _ = part.get_rope_index(
        input_ids=inputs["input_ids"].index_select(0, longest),
        mm_token_type_ids=row,
        video_grid_thw=grids[:1],
        attention_mask=mask.index_select(0, longest),
    )
    config = part.config.vision_config
    places = get_vision_position_ids(grids[:1], config.spatial_merge_size)
    found = {
        "position_ids": positions * mask.to(positions.dtype),
        "video_position_ids": places.repeat(len(grids), 1),
    }
    if not hasattr(config, "window_size"):
        return found
    order, borders = get_vision_window_index(
        grids[:1], config.spatial_merge_size, config.window_size, config.patch_size
    )
    clip = torch.arange(len(grids), device=grids.device)[:, None]
    windows = (borders[1:] + len(places) * clip.to(borders.dtype)).flatten()
    return found | {
        "video_window_index": (order.to(grids.device) + len(order) * clip).flatten(),
        "video_cu_window_seqlens": torch.cat([borders[:1], windows]),
    }
