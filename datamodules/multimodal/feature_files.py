"""Feature files in the MMSA layout: reading, recognition of published files, and checks of the whole file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from saccade.datamodules.multimodal.feature_part import FeatureSplit, PartReader, fail, report_zeros
from saccade.datamodules.multimodal.restricted_pickle import read_pickle

SPLITS = ("train", "valid", "test")
"""Names of the splits, as the files have them."""


@dataclass(frozen=True)
class Published:
    """A published feature file.

    Args:
        name: Name of the data set and its variant.
        counts: Number of samples of the training, validation and test split.
        label_range: Largest absolute label.
    """

    name: str
    counts: tuple[int, int, int]
    label_range: float


_MOSI, _MOSEI, _SIMS = (1284, 229, 686), (16326, 1871, 4659), (1368, 456, 457)
PUBLISHED = {
    "d3994fd25681f9c7ad6e9c6596a6fe9b4beb85ff7d478ba978b124139002e5f9": Published("mosi_aligned", _MOSI, 3.0),
    "78e0f8b5ef8ff71558e7307848fc1fa929ecb078203f565ab22b9daab2e02524": Published("mosi_unaligned", _MOSI, 3.0),
    "45eccfb748a87c80ecab9bfac29582e7b1466bf6605ff29d3b338a75120bf791": Published("mosei_aligned", _MOSEI, 3.0),
    "ad8b23d50557045e7d47959ce6c5b955d8d983f2979c7d9b7b9226f6dd6fec1f": Published("mosei_unaligned", _MOSEI, 3.0),
    "c9e20c13ec0454d98bb9c1e520e490c75146bfa2dfeeea78d84de047dbdd442f": Published("sims_unaligned", _SIMS, 1.0),
}
"""Published files by their SHA-256, from the README of MMSA."""


@dataclass
class FeatureFile:
    """The content of a feature file.

    Args:
        dataset: Name of a published file, or `custom`.
        label_range: Largest absolute label that the data can have.
        splits: By name.
    """

    dataset: str
    label_range: float
    splits: dict[str, FeatureSplit]

    @property
    def widths(self) -> dict[str, int]:
        """Number of features of each modality; 1 for token ids."""
        first = next(iter(self.splits.values()))
        return {name: array.shape[2] if array.ndim == 3 else 1 for name, array in first.values.items()}


def read_features(
    path: str | Path,
    text: Literal["features", "tokens"] = "features",
    task: Literal["regression", "classification"] = "regression",
    for_predict: bool = False,
    setting: str = "path",
) -> FeatureFile:
    """Read a file of the MMSA layout, without executing the code that a pickle may contain.

    Args:
        path: Pickle of `train`, `valid` and, for testing, `test`, each with `id` and the arrays `audio`, `vision`
            [N, T, D], `text` [N, T, D] or `text_bert` [N, 3, T] (token ids, mask, segments), and the labels.
            `audio_lengths` and `vision_lengths` [N] are the numbers of positions that are not padding.
        text: Which of the two texts to read.
        task: Which labels to read: `regression_labels` or `classification_labels`.
        for_predict: Accept a file with only the split `test`, or with arrays without splits, and without labels.
        setting: Name of the setting with the path, for messages.

    Returns:
        The content as float32, with -inf replaced by 0 in audio and vision.

    Raises:
        ValueError: The file is invalid.
    """
    file = Path(path).expanduser()
    where = f"{setting} {file}"
    raw = read_pickle(file, where)
    with file.open("rb") as stream:
        published = PUBLISHED.get(hashlib.file_digest(stream, "sha256").hexdigest())
    content = check_features(raw, where, text, task, for_predict, published)
    # nothing can be done about a published file
    zeros = {} if published else {name: report_zeros(split) for name, split in content.splits.items()}
    told = [f"split {name}: {', '.join(found)}" for name, found in zeros.items() if found]
    if told:
        rank_zero_warn(
            f"saccade: {where}: there are only zeros in {'; '.join(told)}. Rows of zeros count as missing: check"
            " the feature extraction unless this is meant."
        )
    return content


def check_features(
    raw: Any,
    where: str,
    text: str = "features",
    task: str = "regression",
    for_predict: bool = False,
    published: Published | None = None,
) -> FeatureFile:
    """Check and convert the content of a file; see `read_features`.

    Args:
        raw: Content of the file. It is emptied on the way, because a large file does not fit in memory twice.
        where: Setting and file, the beginning of the messages.
        text: `features` or `tokens`.
        task: `regression` or `classification`.
        for_predict: Accept one split without labels.
        published: The entry of `PUBLISHED`, if the file is a published one.

    Returns:
        The checked content.

    Raises:
        ValueError: The content is invalid.
    """
    if not isinstance(raw, dict):
        fail(where, f"content must be a dictionary of {', '.join(SPLITS)}, got {type(raw).__name__}")
    if for_predict:
        raw = raw if any(name in raw for name in SPLITS) else {"test": raw}
    splits: dict[str, FeatureSplit] = {}
    for name in ("test",) if for_predict else SPLITS:
        if name == "test" and name not in raw and not for_predict:
            continue  # training needs none
        if not isinstance(raw.get(name), dict):
            others = [key[:20] for key in raw if isinstance(key, str)][:6]
            there = f", only {', '.join(others)}" if others else ""
            got = f"nothing{there}" if name not in raw else f"{type(raw[name]).__name__}"
            needed = "test" if for_predict else "train and valid, and test for testing"
            fail(where, f"split {name} must be a dictionary, got {got}", f"write the splits {needed}")
        reader = PartReader(raw[name], f"{where}, split {name}", text, task)
        splits[name] = reader.split(labels_needed=not for_predict)
    label_range = published.label_range if published else _label_range(splits, task)
    if published and not for_predict:
        found = tuple(len(splits[name].ids) for name in SPLITS if name in splits)
        if found != published.counts:
            fail(where, f"{published.name} must have {published.counts} samples, got {found}")
    _check_splits(splits, where, label_range, task, published is not None)
    return FeatureFile(published.name if published else "custom", label_range, splits)


def _check_splits(
    splits: Mapping[str, FeatureSplit], where: str, label_range: float, task: str, published: bool
) -> None:
    """Check that the splits fit together, and that regression labels are in range."""
    first = next(iter(splits))
    owner: dict[str, str] = {}
    for name, split in splits.items():
        for modality, values in split.values.items():
            wanted = splits[first].values[modality].shape[2:]
            if values.shape[2:] != wanted:
                fail(
                    f"{where}, split {name}",
                    f"{modality} must have {wanted[0]} features as in {first}, got {values.shape[2]}",
                    "extract the features of all splits in the same way",
                )
        if task == "regression" and split.labels is not None and np.abs(split.labels).max() > label_range:
            place = int(np.abs(split.labels).argmax())
            fail(
                f"{where}, split {name}",
                f"regression_labels must be from -{label_range:g} to {label_range:g}, got {split.labels[place]:g} in"
                f" sample {split.ids[place]!r}",
                "scale the labels",
            )
        for sample in split.ids:
            # published splits are not changed
            if owner.setdefault(sample, name) != name and not published:
                fail(where, f"sample {sample!r} is in {owner[sample]} and in {name}", "keep it in one split")


def _label_range(splits: Mapping[str, FeatureSplit], task: str) -> float:
    """1 if all labels are in that range, as in CH-SIMS; otherwise 3, as in CMU-MOSI."""
    if task == "classification":
        return 3.0
    labels = [split.labels for split in splits.values() if split.labels is not None]
    return 1.0 if labels and all(np.abs(each).max() <= 1 for each in labels) else 3.0
