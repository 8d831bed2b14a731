"""Prompts with images or videos: what a vision-language model's language part reads of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from saccade.inference.huggingface.models import device_of
from saccade.inference.huggingface.vision import language_inputs, merge_size, visual_token_ids

PositionRule = Literal["original", "compact"]


@dataclass(frozen=True)
class VisualPrompt:
    """One prompt as its language part sees it.

    Args:
        tokens: Token ids, placeholders of visual tokens included.
        embeddings: ``[length, hidden]``, visual features in the places of their placeholders.
        positions: ``[axes, length]`` rotary positions: three axes with M-RoPE (time, height, width), one without.
        offset: Rotary position of the first token behind the prompt, less its length; 0 where positions count tokens.
        visual: ``[n]`` places of the visual tokens, ascending.
        grid: Frames, rows and columns of the visual tokens where a single video fills them, else ``None``.
        deep: For each of the first layers ``[n, hidden]``, added to the states of the visual tokens behind it
            (DeepStack, arXiv 2406.04334: Qwen3-VL); empty for most models.
    """

    tokens: list[int]
    embeddings: Tensor
    positions: Tensor
    offset: int
    visual: Tensor
    grid: tuple[int, int, int] | None = None
    deep: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def features(self) -> Tensor:
        """``[n, hidden]`` of the visual tokens, as the projector made them."""
        return self.embeddings[self.visual]

    def kept(self, keep: Tensor, rule: PositionRule = "original") -> VisualPrompt:
        """The prompt with some visual tokens taken out; text and order stay (SpecVLM, arXiv 2508.16201).

        Args:
            keep: Indices into ``visual`` of the tokens that stay, ascending; may be empty.
            rule: ``original`` leaves every remaining token, and all that is generated, at the position it has in the
                whole prompt (ours). ``compact`` counts the remaining tokens from 0 on all axes (the authors' code).

        Returns:
            The shorter prompt.
        """
        device = self.visual.device
        stays = torch.ones(len(self.tokens), dtype=torch.bool, device=device)
        stays[self.visual] = False
        stays[self.visual[keep.to(device)]] = True
        places = stays.nonzero()[:, 0]
        positions = self.positions[:, places]
        offset = self.offset + len(self.tokens) - len(places)
        if rule == "compact":
            positions = torch.arange(len(places), device=device).expand(len(positions), -1)
            offset = 0
        is_visual = torch.zeros_like(stays)
        is_visual[self.visual] = True
        return VisualPrompt(
            [self.tokens[place] for place in places.tolist()],
            self.embeddings[places],
            positions,
            offset,
            is_visual[places].nonzero()[:, 0],
            deep=tuple(features[keep.to(device)] for features in self.deep),
        )


def read_visual_prompts(
    model: nn.Module, prompts: Sequence[Sequence[int]], visual: Mapping[str, Tensor]
) -> list[VisualPrompt]:
    """Lets a vision-language model itself place its features and count its positions, for a batch of prompts.

    Args:
        model: A Hugging Face vision-language model, for example Qwen3-VL or LLaVA-OneVision, as it is.
        prompts: Token ids of every row, without padding.
        visual: The processor's tensors for all rows, in their order (``pixel_values_videos``, ``video_grid_thw``, ...).

    Returns:
        One prompt for each row.

    Raises:
        ValueError: Placeholders and features do not match, or the model has no language part to stop at.
    """
    longest = max(len(prompt) for prompt in prompts)
    device = device_of(model)
    tokens = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)
    mask = torch.tensor([[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in prompts], device=device)
    given = language_inputs(model, tokens, mask, visual)
    ids = torch.tensor(visual_token_ids(model), device=device)
    grids = _grids(model, visual, len(prompts))
    places = [torch.isin(tokens[row, : len(prompt)], ids).nonzero()[:, 0] for row, prompt in enumerate(prompts)]
    counted = sum(len(own) for own in places)
    if given.deep and len(given.deep[0]) != counted:
        raise ValueError(
            f"{type(model).__name__} adds features of {len(given.deep[0])} tokens to the states of its first layers, "
            f"but the prompts have {counted} placeholders: decode its images and videos with model.generate."
        )
    deep = [features.split([len(own) for own in places]) for features in given.deep]  # of all rows, one after the other
    read = []
    for row, prompt in enumerate(prompts):
        length = len(prompt)
        own = given.positions[:, row, :length]
        read.append(
            VisualPrompt(
                list(prompt),
                given.embeddings[row, :length],
                own,
                int(own[:, -1].max()) + 1 - length,  # the text goes on behind its last token, as in training
                places[row],
                grids[row],
                tuple(features[row] for features in deep),
            )
        )
    return read


def _grids(model: nn.Module, visual: Mapping[str, Tensor], rows: int) -> list[tuple[int, int, int] | None]:
    """The grid of visual tokens of every row, where each has one video and the model says its size."""
    sizes = visual.get("video_grid_thw")
    if sizes is None or len(sizes) != rows:
        return [None] * rows
    merge = merge_size(model)
    return [(int(t), int(h) // merge, int(w) // merge) for t, h, w in sizes.tolist()]


def visual_piece(visual: Sequence[VisualPrompt], start: int, stop: int) -> tuple[dict[str, Tensor], Tensor]:
    """Embeddings ``[batch, tokens, hidden]`` and positions of the tokens from ``start`` to ``stop`` of all prompts."""
    first = visual[0]
    width = stop - start
    embeddings = first.embeddings.new_zeros(len(visual), width, first.embeddings.shape[1])
    positions = first.positions.new_zeros(len(first.positions), len(visual), width)
    for row, prompt in enumerate(visual):
        piece = prompt.embeddings[start:stop]
        embeddings[row, : len(piece)] = piece
        positions[:, row, : len(piece)] = prompt.positions[:, start:stop]
    return {"inputs_embeds": embeddings}, positions if len(positions) > 1 else positions[0]


def deep_piece(visual: Sequence[VisualPrompt], start: int, stop: int) -> tuple[Tensor | None, list[Tensor]]:
    """Which tokens from ``start`` to ``stop`` are visual, and what is added to their states behind each first layer."""
    if not visual[0].deep:
        return None, []
    inside = [(prompt.visual >= start) & (prompt.visual < stop) for prompt in visual]
    places = torch.zeros(len(visual), stop - start, dtype=torch.bool, device=inside[0].device)
    for row, (prompt, own) in enumerate(zip(visual, inside, strict=True)):
        places[row, prompt.visual[own] - start] = True
    pieces = ([features[own] for features in prompt.deep] for prompt, own in zip(visual, inside, strict=True))
    return places, [torch.cat(layer) for layer in zip(*pieces, strict=True)]
