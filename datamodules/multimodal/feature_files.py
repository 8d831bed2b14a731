"""Feature files in the MMSA layout: reading, recognition of published files, checks, and conversion to arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from saccade.datamodules.multimodal.restricted_pickle import plain, read_pickle

Array = np.ndarray[Any, np.dtype[Any]]

SPLITS = ("train", "valid", "test")
"""Names of the splits, as the files have them."""

_LABELS = {"regression": "regression_labels", "classification": "classification_labels"}
_ROWS = 256  # samples for each step of a check, because large files do not fit in memory twice


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
class FeatureSplit:
    """The samples of one split.

    Args:
        ids: A unique name for each sample.
        values: By modality: float32 [N, T, D], or int64 [N, T] for token ids.
        valid: By modality, True at positions that are not padding: bool [N, T].
        special: True at the first and last valid position of a tokenized text, [CLS] and [SEP]: bool [N, T]; None if
            there are no tokens.
        labels: float32 or int64 [N]; None if the file has none.
    """

    ids: list[str]
    values: dict[str, Array]
    valid: dict[str, Array]
    special: Array | None
    labels: Array | None


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
        path: Pickle of `train`, `valid` and `test`, each with `id` and the arrays `audio`, `vision` [N, T, D], `text`
            [N, T, D] or `text_bert` [N, 3, T] (token ids, mask, segments), and the labels. `audio_lengths` and
            `vision_lengths` [N] are the numbers of positions that are not padding.
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
    return check_features(raw, where, text, task, for_predict, published)


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
        _fail(where, f"content must be a dictionary of {', '.join(SPLITS)}, got {type(raw).__name__}")
    if for_predict:
        raw = raw if any(name in raw for name in SPLITS) else {"test": raw}
    splits: dict[str, FeatureSplit] = {}
    for name in ("test",) if for_predict else SPLITS:
        if not isinstance(raw.get(name), dict):
            got = "nothing" if name not in raw else f"{type(raw[name]).__name__}"
            needed = "test" if for_predict else "train, valid and test"
            _fail(where, f"split {name} must be a dictionary, got {got}", f"write the splits {needed}")
        reader = _Reader(raw[name], f"{where}, split {name}", text, task)
        splits[name] = reader.split(labels_needed=not for_predict)
    label_range = published.label_range if published else _label_range(splits, task)
    if published and not for_predict:
        found = tuple(len(splits[name].ids) for name in SPLITS)
        if found != published.counts:
            _fail(where, f"{published.name} must have {published.counts} samples, got {found}")
    _check_splits(splits, where, label_range, task, published is not None)
    return FeatureFile(published.name if published else "custom", label_range, splits)


class _Reader:
    """Reads one split from its dictionary."""

    def __init__(self, raw: dict[str, Any], where: str, text: str, task: str) -> None:
        self.raw, self.where, self.text, self.task = raw, where, text, task
        self.ids: list[str] = []

    def split(self, labels_needed: bool) -> FeatureSplit:
        """Check and convert."""
        self.ids = self._names()
        if not self.ids:
            _fail(self.where, "id must have at least one sample, got none", "add samples")
        _tell_apart(self.ids, self.where)
        values: dict[str, Array] = {}
        mask = None
        if self.text == "tokens" or "text_bert" in self.raw:
            values["text"], mask = self._tokens()
        if self.text == "features":
            values["text"] = self._features("text")
            if mask is not None and mask.shape[1] != values["text"].shape[1]:
                _fail(
                    self.where,
                    f"text must have the positions of text_bert, {mask.shape[1]}, got {values['text'].shape[1]}",
                    "remove text_bert, or make both from the same tokens",
                )
        valid = {"text": _until_last_row(values["text"]) if mask is None else mask}
        for name in ("audio", "vision"):
            values[name] = self._features(name, infinite_is_zero=True)
            valid[name] = self._valid(name, values[name], mask)
        labels = self._labels(labels_needed)
        return FeatureSplit(self.ids, values, valid, None if mask is None else _ends(mask), labels)

    def _pop(self, key: str) -> Array | list[Any]:
        """Remove an array, or a list of arrays and single values, from the raw content and return it."""
        if key not in self.raw:
            _fail(self.where, f"{key} is missing", "add it, or choose settings that do not need it")
        value = plain(self.raw.pop(key))
        if isinstance(value, np.ndarray):
            return value
        if not isinstance(value, list | tuple):
            _fail(self.where, f"{key} must be an array, got {type(value).__name__}")
        return [plain(item) for item in value]

    def _names(self) -> list[str]:
        names = self._pop("id")
        if isinstance(names, np.ndarray):
            names = (names[:, 0] if names.ndim == 2 and names.shape[1] == 1 else names).tolist()
        for name in names if isinstance(names, list) else [names]:
            if not isinstance(name, str | int | float):
                _fail(self.where, f"id must be a list of names, got {type(name).__name__} in it")
        return [str(name) for name in names]

    def _take(self, key: str, dimensions: int) -> Array:
        """An array of numbers."""
        value = self._pop(key)
        if isinstance(value, list):
            # lists in lists, and repeated references to one row, may be far larger than the file
            rows = [item for item in value if isinstance(item, np.ndarray)]
            if any(isinstance(item, list | tuple | str | bytes) for item in value):
                _fail(
                    self.where, f"{key} must hold numbers or arrays as rows, got lists or texts", "make one array of it"
                )
            if len({id(row) for row in rows}) < len(rows):
                _fail(self.where, f"{key} must have a row for each sample, got one row several times")
        try:
            array = np.asarray(value)
        except ValueError:
            _fail(self.where, f"{key} must be one array, got rows of different shapes", "pad them to one length")
        if array.dtype.kind not in "biuf":
            _fail(self.where, f"{key} must hold numbers, got {array.dtype}")
        if dimensions == 1 and array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.ndim != dimensions:
            _fail(self.where, f"{key} must have {dimensions} dimensions, got shape {list(array.shape)}")
        if len(array) != len(self.ids):
            _fail(
                self.where,
                f"{key} must have {len(self.ids)} samples, as many as id, got {len(array)}",
                "give all arrays of a split the same samples in the same order",
            )
        return array

    def _features(self, key: str, infinite_is_zero: bool = False) -> Array:
        array = self._take(key, 3)
        if 0 in array.shape:
            _fail(self.where, f"{key} must have positions and features, got shape {list(array.shape)}")
        made = np.empty(array.shape, np.float32)
        for start in range(0, len(made), _ROWS):
            part = made[start : start + _ROWS]
            with np.errstate(over="ignore"):
                part[...] = array[start : start + _ROWS]
            if infinite_is_zero:  # silent frames of a logarithmic feature
                part[part == -np.inf] = 0
            self._check_finite(key, part, start)
        return made

    def _check_finite(self, key: str, part: Array, start: int) -> None:
        bad = ~np.isfinite(part).reshape(len(part), -1)
        if bad.any():
            place = int(bad.any(1).argmax())
            value = part.reshape(len(part), -1)[place][bad[place]][0]
            _fail(
                self.where,
                f"{key} must be finite, got {value} in sample {self.ids[start + place]!r}",
                "write zeros for unknown values",
            )

    def _tokens(self) -> tuple[Array, Array]:
        """Token ids [N, T] and the mask of valid positions [N, T]."""
        array = self._take("text_bert", 3)
        if array.shape[1] != 3 or array.shape[2] == 0:
            _fail(
                self.where,
                f"text_bert must have shape [N, 3, T], got {list(array.shape)}",
                "write token ids, mask and segments",
            )
        self._check_finite("text_bert", array.astype(np.float32), 0)
        numbers, mask = array[:, 0].astype(np.int64), array[:, 1] > 0.5
        wrong = ((numbers != array[:, 0]) | (numbers < 0)).any(1)
        if wrong.any():
            sample = self.ids[int(wrong.argmax())]
            _fail(self.where, f"text_bert must hold token ids from 0, got other numbers in sample {sample!r}")
        return numbers, mask

    def _valid(self, name: str, values: Array, mask: Array | None) -> Array:
        """Valid positions: from the lengths, the mask of an aligned text, or up to the last row that is not zero."""
        length, seen = values.shape[1], _until_last_row(values)
        if f"{name}_lengths" in self.raw:
            lengths = self._take(f"{name}_lengths", 1).astype(np.float64)
            if not (lengths >= 0).all() or (lengths != np.floor(lengths)).any():
                _fail(self.where, f"{name}_lengths must be whole numbers from 0, got {_first_wrong(lengths)}")
            # a length may exceed the array, if the clip was cut
            valid: Array = np.arange(length) < lengths[:, None]
            behind = (seen & ~valid).any(1)
            if behind.any():
                rank_zero_warn(
                    f"saccade: {self.where}: {name} has rows beyond {name}_lengths in {int(behind.sum())} samples, for"
                    f" example in {self.ids[int(behind.argmax())]!r}. They are treated as padding."
                )
            return valid
        return seen if mask is None or mask.shape[1] != length else mask | seen

    def _labels(self, needed: bool) -> Array | None:
        key = _LABELS[self.task]
        if not needed and key not in self.raw:
            return None
        labels = self._take(key, 1)
        self._check_finite(key, labels, 0)
        if self.task == "regression":
            return labels.astype(np.float32)
        if (labels < 0).any() or (labels != np.floor(labels)).any():
            _fail(self.where, f"{key} must be whole numbers from 0, got {_first_wrong(labels)}")
        return labels.astype(np.int64)


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
                _fail(
                    f"{where}, split {name}",
                    f"{modality} must have {wanted[0]} features as in {first}, got {values.shape[2]}",
                    "extract the features of all splits in the same way",
                )
        if task == "regression" and split.labels is not None and np.abs(split.labels).max() > label_range:
            place = int(np.abs(split.labels).argmax())
            _fail(
                f"{where}, split {name}",
                f"regression_labels must be from -{label_range:g} to {label_range:g}, got {split.labels[place]:g} in"
                f" sample {split.ids[place]!r}",
                "scale the labels",
            )
        for sample in split.ids:
            # published splits are not changed
            if owner.setdefault(sample, name) != name and not published:
                _fail(where, f"sample {sample!r} is in {owner[sample]} and in {name}", "keep it in one split")


def _label_range(splits: Mapping[str, FeatureSplit], task: str) -> float:
    """1 if all labels are in that range, as in CH-SIMS; otherwise 3, as in CMU-MOSI."""
    if task == "classification":
        return 3.0
    labels = [split.labels for split in splits.values() if split.labels is not None]
    return 1.0 if labels and all(np.abs(each).max() <= 1 for each in labels) else 3.0


def _tell_apart(ids: list[str], where: str) -> None:
    """Make ids unique by numbering repetitions, because masks and tables identify samples by id."""
    known = set(ids)
    if len(known) == len(ids):
        return
    rank_zero_warn(f"saccade: {where}: some samples have the same id. They are renamed to 'id#2' and so on.")
    seen: set[str] = set()
    for place, name in enumerate(ids):
        number, new = 2, name
        while new in seen or (new != name and new in known):
            new, number = f"{name}#{number}", number + 1
        seen.add(new)
        ids[place] = new


def _until_last_row(values: Array) -> Array:
    """True up to the last row that is not all zeros, [N, T]."""
    there: Array = np.stack([(each != 0).any(-1) for each in values])
    return np.logical_or.accumulate(there[:, ::-1], 1)[:, ::-1]


def _ends(mask: Array) -> Array:
    """First and last valid position, [N, T]."""
    ends = np.zeros_like(mask)
    rows = np.flatnonzero(mask.any(1))
    ends[rows, mask[rows].argmax(1)] = True
    ends[rows, mask.shape[1] - 1 - mask[rows, ::-1].argmax(1)] = True
    return ends


def _first_wrong(numbers: Array) -> Any:
    return numbers[~(numbers >= 0) | (numbers != np.floor(numbers))][0]


def _fail(where: str, what: str, advice: str = "write the file in the MMSA layout") -> NoReturn:
    raise ValueError(f"{where}: {what}: {advice}.")
