"""Cut the prompts out of batches of whole conversations, and caption them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

_PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids")


def prompt_inputs(batch: dict[str, Tensor], rows: Sequence[int], pad_token_id: int) -> dict[str, Tensor]:
    """Make the inputs of `generate` from some rows of a batch: prompts without answers, padded on the left.

    Args:
        batch: `input_ids` LongTensor [B, L] padded on the right, `prompt_length` LongTensor [B], the clips, and what
            else the model reads for each token.
        rows: Which rows, at least one.
        pad_token_id: Stands before shorter prompts.

    Returns:
        `input_ids`, `attention_mask` [R, longest prompt], `mm_token_type_ids` of the same shape where the batch has
        them, and the rows' clips.
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
    if "video_grid_thw" in batch:  # the patches of all clips stand in one row
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
    """Answer prompts with the most probable token at each place, by transformers' own `generate`.

    Args:
        model: The Hugging Face model.
        inputs: From `prompt_inputs`.
        max_new_tokens: Longest answer.
        synced: Go on until all ranks are done, because their weights are shared out and each forward is a collective
            call.

    Returns:
        The new tokens, LongTensor [R, longest answer]; what follows an end token is padding.
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
            # Qwen2.5-VL keeps there how far positions are behind token numbers in the last prompts that it saw
            inner.rope_deltas = None
    return tokens[:, inputs["input_ids"].shape[1] :]
