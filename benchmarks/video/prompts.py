"""Held-out clips of a training run's data as prompts, and measures of the answers' accuracy and variety."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel

from benchmarks.decoding.decode import distinct_4
from saccade.callbacks.decoding.report import DEGENERATE_BELOW
from saccade.datamodules import VideoCaptions
from saccade.datamodules.video.grammar import SlotScore
from saccade.inference.huggingface.models import device_of, text_config
from saccade.inference.huggingface.vision import visual_token_ids
from saccade.modules.language.vision_prompts import prompt_inputs

CONFIGS = Path(__file__).parents[2] / "configs"
SAMPLES = 10_000
_DRAWS = 500  # bootstrap samples that are drawn at once


@dataclass
class Batch:
    """Prompts that are decoded together.

    Args:
        items: Their indices in the test part.
        inputs: What ``generate`` reads, padded on the left, on the models' device.
    """

    items: list[int]
    inputs: dict[str, Any]


class HeldOut:
    """The first clips of the test part of a run's data, with their answers.

    Args:
        configs: YAML files with a ``data`` section; a later one overrides an earlier one: a run's ``config.yaml``, or a
            shipped one such as ``video/qwen.yaml``.
        tokenizer: Folder of the model.
        videos: How many clips.
        frames: Frames of a clip; ``None`` takes the configuration's.
        size: Height and width of a frame in pixels; ``None`` takes the configuration's.

    Attributes:
        data: The datamodule, set up.
        video_tokens: Placeholders of a clip in its prompt.

    Raises:
        SystemExit: A file cannot be used, or the data is not the embedded scenes.
    """

    def __init__(
        self, configs: Sequence[str], tokenizer: str, videos: int, frames: int | None = None, size: int | None = None
    ) -> None:
        settings = data_settings(configs)
        changed = {"frames": frames, "height": size, "width": size}
        settings |= {name: value for name, value in changed.items() if value is not None}
        # training scenes are not used, and prompts have no limit of length
        settings |= {"tokenizer": tokenizer, "test_scenes": videos, "batch_size": 1, "num_workers": 0}
        settings |= {"scenes": 1, "validation_scenes": 1, "max_tokens": 2**20}
        if settings.get("manifest") is not None:
            raise SystemExit(
                f"data.manifest must be empty, got {settings['manifest']}: only embedded scenes have known facts."
            )
        self.data = VideoCaptions(**settings)
        self.data.setup()
        self.videos = videos
        self.video_tokens = 0
        self._clips: list[dict[str, Tensor]] = []

    def prepare(self, model: PreTrainedModel, size: int) -> list[Batch]:
        """The prompts on a model's device, rendered once.

        Args:
            model: The target.
            size: Prompts of a batch.
        """
        device = device_of(model)
        pad = self.data.tokenizer.pad_token_id
        if not self._clips:
            self._clips = list(self.data.test_dataloader())
        made = []
        for start in range(0, self.videos, size):
            rows = [prompt_inputs(clip, [0], pad) for clip in self._clips[start : start + size]]
            inputs = _joined(rows, pad)
            made.append(
                Batch(list(range(start, start + len(rows))), {name: value.to(device) for name, value in inputs.items()})
            )
        ids = torch.tensor(visual_token_ids(model), device=device)
        self.video_tokens = int(torch.isin(made[0].inputs["input_ids"][0], ids).sum())
        return made

    def text(self, tokens: Sequence[int]) -> str:
        """A text without special tokens."""
        return str(self.data.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def score(self, item: int, tokens: Sequence[int]) -> SlotScore:
        """How many of a clip's facts a text tells."""
        found = self.data.score(self.text(tokens), item, "test")
        if found is None:
            raise RuntimeError(f"Clip {item} has no known facts: take the embedded scenes.")
        return found

    def variety(self, texts: Sequence[Sequence[int]]) -> dict[str, Any]:
        """``distinct_4`` of texts and of as many tokens of the clips' own captions, and whether they are degenerate.

        Args:
            texts: New tokens, of the first clips in their order.
        """
        own = [
            self.data.tokenizer.encode(self.data.answer(item, "test"), add_special_tokens=False)[: len(text)]
            for item, text in enumerate(texts)
        ]
        mine, real = distinct_4([list(text) for text in texts]), distinct_4(own)
        return {
            "distinct_4": round(mine, 4),
            "distinct_4_real": round(real, 4),
            "degenerate": mine < DEGENERATE_BELOW * real,
        }


def data_settings(configs: Sequence[str]) -> dict[str, Any]:
    """The datamodule's arguments from YAML files; a later file overrides an earlier one.

    Raises:
        SystemExit: A file that is not there or has no ``data.init_args``.
    """
    merged: dict[str, Any] = {}
    for name in configs:
        path = next((path for path in (Path(name), CONFIGS / name) if path.is_file()), None)
        if path is None:
            raise SystemExit(f"--config must be a file or a shipped configuration, got {name}: give RUN/config.yaml.")
        given = (yaml.safe_load(path.read_text()) or {}).get("data") or {}
        if "init_args" not in given:
            raise SystemExit(f"--config must have data.init_args, got {name} without: give RUN/config.yaml.")
        merged |= given["init_args"]
    return {name: tuple(value) if isinstance(value, list) else value for name, value in merged.items()}


def default_config(target: str) -> list[str]:
    """The configuration beside an exported model: ``RUN/config.yaml`` for ``RUN/model``."""
    return [str(Path(target).parent / "config.yaml")]


def load(path: str, dtype: torch.dtype, device: torch.device | str = "cpu") -> PreTrainedModel:
    """A vision-language model in evaluation mode.

    Raises:
        SystemExit: The folder has no such model.
    """
    try:
        model: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype)
    except (OSError, ValueError) as error:
        raise SystemExit(
            f"--target and --draft must be folders with vision-language models, got {path}"
            f" ({str(error).splitlines()[0]}): give exported ones, RUN/model."
        ) from None
    return model.eval().to(device)


def allow(model: PreTrainedModel, positions: int) -> None:
    """Lets a model read texts of so many positions: rotary embeddings continue beyond the trained context."""
    config = text_config(model)
    config.max_position_embeddings = max(config.max_position_embeddings, positions)


def ratio_interval(a: Sequence[float], b: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Ratio of two means over the same videos, and its 95 % bootstrap interval over videos.

    Args:
        a: Values of the numerator, one for each video.
        b: Values of the denominator, in the same order; their mean must not be 0.
        seed: Seed of the draws.

    Raises:
        ValueError: The numbers of values differ, or the denominator is 0.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(
            f"a and b must hold one value for each video, got {len(a)} and {len(b)} values: give equally many."
        )
    above, below = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if below.mean() == 0:
        raise ValueError("b must have a mean other than 0, got 0: it is what is divided by.")
    drawn = []
    for index in _resampled(len(above), seed):
        divisors = below[index].mean(1)
        drawn.append(above[index].mean(1)[divisors != 0] / divisors[divisors != 0])
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return float(above.mean() / below.mean()), float(low), float(high)


def _resampled(count: int, seed: int) -> Iterator[np.ndarray]:
    """Indices of drawn videos ``[draws, count]``, some draws at a time."""
    draw = np.random.default_rng(seed)
    for _ in range(0, SAMPLES, _DRAWS):
        yield draw.integers(0, count, (_DRAWS, count))


def _joined(rows: Sequence[dict[str, Tensor]], pad: int) -> dict[str, Tensor]:
    """Prompts of one row each as a batch, padded on the left."""
    width = max(row["input_ids"].shape[1] for row in rows)
    made: dict[str, Tensor] = {}
    for name in rows[0]:
        parts = [row[name] for row in rows]
        if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            filling = pad if name == "input_ids" else 0
            parts = [torch.nn.functional.pad(part, (width - part.shape[1], 0), value=filling) for part in parts]
        made[name] = torch.cat(parts)
    return made
