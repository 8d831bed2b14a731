"""Tiny vision-language models with random weights, and prompts with random videos."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

VOCABULARY, VIDEO, IMAGE, START, END = 60, 5, 6, 7, 8
FAMILIES = ("qwen2_5_vl", "llava_onevision")
"""What the shared tests of video decoders go through."""
ALL_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision")
_QWEN = {
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    "qwen3_vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
}


def tiny_video_model(
    family: str, *, layers: int = 2, hidden: int = 32, seed: int = 0, dtype: torch.dtype = torch.float64
) -> PreTrainedModel:
    """A model of a family in evaluation mode that knows no EOS; its answers depend on every part of the prompt."""
    torch.manual_seed(seed)
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": None,
        "initializer_range": 0.2,
    }
    model: PreTrainedModel
    if family in _QWEN:
        kind, cls = _QWEN[family]
        sections = [2, 1, 1] if family == "qwen3_vl" else [1, 1, 2]
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
        text |= {"head_dim": hidden // 4} if family == "qwen3_vl" else {}
        model = cls(
            kind(
                text_config=text | {"rope_parameters": rope},
                vision_config=qwen_vision(family, hidden),
                video_token_id=VIDEO,
                image_token_id=IMAGE,
                vision_start_token_id=START,
                vision_end_token_id=END,
            )
        )
    else:
        vision = {
            "model_type": "siglip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
            "vision_use_head": False,
        }
        model = LlavaOnevisionForConditionalGeneration(
            LlavaOnevisionConfig(
                text_config=text | {"model_type": "qwen2"},
                vision_config=vision,
                video_token_index=VIDEO,
                image_token_index=IMAGE,
                video_token_id=VIDEO,
                image_token_id=IMAGE,
                tie_word_embeddings=False,
            )
        )
        for weight in model.parameters():
            if weight.ndim == 1 and weight.std() == 0 and weight.mean() == 0:
                torch.nn.init.normal_(weight, std=0.2)
    model.generation_config.eos_token_id = None
    return model.to(dtype).eval()


def qwen_vision(family: str, hidden: int) -> dict[str, object]:
    """The settings of a Qwen's small vision tower, whose tokens have the width of its language part."""
    shared = {"depth": 3, "num_heads": 2, "patch_size": 4, "initializer_range": 0.2}
    if family == "qwen2_vl":
        return shared | {"embed_dim": 16, "hidden_size": hidden, "mlp_ratio": 2}
    shared |= {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": hidden}
    if family == "qwen2_5_vl":
        return shared | {"depth": 2, "window_size": 16, "fullatt_block_indexes": [1]}
    return shared | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}


@dataclass
class VideoPrompts:
    """A batch of prompts, each with a video of its own, padded on the left."""

    input_ids: Tensor
    attention_mask: Tensor
    visual: dict[str, Tensor]

    @property
    def kinds(self) -> Tensor:
        """What transformers calls ``mm_token_type_ids``."""
        return 2 * (self.input_ids == VIDEO).long()

    def row(self, index: int, family: str) -> VideoPrompts:
        """One prompt alone, without padding."""
        keep = self.attention_mask[index].bool()
        if family == "llava_onevision":
            visual = {"pixel_values_videos": self.visual["pixel_values_videos"][index : index + 1]}
        else:
            grids = self.visual["video_grid_thw"]
            sizes = [int(size) for size in grids.prod(-1)]
            patches = self.visual["pixel_values_videos"].split(sizes)[index]
            visual = {"pixel_values_videos": patches, "video_grid_thw": grids[index : index + 1]}
        ids = self.input_ids[index, keep][None]
        return VideoPrompts(ids, torch.ones_like(ids), visual)


def video_prompts(family: str, rows: int = 1, seed: int = 0, dtype: torch.dtype = torch.float64) -> VideoPrompts:
    """Prompts of different lengths with different videos; text before and behind each.

    Of Qwen3-VL every frame has its time before it and stands between marks of its own, as its processor writes them.
    """
    draw = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=draw))

    texts, videos, grids = [], [], []
    for _ in range(rows):
        frames = 1
        if family in _QWEN:
            grid = (number(1, 4), 2 * number(1, 4), 2 * number(2, 4))
            grids.append(list(grid))
            frames = grid[0] if family == "qwen3_vl" else 1
            count = grid[0] * grid[1] * grid[2] // 4 // frames
            videos.append(torch.randn(grid[0] * grid[1] * grid[2], 3 * 2 * 16, generator=draw, dtype=dtype))
        else:
            videos.append(torch.randn(1, 3, 3, 16, 16, generator=draw, dtype=dtype))
            count = 3 * 4 + 1
        tail = torch.randint(9, VOCABULARY, (number(2, 6),), generator=draw).tolist()
        times = [[10 + frame] if family == "qwen3_vl" else [] for frame in range(frames)]
        video = [token for time in times for token in [*time, START, *[VIDEO] * count, END]]
        texts.append([3, 4, *video, *tail])
    longest = max(len(text) for text in texts)
    ids = torch.tensor([[0] * (longest - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
    visual = {"pixel_values_videos": torch.cat(videos)}
    if grids:
        visual["video_grid_thw"] = torch.tensor(grids)
    return VideoPrompts(ids, mask, visual)
