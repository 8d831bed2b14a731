"""A generator of synthetic multimodal data in the MMSA file layout."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saccade.common.checks import check_count, check_not_negative
from saccade.common.files import replacing

Array = np.ndarray[Any, np.dtype[Any]]

_LENGTH = 50  # positions of the aligned files: [CLS], at most 48 words, [SEP]
_LATENTS = 6  # latent variables of an event; the first one is its polarity
_CLS, _SEP = 101, 102
_FIRST_WORD = 2000  # token ids below it are special or unused
_FUNCTION_WORDS = 24
_SYNONYMS = 3
_TOPICS = 4
_CLIPS_PER_VIDEO = 14
# shares of the rounded labels -3 to 3 in CMU-MOSI's training part, and of exact zeros among them
_MOSI_CLASSES = (0.019, 0.155, 0.177, 0.193, 0.177, 0.244, 0.036)
_MOSI_ZERO, _MOSI_WEAK_NEGATIVE = 0.041, 0.079
_SPLITS = ("train", "valid", "test")


@dataclass
class SyntheticSentiment:
    """A generator of sentiment samples on which missing data matters (ours); it is not tuned to any method.

    A clip has a few short *events*. Each event has a polarity and five further latent variables. The label is the mean
    polarity of the events, in steps of 0.2, distributed as in CMU-MOSI. All three modalities show the same events at
    the same time with independent errors, so that what one has lost is partly known from the others. Between the events
    there are function words, and sound and pictures without information. All clips of a video have the same speaker,
    with a voice and a face; a speaker is in one split only. Rows are exactly zero where no face is found (in blocks, in
    some clips everywhere) and where nobody speaks (pauses and single frames).

    Args:
        clips: Number of clips in the training, validation and test split.
        text_width: Features of a word.
        audio_width: Features of a sound frame.
        vision_width: Features of a picture.
        text_error: Standard deviation of the error of an event's polarity in the text, on the scale of the label.
        audio_error: The same for sound.
        vision_error: The same for pictures.
        polarity_spread: Standard deviation of the polarities of one clip around its label.
        zero_rows: Include the rows of zeros described above.
        seed: Seed of all random numbers.

    Raises:
        ValueError: A setting is invalid.
    """

    clips: tuple[int, int, int] = (1284, 229, 686)
    text_width: int = 32
    audio_width: int = 5
    vision_width: int = 20
    text_error: float = 0.3
    audio_error: float = 1.5
    vision_error: float = 1.2
    polarity_spread: float = 1.2
    zero_rows: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.clips) != 3 or min(self.clips) < 1:
            raise ValueError(
                f"clips must be three numbers of at least 1, got {self.clips}: give those of train, valid and test."
            )
        for name in ("text_width", "audio_width", "vision_width"):
            check_count(name, getattr(self, name))
        for name in ("text_error", "audio_error", "vision_error", "polarity_spread"):
            check_not_negative(name, getattr(self, name))

    def generate(self) -> dict[str, dict[str, Any]]:
        """Generate all splits.

        Returns:
            For `train`, `valid` and `test` the arrays of the MMSA layout: `raw_text`, `id`, `annotations` [N], `text`
            [N, 50, text_width], `text_bert` [N, 3, 50] (token ids, mask, segments), `audio` [N, 50, audio_width],
            `vision` [N, 50, vision_width], `audio_lengths`, `vision_lengths`, `classification_labels` (0, 1, 2 for
            negative, zero, positive) and `regression_labels` [N].
        """
        world = np.random.default_rng([self.seed, 0])
        widths = {"text": self.text_width, "audio": self.audio_width, "vision": self.vision_width}
        expression = {name: _Expression(world, width) for name, width in widths.items()}
        function_words = world.normal(size=(_FUNCTION_WORDS, self.text_width))
        made: dict[str, dict[str, Any]] = {}
        first_video = 0
        for number, (split, clips) in enumerate(zip(_SPLITS, self.clips, strict=True)):
            draw = np.random.default_rng([self.seed, 1 + number])
            made[split] = self._split(draw, clips, first_video, expression, function_words)
            first_video += -(-clips // _CLIPS_PER_VIDEO)
        return made

    def write(self, path: str | Path) -> None:
        """Write the splits as a pickle, atomically.

        Args:
            path: File to write or to replace.

        Raises:
            ValueError: The file cannot be written.
        """
        samples = self.generate()
        with replacing(path) as temporary, temporary.open("wb") as stream:
            pickle.dump(samples, stream, protocol=4)

    def _split(
        self,
        draw: np.random.Generator,
        clips: int,
        first_video: int,
        expression: dict[str, _Expression],
        function_words: Array,
    ) -> dict[str, Any]:
        labels = draw_labels(draw, clips)
        text = np.zeros((clips, _LENGTH, self.text_width), np.float32)
        audio = np.zeros((clips, _LENGTH, self.audio_width), np.float32)
        vision = np.zeros((clips, _LENGTH, self.vision_width), np.float32)
        tokens = np.zeros((clips, 3, _LENGTH), np.int64)
        lengths = np.clip(np.rint(draw.normal(15, 7, clips)), 5, _LENGTH - 2).astype(np.int64)
        names: list[str] = []
        spoken: list[str] = []
        voice = face = np.zeros(0)
        for clip in range(clips):
            video, place = divmod(clip, _CLIPS_PER_VIDEO)
            if place == 0:
                voice, face = draw.normal(0, 0.7, self.audio_width), draw.normal(0, 0.7, self.vision_width)
            names.append(f"video{first_video + video:04d}$_${place}")
            length = int(lengths[clip])
            content, event_of = self._events(draw, float(labels[clip]), length)
            words, numbers = self._words(draw, content, event_of, expression["text"], function_words)
            text[clip, 1 : length + 1] = words
            tokens[clip, 0, : length + 2] = [_CLS, *numbers, _SEP]
            tokens[clip, 1, : length + 2] = 1
            spoken.append(" ".join(_word(number) for number in numbers))
            for array, name, error, speaker in (
                (audio, "audio", self.audio_error, voice),
                (vision, "vision", self.vision_error, face),
            ):
                rows = self._frames(draw, content, event_of, expression[name], error, speaker)
                if self.zero_rows:
                    rows[_zero_by_nature(draw, length, name)] = 0
                array[clip, :length] = rows
        sign = np.sign(labels).astype(np.int64)
        # [CLS] and [SEP] have features, too, which do not depend on the clip
        text[:, 0] = function_words[0]
        text[np.arange(clips), lengths + 1] = function_words[1]
        return {
            "raw_text": np.array(spoken),
            "id": np.array(names),
            "text": text,
            "text_bert": tokens.astype(np.float32),
            "audio": audio,
            "vision": vision,
            "audio_lengths": lengths.tolist(),
            "vision_lengths": lengths.tolist(),
            "annotations": np.array(["Negative", "Neutral", "Positive"])[sign + 1],
            "classification_labels": sign + 1,
            "regression_labels": labels.astype(np.float32),
        }

    def _events(self, draw: np.random.Generator, label: float, length: int) -> tuple[Array, Array]:
        """Latent variables of each event [K, 6], and the event of each position, -1 if there is none [length]."""
        count = int(draw.integers(2, 4)) if length >= 9 else 1
        content = draw.normal(0, 1, (1, _LATENTS)) + 0.5 * draw.normal(0, 1, (count, _LATENTS))
        spread = draw.normal(0, self.polarity_spread, count)
        content[:, 0] = label + spread - spread.mean()
        event_of = np.full(length, -1)
        slots = np.array_split(np.arange(length), count)
        for event, slot in enumerate(slots):
            size = int(draw.integers(1, 4))
            start = int(slot[0] + draw.integers(0, max(1, len(slot) - size + 1)))
            event_of[start : min(start + size, slot[-1] + 1)] = event
        return content, event_of

    def _words(
        self,
        draw: np.random.Generator,
        content: Array,
        event_of: Array,
        expression: _Expression,
        function_words: Array,
    ) -> tuple[Array, list[int]]:
        told = content + self.text_error * draw.normal(size=content.shape)
        numbers = draw.integers(0, _FUNCTION_WORDS, len(event_of))
        rows = function_words[numbers] + 0.3 * draw.normal(size=(len(event_of), self.text_width))
        for place, event in enumerate(event_of):
            if event >= 0:
                rows[place] = expression(told[event]) + 0.3 * draw.normal(size=self.text_width)
                level = int(np.clip(np.rint(told[event, 0] * 2), -8, 8)) + 8
                topic = int(told[event, 1] > 0) + 2 * int(told[event, 2] > 0)
                synonym = int(draw.integers(0, _SYNONYMS))
                numbers[place] = _FUNCTION_WORDS + (level * _TOPICS + topic) * _SYNONYMS + synonym
        return rows, [_FIRST_WORD + int(number) for number in numbers]

    def _frames(
        self,
        draw: np.random.Generator,
        content: Array,
        event_of: Array,
        expression: _Expression,
        error: float,
        speaker: Array,
    ) -> Array:
        # the polarity has a larger error than the other latent variables, so that not only the label is shared
        errors = np.full(_LATENTS, 0.6)
        errors[0] = error
        told = content + errors * draw.normal(size=content.shape)
        rows = np.empty((len(event_of), len(speaker)))
        noise = draw.normal(size=rows.shape)
        rows[0] = noise[0]
        for place in range(1, len(rows)):  # sound and pictures change slowly over time
            rows[place] = 0.7 * rows[place - 1] + np.sqrt(1 - 0.7**2) * noise[place]
        rows *= 0.5
        for place, event in enumerate(event_of):
            if event >= 0:
                rows[place] += expression(told[event])
        return rows + speaker


class _Expression:
    """A fixed random non-linear map from the latent variables of an event to the features of a modality."""

    def __init__(self, world: np.random.Generator, width: int) -> None:
        self.linear = world.normal(size=(width, _LATENTS)) / np.sqrt(_LATENTS)
        self.inner = world.normal(size=(2 * _LATENTS, _LATENTS)) / np.sqrt(_LATENTS)
        self.outer = world.normal(size=(width, 2 * _LATENTS)) / np.sqrt(2 * _LATENTS)
        self.constant = world.normal(size=width)

    def __call__(self, content: Array) -> Array:
        """Features [width] of the latent variables [6] of an event."""
        moved: Array = self.linear @ content + self.outer @ np.tanh(self.inner @ content) + self.constant
        return moved


def draw_labels(draw: np.random.Generator, count: int) -> Array:
    """Draw labels with the distribution of the training part of CMU-MOSI.

    Args:
        draw: Random number generator.
        count: Number of labels.

    Returns:
        Labels from -3 to 3 in steps of 0.2, float64 [count].
    """
    grid = np.arange(-15, 16) / 5.0
    share = np.zeros(len(grid))
    for rounded, probability in zip(range(-3, 4), _MOSI_CLASSES, strict=True):
        inside = np.rint(grid) == rounded
        share[inside] = probability / inside.sum()
    share[np.rint(grid) == 0] = 0
    share[grid == 0] = _MOSI_ZERO
    share[(grid < 0) & (np.rint(grid) == 0)] = _MOSI_WEAK_NEGATIVE / 2
    rest = _MOSI_CLASSES[3] - _MOSI_ZERO - _MOSI_WEAK_NEGATIVE
    share[(grid > 0) & (np.rint(grid) == 0)] = rest / 2
    return draw.choice(grid, size=count, p=share / share.sum())


def _zero_by_nature(draw: np.random.Generator, length: int, name: str) -> Array:
    """Rows that a feature extractor would leave at zero, bool [length]."""
    zero = np.zeros(length, bool)
    if name == "vision":
        if draw.random() < 0.03:  # no face in the whole clip
            zero[:] = True
        elif draw.random() < 0.25:
            size = max(1, int(length * draw.uniform(0.1, 0.5)))
            start = int(draw.integers(0, length - size + 1))
            zero[start : start + size] = True
    else:
        zero |= draw.random(length) < 0.06
        if draw.random() < 0.2:
            size = max(1, length // 6)
            start = int(draw.integers(0, length - size + 1))
            zero[start : start + size] = True
    return zero


def _word(number: int) -> str:
    """A pronounceable word for a token id, so that the raw text is readable."""
    syllables = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "wo", "zu")
    word = ""
    rest = number - _FIRST_WORD + 1
    while rest:
        rest, place = divmod(rest, len(syllables))
        word += syllables[place]
    return word
