"""Tiny clips of one colour, their datamodule and tiny models of both families, for the tests of this folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from saccade.datamodules.loaders import BatchLoader, BatchSampler
from saccade.datamodules.text.tokenization import train_tokenizer
from saccade.datamodules.video.grammar import SlotScore
from saccade.datamodules.video.preprocessing import VisualFormat, visual_inputs
from saccade.modules import VisionLanguageModel
from saccade.modules.language.vision_construction import FAMILIES

COLOURS = {"red": (250, 20, 20), "green": (20, 250, 20), "blue": (20, 20, 250), "white": (250, 250, 250)}
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {
        "model_type": "qwen2_5_vl",
        "text_config": TEXT,
        "vision_config": {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2},
    },
    "llava_onevision": {
        "model_type": "llava_onevision",
        "text_config": TEXT,
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        },
    },
}  # fmt: skip


def answer_of(item: int) -> str:
    """Two colours of sixteen pairs, in words of different lengths."""
    names = list(COLOURS)
    return f"first {names[item % 4]}, then {names[item // 4 % 4]}" + " and so it ends" * (item % 3)


class Clips(Dataset[dict[str, Tensor]]):
    """Four frames, two of each colour; a whole batch for a list of indices."""

    def __init__(self, tokenizer: Any, visual: VisualFormat, count: int) -> None:
        self.tokenizer = tokenizer
        self.visual = visual
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, items: Sequence[int]) -> dict[str, Tensor]:
        rows, lengths, clips = [], [], []
        for item in items:
            frames = np.empty((4, self.visual.height, self.visual.width, 3), np.uint8)
            frames[:2], frames[2:] = (list(COLOURS.values())[number] for number in (item % 4, item // 4 % 4))
            clip, tokens = visual_inputs(frames, self.visual)
            question = "what is it" if item % 2 else "what colours are there"
            prompt = self.tokenizer.encode(self.visual.video_token * tokens + question, add_special_tokens=False)
            answer = self.tokenizer.encode(answer_of(item), add_special_tokens=False)
            rows.append([*prompt, *answer, self.tokenizer.eos_token_id])
            lengths.append(len(prompt))
            clips.append(clip)
        longest = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
        labels = torch.full_like(ids, -100)
        for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            labels[place, length : len(row)] = ids[place, length : len(row)]
        batch = {
            "input_ids": ids,
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
            "labels": labels,
            "prompt_length": torch.tensor(lengths),
            "item": torch.tensor(list(items)),
            **{name: torch.cat([clip[name] for clip in clips]) for name in clips[0]},
        }
        if self.visual.family == "qwen2_5_vl":
            batch["mm_token_type_ids"] = (ids == self.visual.video_token_id).long() * 2
        return batch


class TinyVideo(LightningDataModule):
    """What `VideoCaptions` promises, on clips that take no time to make; `can_score` as with its embedded world."""

    def __init__(self, family: str = "qwen2_5_vl", can_score: bool = True, max_tokens: int = 64) -> None:
        super().__init__()
        self.family = family
        self.can_score = can_score
        self.max_tokens = max_tokens

    def setup(self, stage: str | None = None) -> None:
        tokenizer = train_tokenizer([answer_of(item) for item in range(48)], 300)
        tokenizer.add_special_tokens({"additional_special_tokens": list(FAMILIES[self.family].tokens.values())})
        self.tokenizer = tokenizer
        names = FAMILIES[self.family].tokens
        numbers = {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
        self.visual = VisualFormat(
            family=self.family,  # type: ignore[arg-type]
            patch_size=4,
            merge_size=2,
            temporal_patch_size=2 if self.family == "qwen2_5_vl" else 1,
            height=8,
            width=8,
            max_pixels=None,
            video_token=names["video_token_id"],
            **numbers,
        )

    def batch(self, items: Sequence[int]) -> dict[str, Tensor]:
        """One batch of the given items."""
        return Clips(self.tokenizer, self.visual, 48)[items]

    def score(self, text: str, item: int, part: str) -> SlotScore | None:
        """Which of the two colours a text tells at its place."""
        if not self.can_score:
            return None
        wanted = answer_of(item).split()
        words = text.split()
        return SlotScore(sum(words[place : place + 1] == wanted[place : place + 1] for place in (1, 3)), 2)

    def train_dataloader(self) -> BatchLoader:
        return self._loader(48, train=True)

    def val_dataloader(self) -> BatchLoader:
        return self._loader(8, train=False)

    def test_dataloader(self) -> BatchLoader:
        return self._loader(8, train=False)

    def predict_dataloader(self) -> DataLoader[Any]:
        loader = self.val_dataloader()
        return DataLoader(loader.dataset, batch_size=None, sampler=loader.sampler)

    def _loader(self, count: int, train: bool) -> BatchLoader:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = BatchSampler(count, batch_size=4, rank=rank, world_size=world, train=train, seed=0)
        return BatchLoader(Clips(self.tokenizer, self.visual, count), sampler, num_workers=0, pin_memory=False)


def video_data(family: str = "qwen2_5_vl", **settings: Any) -> TinyVideo:
    """The datamodule, set up."""
    data = TinyVideo(family, **settings)
    data.setup()
    return data


def video_model(family: str = "qwen2_5_vl", **settings: Any) -> VisionLanguageModel:
    """Two layers of text and two of vision, with fresh weights."""
    settings.setdefault("seed", 0)
    if "path" not in settings:
        settings.setdefault("config", CONFIGS[family])
    return VisionLanguageModel(**settings)


def built(family: str = "qwen2_5_vl", **settings: Any) -> tuple[VisionLanguageModel, TinyVideo]:
    """A model built for its data, without a trainer, in evaluation mode."""
    data, module = video_data(family), video_model(family, **settings)
    module.build_for(data)
    return module.eval(), data


def exported(folder: Path, family: str = "qwen2_5_vl") -> str:
    """The folder of an exported model."""
    module, _ = built(family)
    module.save_pretrained(folder / "model")
    return str(folder / "model")
