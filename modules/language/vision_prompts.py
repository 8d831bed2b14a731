"""Extract the prompts from batches of whole conversations, and answer them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

_PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids")


def prompt_inputs(batch: dict[str, Tensor], rows: Sequence[int], pad_token_id: int) -> dict[str, Tensor]:
    """Create the inputs of `generate` for some rows of a batch: prompts without answers, padded on the left.

    Args:
        batch: `input_ids` LongTensor [B, L] padded on the right, `prompt_length` LongTensor [B], the clips, and the
            other inputs of the model for each token.
        rows: Numbers of the rows, at least one.
        pad_token_id: Token that pads shorter prompts.

    Returns:
        `input_ids` and `attention_mask` [R, longest prompt], `mm_token_type_ids` of the same shape if the batch has
        them, and the clips of the rows.
    """
    lengths = batch["prompt_length"].tolist()
    width = max(lengths[row] for row in rows)
    inputs: dict[str, Tensor] = {}
    for name in _PER_TOKEN:
        if name in batch:
            filling = pad_token_id if name == "input_ids" else 0
            prompts = batch[name].new_full((len(rows), width), filling)
            for place, row in enumerate(rows):
                prompts[place, width - lengths[row] :] = batch[name][row, : lengths[row]]
            inputs[name] = prompts
    clips = batch["pixel_values_videos"]
    if "video_grid_thw" in batch:  # the patches of all clips are concatenated
        grids = batch["video_grid_thw"]
        pieces = clips.split(grids.prod(-1).tolist())
        inputs["pixel_values_videos"] = torch.cat([pieces[row] for row in rows])
        inputs["video_grid_thw"] = grids[list(rows)]
    else:
        inputs["pixel_values_videos"] = clips[list(rows)]
    return inputs


def greedy_answers(
    model: PreTrainedModel, inputs: dict[str, Tensor], max_new_tokens: int, synced: bool = False
) -> Tensor:
    """Answer prompts greedily with transformers' `generate`.

    Args:
        model: The Hugging Face model.
        inputs: Inputs from `prompt_inputs`.
        max_new_tokens: Maximum length of an answer in tokens.
        synced: Continue until all ranks are done. Needed if the weights are partitioned over ranks, because each
            forward is then a collective operation.

    Returns:
        The new tokens, LongTensor [R, longest answer], padded after the end token.
    """
    generate: Any = model.generate
    inner: Any = model.model
    try:
        with torch.no_grad():
            tokens: Tensor = generate(
                **inputs, max_new_tokens=max_new_tokens, do_sample=False, use_cache=True, synced_gpus=synced
            )
    finally:
        if hasattr(inner, "rope_deltas"):
            # a Qwen stores there the position offsets of the last prompts
            inner.rope_deltas = None
    return tokens[:, inputs["input_ids"].shape[1] :]
