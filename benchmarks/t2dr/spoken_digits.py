"""Spoken, handwritten and spelled digits as one data set, in the layout of MMSA's feature files.

    python -m benchmarks.t2dr.spoken_digits digits.pkl
    saccade fit ... --data MultimodalSentiment --data.path digits.pkl --data.task classification

Each of the 3,000 recordings of the Free Spoken Digit Dataset is one sample:

- audio: its log-mel energies, 24 bands, at most 50 frames;
- vision: one of scikit-learn's handwritten digits of the same class, its 8 rows of 8 pixels as a sequence of 8;
- text: the digit's word letter by letter between two special tokens, with some letters replaced and noise added. This
  is the only part that is not real.

The split is the usual one of the data set: for every speaker and digit, recordings 0 to 4 are the test part, 5 to 9 the
validation part, and the others the training part. Images are split too: those of test and validation samples are used
once and in no other part. The seed determines everything. A sample depends neither on the others nor on `--limit`,
except for the images that training samples share.
"""

from __future__ import annotations

import argparse
import io
import os
import pickle
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import wavfile
from sklearn.datasets import load_digits

from saccade.common.files import replacing

RECORDINGS = "audio/fsdd_recordings.tar.xz"
SHARED_DATA = Path(os.environ.get("SACCADE_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PARTS = ("train", "valid", "test")

RATE = 8000  # Hz
WINDOW, HOP, FFT, BANDS, FRAMES = 200, 80, 256, 24, 50  # 25 ms and 10 ms
TOKENS, TEXT_WIDTH = 12, 16
# chosen so that a linear classifier of the text alone is right for 85 to 90 of 100 test samples
MISTAKEN, NOISE = 0.45, 1.0
ALPHABET = "abcdefghijklmnopqrstuvwxyz "
HELD_OUT_IMAGES = 30  # of each digit for each held-out part: 6 speakers, 5 recordings

Array = NDArray[Any]


def read_recordings(path: Path, limit: int | None = None) -> dict[tuple[int, str, int], Array]:
    """Reads the archive of recordings.

    Args:
        path: ``fsdd_recordings.tar.xz``; its files are called ``<digit>_<speaker>_<index>.wav``.
        limit: Only recordings whose index is below; None reads all.

    Returns:
        Samples in -1..1, float64, at 8 kHz, by digit, speaker and index, in sorted order.

    Raises:
        ValueError: The archive does not exist, holds no recording, or one that is not mono at 8 kHz.
    """
    if not path.is_file():
        raise ValueError(
            f"recordings must be the archive of recordings, got {path}, which is no file: name it, or set"
            " SACCADE_SHARED_DATA."
        )
    found: dict[tuple[int, str, int], Array] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            match = re.fullmatch(r"(?:.*/)?(\d)_([a-z]+)_(\d+)\.wav", member.name)
            stream = archive.extractfile(member) if match else None
            if match is None or stream is None or (limit is not None and int(match[3]) >= limit):
                continue
            rate, samples = wavfile.read(io.BytesIO(stream.read()))
            if rate != RATE or samples.ndim != 1 or samples.dtype != np.int16:
                raise ValueError(
                    f"recordings must be mono, 16 bit and {RATE} Hz, got {member.name} with {samples.dtype} and {rate}"
                    " Hz: convert it."
                )
            found[int(match[1]), match[2], int(match[3])] = samples / 32768
    if not found:
        raise ValueError(f"recordings must hold files <digit>_<speaker>_<index>.wav, got {path} without: name another.")
    return dict(sorted(found.items()))


def mel_filters() -> Array:
    """Triangles that are equally wide on the mel scale, [BANDS, FFT // 2 + 1]."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    bins = np.linspace(0, RATE / 2, FFT // 2 + 1)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.clip(np.minimum(rising, falling), 0, None)


def log_mel(samples: Array) -> Array:
    """Log-mel energies of a recording; neighbouring frames of a long one are averaged.

    Args:
        samples: In -1..1, [N].

    Returns:
        Natural logarithms, float32 [T, BANDS] with T from 1 to FRAMES.
    """
    samples = np.pad(samples, (0, max(0, WINDOW - len(samples))))
    windows = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(windows, FFT)) ** 2
    # the constant is below the noise of 16 bits, and keeps silence from becoming a row of zeros
    frames = np.log(power @ mel_filters().T + 1e-7)
    together = -(-len(frames) // FRAMES)
    averaged = [frames[start : start + together].mean(0) for start in range(0, len(frames), together)]
    return np.stack(averaged).astype(np.float32)


def spell(digit: int, draw: np.random.Generator) -> tuple[str, Array]:
    """The text channel of one sample.

    Args:
        digit: 0 to 9.
        draw: Random numbers for this sample.

    Returns:
        The letters with the replaced ones (the word, repeated), and the features float32
        [TOKENS, TEXT_WIDTH], whose first and last row are the special tokens.
    """
    letters = list(((WORDS[digit] + " ") * TOKENS)[: TOKENS - 2])
    for place in np.flatnonzero(draw.random(len(letters)) < MISTAKEN):
        letters[place] = ALPHABET[draw.integers(len(ALPHABET))]
    # the table is the same for all samples
    table = np.random.default_rng(26).normal(size=(len(ALPHABET) + 2, TEXT_WIDTH))
    rows = [len(ALPHABET), *(ALPHABET.index(letter) for letter in letters), len(ALPHABET) + 1]
    features = table[rows]
    features[1:-1] += NOISE * draw.normal(size=(TOKENS - 2, TEXT_WIDTH))
    return "".join(letters), features.astype(np.float32)


def split_images(seed: int) -> tuple[Array, dict[tuple[int, str], Array]]:
    """Handwritten digits, and the parts that they belong to.

    Args:
        seed: Seed of the split.

    Returns:
        Pixels 0 to 1, float32 [N, 8, 8], and for each digit and part the indices of its images.
    """
    data = load_digits()
    shares: dict[tuple[int, str], Array] = {}
    for digit in range(10):
        own = np.random.default_rng([seed, digit]).permutation(np.flatnonzero(data.target == digit))
        test, valid, train = np.split(own, [HELD_OUT_IMAGES, 2 * HELD_OUT_IMAGES])
        shares |= {(digit, "test"): test, (digit, "valid"): valid, (digit, "train"): train}
    return (data.images / 16).astype(np.float32), shares


def part_of(index: int) -> str:
    """The part of a recording, by its index: 0 to 4 test, 5 to 9 valid, else train."""
    return "test" if index < 5 else "valid" if index < 10 else "train"


def build(recordings: Path, seed: int = 0, limit: int | None = None) -> dict[str, dict[str, Any]]:
    """Makes the data set.

    Args:
        recordings: The archive.
        seed: Seed of images and text, not of the split of recordings.
        limit: Only recordings whose index is below, at least 11; None takes all 50.

    Returns:
        ``train``, ``valid`` and ``test``, each a dictionary with the keys of MMSA's files: text [N, 12, 16], audio
        [N, 50, 24], vision [N, 8, 8], text_bert [N, 3, 12] (letters as BERT's English vocabulary numbers them), all
        float32; audio_lengths and vision_lengths; id, raw_text and annotations; classification_labels and
        regression_labels, both the digit.

    Raises:
        ValueError: The recordings cannot be read, or too few are taken.
    """
    if limit is not None and limit < 11:
        raise ValueError(
            f"limit must be at least 11, got {limit}: training needs one recording of each digit and speaker."
        )
    images, shares = split_images(seed)
    samples: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    used = dict.fromkeys(shares, 0)
    speakers: dict[str, int] = {}
    for (digit, speaker, index), sound in read_recordings(recordings, limit).items():
        place = digit, part_of(index)
        image = int(shares[place][used[place] % len(shares[place])])
        used[place] += 1
        name = f"{digit}_{speaker}_{index}$_${image}"
        voice = speakers.setdefault(speaker, len(speakers))
        letters, text = spell(digit, np.random.default_rng([seed, digit, voice, index]))
        samples[part_of(index)].append(
            {"id": name, "raw_text": letters, "text": text, "audio": log_mel(sound), "vision": images[image]}
            | {"digit": digit}
        )
    return {part: _layout(items) for part, items in samples.items()}


def _layout(items: list[dict[str, Any]]) -> dict[str, Any]:
    audio = np.zeros((len(items), FRAMES, BANDS), np.float32)
    bert = np.zeros((len(items), 3, TOKENS), np.float32)
    bert[:, 1] = 1
    for row, item in enumerate(items):
        audio[row, : len(item["audio"])] = item["audio"]
        # [CLS], letters, [SEP]; a gap is a full stop, because BERT has no token for a space
        numbers = [1012 if letter == " " else 1037 + ord(letter) - ord("a") for letter in item["raw_text"]]
        bert[row, 0] = [101, *numbers, 102]
    digits = np.array([item["digit"] for item in items])
    return {
        "raw_text": np.array([item["raw_text"] for item in items]),
        "text": np.stack([item["text"] for item in items]),
        "text_bert": bert,
        "audio": audio,
        "vision": np.stack([item["vision"] for item in items]),
        "audio_lengths": [len(item["audio"]) for item in items],
        "vision_lengths": [8] * len(items),
        "id": [item["id"] for item in items],
        "annotations": [WORDS[digit] for digit in digits],
        "classification_labels": digits.astype(np.int64),
        "regression_labels": digits.astype(np.float32),
    }


def write(data: dict[str, dict[str, Any]], path: Path) -> None:
    """Writes the data set as a pickle, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(pickle.dumps(data, protocol=4))


def main() -> None:
    """Makes the data set and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--recordings", type=Path, default=SHARED_DATA / RECORDINGS, help="fsdd_recordings.tar.xz")
    parser.add_argument("--seed", type=int, default=0, help="seed of images and text")
    parser.add_argument("--limit", type=int, default=None, help="only recordings whose index is below, at least 11")
    arguments = parser.parse_args()
    try:
        data = build(arguments.recordings, arguments.seed, arguments.limit)
    except ValueError as error:
        parser.error(str(error))
    write(data, arguments.out)
    print(f"{arguments.out}: " + ", ".join(f"{len(data[part]['id'])} {part}" for part in PARTS))


if __name__ == "__main__":
    main()
