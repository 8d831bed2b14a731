"""Video clips with their texts, and the data set that turns them into batches of tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from saccade.datamodules.text.files import PARTS
from saccade.datamodules.video.frames import FRAMES_PER_SECOND
from saccade.datamodules.video.grammar import LIST_PROMPT, PROMPTS, caption, fact_list
from saccade.datamodules.video.preprocessing import VisualFormat, visual_batch
from saccade.datamodules.video.reading import ManifestRow, clip_times, read_clip
from saccade.datamodules.video.scenes import Scene, make_scene, render
from saccade.datamodules.video.tokenization import END, prompt_ids, refuse_special_tokens, token_types

IGNORED = -100
"""Label of tokens that do not count in the loss, as in transformers."""
_TEMPLATE = 40  # more tokens than a prompt and an answer have beside the video and their own texts
_TIME = 24  # more tokens than the time of a group of frames and the marks around it


class ClipSource(ABC):
    """Clips with a question and an answer each."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of clips."""

    @abstractmethod
    def texts(self, item: int) -> tuple[str, str]:
        """Question and answer of a clip."""

    @abstractmethod
    def frames_of(self, items: Sequence[int]) -> int:
        """Number of frames of each clip of a batch."""

    @abstractmethod
    def film(self, item: int, frames: int) -> np.ndarray:
        """Some frames of a clip, spread evenly over it, uint8 [F, H, W, 3]."""

    @abstractmethod
    def times(self, item: int, frames: int) -> list[float]:
        """When each of these frames is shown, in seconds."""

    @abstractmethod
    def name(self, item: int) -> str:
        """What a user calls the clip."""

    @abstractmethod
    def place(self, item: int) -> str:
        """Where the clip comes from, for messages."""


@dataclass(frozen=True)
class Scenes(ClipSource):
    """Clips of synthetic scenes.

    Attributes:
        part: `train`, `validation` or `test`.
        count: Number of scenes.
        seed: Seed of the scenes.
        max_digits: Most digits of a scene.
        shape: Number of frames, height and width.
        fact_lists: Share of the clips with a list of facts as answer instead of a caption, 0 to 1.
        list_scenes: Number of clips, from the first one on, that all have lists.
        list_frames: Number of frames of a batch of such clips alone; None takes that of `shape`.
    """

    part: str
    count: int
    seed: int
    max_digits: int
    shape: tuple[int, int, int]
    fact_lists: float = 0.0
    list_scenes: int = 0
    list_frames: int | None = None

    def __len__(self) -> int:
        return self.count

    def scene(self, item: int) -> Scene:
        """Scene of a clip."""
        return make_scene(self.seed, self.part, item, self.max_digits)

    def texts(self, item: int) -> tuple[str, str]:
        """Question and answer of a clip."""
        # other random numbers than those of the scene
        place = [self.seed, PARTS.index(self.part), item]
        if item < self.list_scenes or np.random.default_rng([*place, 2]).random() < self.fact_lists:
            return LIST_PROMPT, fact_list(self.scene(item))
        random = np.random.default_rng([*place, 1])
        return PROMPTS[random.integers(len(PROMPTS))], caption(self.scene(item), random)

    def frames_of(self, items: Sequence[int]) -> int:
        """`list_frames` if the batch has early lists only: all clips of a batch need equally many."""
        if self.list_frames is not None and all(item < self.list_scenes for item in items):
            return self.list_frames
        return self.shape[0]

    def film(self, item: int, frames: int) -> np.ndarray:
        """Frames of a clip, uint8 [F, H, W, 3]."""
        return render(self.scene(item), frames, *self.shape[1:])

    def times(self, item: int, frames: int) -> list[float]:
        """When each frame of a clip is shown, in seconds: a clip of fewer frames is a shorter one."""
        return [frame / FRAMES_PER_SECOND for frame in range(frames)]

    def name(self, item: int) -> str:
        """Part and index."""
        return f"{self.part}-{item}"

    def place(self, item: int) -> str:
        """Index and part."""
        return f"item {item} of the {self.part} part"


@dataclass(frozen=True)
class Files(ClipSource):
    """Clips of the rows of a manifest.

    Attributes:
        rows: The rows.
        frames: Number of frames to read from each clip.
    """

    rows: list[ManifestRow]
    frames: int

    def __len__(self) -> int:
        return len(self.rows)

    def texts(self, item: int) -> tuple[str, str]:
        """Question and answer of a clip."""
        return self.rows[item].prompt, self.rows[item].answer

    def frames_of(self, items: Sequence[int]) -> int:
        """The same for all batches."""
        return self.frames

    def film(self, item: int, frames: int) -> np.ndarray:
        """Frames of a clip, uint8 [F, H, W, 3]."""
        return read_clip(self.rows[item].video, frames)

    def times(self, item: int, frames: int) -> list[float]:
        """When each frame of a clip is shown, in seconds."""
        return clip_times(self.rows[item].video, frames)

    def name(self, item: int) -> str:
        """The row's `id`, or the path of the clip as the manifest writes it."""
        return self.rows[item].id

    def place(self, item: int) -> str:
        """Manifest and line."""
        return self.rows[item].place


class Clips(Dataset[dict[str, Tensor]]):
    """A data set that returns a whole batch of clips for a list of indices.

    Args:
        source: Clips and texts.
        tokenizer: Tokenizer of the model.
        visual: Visual format of the model.
        max_tokens: Most tokens of a sequence.
    """

    def __init__(
        self, source: ClipSource, tokenizer: PreTrainedTokenizerFast, visual: VisualFormat, max_tokens: int
    ) -> None:
        self.source = source
        self.tokenizer = tokenizer
        self.visual = visual
        self.max_tokens = max_tokens
        self._end = tokenizer.get_vocab()[END]
        pad = tokenizer.pad_token_id
        self._pad = pad if isinstance(pad, int) else self._end

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a whole batch; see `VideoCaptions`.

        Raises:
            ValueError: A clip cannot be read, a text contains special tokens, or a sequence is too long; the message
                says which clip, for a manifest its line.
        """
        sequences, lengths = [], []
        frames = self.source.frames_of(indices)
        # one after another: a whole film is large, and only its resized frames are kept
        pixels, counts = visual_batch((self._film(item, frames) for item in indices), self.visual)
        for item, count in zip(indices, counts, strict=True):
            ids, length = self._sequence(item, count, frames)
            lengths.append(length)
            sequences.append(torch.tensor(ids))
        input_ids = pad_sequence(sequences, batch_first=True, padding_value=self._pad)
        prompt_length = torch.tensor(lengths)
        position = torch.arange(input_ids.shape[1])
        attention_mask = (position < torch.tensor([len(ids) for ids in sequences])[:, None]).long()
        answers = (position >= prompt_length[:, None]) & (attention_mask == 1)
        batch = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": input_ids.where(answers, IGNORED),
            "prompt_length": prompt_length,
            "item": torch.tensor(list(indices)),
            **pixels,
        }
        if not self.visual.pooled:
            batch["mm_token_type_ids"] = token_types(input_ids, self.visual)
        return batch

    def check_texts(self) -> None:
        """Refuse texts that spell special tokens.

        Raises:
            ValueError: A question or an answer has a special token; the message names its place.
        """
        for item in range(len(self)):
            for name, text in zip(("prompt", "answer"), self.source.texts(item), strict=True):
                refuse_special_tokens(text, f"{self.source.place(item)}: {name}", self.tokenizer)

    def check_lengths(self, frames: int, sizes: Mapping[Path, tuple[int, int]]) -> None:
        """Refuse clips of files whose sequences would be too long.

        Args:
            frames: Number of frames of each clip.
            sizes: Height and width of each file, in pixels.

        Raises:
            ValueError: A sequence would be longer than `max_tokens`, or a clip is too elongated.
        """
        if not isinstance(self.source, Files):
            return
        for item, row in enumerate(self.source.rows):
            try:
                count = self.visual.tokens(frames, *self.visual.size_of(*sizes[row.video]))
            except ValueError as error:
                raise ValueError(f"{row.place}: {error}") from error
            # no text has more tokens than bytes, so that few have to be counted
            more = _TEMPLATE + (_TIME * frames if self.visual.timed else 0)
            if count + len(row.prompt.encode()) + len(row.answer.encode()) + more > self.max_tokens:
                self._sequence(item, count, frames)

    def _film(self, item: int, frames: int) -> np.ndarray:
        try:
            film = self.source.film(item, frames)
            self.visual.size_of(film.shape[1], film.shape[2])
        except ValueError as error:
            raise ValueError(f"{self.source.place(item)}: {error}") from error
        return film

    def _sequence(self, item: int, count: int, frames: int) -> tuple[list[int], int]:
        """Token ids of a clip with `count` video tokens of `frames` frames, and how many of them are the prompt."""
        prompt, answer = self.source.texts(item)
        times = self.source.times(item, frames) if self.visual.timed else []
        ids = prompt_ids(self.tokenizer, self.visual, prompt, count, times)
        length = len(ids)
        ids += [*self.tokenizer.encode(answer, add_special_tokens=False), self._end]
        if len(ids) > self.max_tokens:
            raise ValueError(
                f"max_tokens must be at least {len(ids)} ({count} for the video) for {self.source.place(item)}, got"
                f" {self.max_tokens}: raise it, or lower frames, height and width."
            )
        return ids, length
