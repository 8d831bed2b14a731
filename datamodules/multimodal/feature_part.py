"""One part of a feature file: its dictionary of arrays and lists is checked and converted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from saccade.datamodules.multimodal.restricted_pickle import plain

Array = np.ndarray[Any, np.dtype[Any]]

_LABELS = {"regression": "regression_labels", "classification": "classification_labels"}
_ROWS = 256  # samples for each step of a check, because large files do not fit in memory twice
_SHOWN = 40  # most characters of a text in a message


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


class PartReader:
    """Reads one split from its dictionary.

    Args:
        raw: Arrays and lists by name. It is emptied on the way, because a large file does not fit in memory twice.
        where: Setting, file and split, the beginning of the messages.
        text: `features` or `tokens`.
        task: `regression` or `classification`.
    """

    def __init__(self, raw: dict[str, Any], where: str, text: str, task: str) -> None:
        self.raw, self.where, self.text, self.task = raw, where, text, task
        self.ids: list[str] = []

    def split(self, labels_needed: bool) -> FeatureSplit:
        """Check and convert.

        Args:
            labels_needed: Refuse a split without labels.

        Raises:
            ValueError: The content is invalid.
        """
        self.ids = self._names()
        if not self.ids:
            fail(self.where, "id must have at least one sample, got none", "add samples")
        _tell_apart(self.ids, self.where)
        values: dict[str, Array] = {}
        mask = None
        if self.text == "tokens" or "text_bert" in self.raw:
            values["text"], mask = self._tokens()
        if self.text == "features":
            values["text"] = self._features("text")
            if mask is not None and mask.shape[1] != values["text"].shape[1]:
                fail(
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
            fail(self.where, f"{key} is missing", "add it, or choose settings that do not need it")
        value = plain(self.raw.pop(key))
        if isinstance(value, np.ndarray):
            return value
        if not isinstance(value, list | tuple):
            fail(self.where, f"{key} must be an array, got {type(value).__name__}")
        return [plain(item) for item in value]

    def _names(self) -> list[str]:
        names = self._pop("id")
        if isinstance(names, np.ndarray):
            names = (names[:, 0] if names.ndim == 2 and names.shape[1] == 1 else names).tolist()
        for row, name in enumerate(names if isinstance(names, list) else [names]):
            if not isinstance(name, str | int | float):
                fail(self.where, f"id must be a list of names, got {type(name).__name__} in it")
            if isinstance(name, str) and any("\ud800" <= letter <= "\udfff" for letter in name):
                fail(
                    self.where,
                    f"id must be Unicode text, got half a character in {_shown(name)} (row {row})",
                    "rename it",
                )
        return [str(name) for name in names]

    def _take(self, key: str, dimensions: int) -> Array:
        """An array of numbers."""
        value = self._pop(key)
        if isinstance(value, np.ndarray) and value.dtype.hasobject and value.ndim == 1:
            value = [plain(item) for item in value]  # one array for each sample
        if isinstance(value, list):
            # lists in lists, and repeated references to one row, may be far larger than the file
            rows = [item for item in value if isinstance(item, np.ndarray)]
            if any(isinstance(item, list | tuple | str | bytes) for item in value):
                fail(
                    self.where, f"{key} must hold numbers or arrays as rows, got lists or texts", "make one array of it"
                )
            if len({id(row) for row in rows}) < len(rows):
                fail(self.where, f"{key} must have a row for each sample, got one row several times")
        try:
            array = np.asarray(value)
        except ValueError:
            fail(self.where, f"{key} must be one array, got rows of different shapes", "pad them to one length")
        if array.dtype.hasobject:
            array = self._from_objects(key, array)
        if array.dtype.kind not in "biuf":
            fail(self.where, f"{key} must hold numbers, got {array.dtype}")
        if dimensions == 1 and array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.ndim != dimensions:
            fail(self.where, f"{key} must have {dimensions} dimensions, got shape {list(array.shape)}")
        self._check_count(key, len(array))
        return array

    def _from_objects(self, key: str, array: Array) -> Array:
        """An array of Python's numbers as one of float64."""
        known = (int, float, np.number, np.bool_)
        odd = next((kind for kind in sorted(set(map(type, array.flat)), key=str) if not issubclass(kind, known)), None)
        if odd is not None:
            fail(self.where, f"{key} must hold numbers, got {odd.__name__} in an array of objects")
        try:
            return array.astype(np.float64)
        except OverflowError:
            fail(self.where, f"{key} must hold numbers, got one that no float can hold")

    def _check_count(self, key: str, count: int) -> None:
        if count != len(self.ids):
            fail(
                self.where,
                f"{key} must have {len(self.ids)} samples, as many as id, got {count}",
                "give all arrays of a split the same samples in the same order",
            )

    def _features(self, key: str, infinite_is_zero: bool = False) -> Array:
        array = self._take(key, 3)
        if 0 in array.shape:
            fail(self.where, f"{key} must have positions and features, got shape {list(array.shape)}")
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
            fail(
                self.where,
                f"{key} must be finite, got {value} in sample {self.ids[start + place]!r}",
                "write zeros for unknown values",
            )

    def _tokens(self) -> tuple[Array, Array]:
        """Token ids [N, T] and the mask of valid positions [N, T]."""
        array = self._take("text_bert", 3)
        if array.shape[1] != 3 or array.shape[2] == 0:
            fail(
                self.where,
                f"text_bert must have shape [N, 3, T], got {list(array.shape)}",
                "write token ids, mask and segments",
            )
        self._check_finite("text_bert", array.astype(np.float32), 0)
        numbers, mask = array[:, 0].astype(np.int64), array[:, 1] > 0.5
        wrong = ((numbers != array[:, 0]) | (numbers < 0)).any(1)
        if wrong.any():
            sample = self.ids[int(wrong.argmax())]
            fail(self.where, f"text_bert must hold token ids from 0, got other numbers in sample {sample!r}")
        return numbers, mask

    def _valid(self, name: str, values: Array, mask: Array | None) -> Array:
        """Valid positions: from the lengths, the mask of an aligned text, or up to the last row that is not zero."""
        length, seen = values.shape[1], _until_last_row(values)
        if f"{name}_lengths" in self.raw:
            lengths = self._take(f"{name}_lengths", 1).astype(np.float64)
            if not (lengths >= 0).all() or (lengths != np.floor(lengths)).any():
                fail(self.where, f"{name}_lengths must be whole numbers from 0, got {_first_wrong(lengths)[1]:g}")
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
        value = self._pop(key)
        if isinstance(value, np.ndarray) and value.ndim == 2 and value.shape[1] == 1:
            value = value[:, 0]
        if isinstance(value, np.ndarray) and value.ndim != 1:
            fail(self.where, f"{key} must have 1 dimensions, got shape {list(value.shape)}")
        self._check_count(key, len(value))
        # one by one, because a label of another kind decides the type of the whole array
        labels = np.array([self._label(key, row, item) for row, item in enumerate(value)], dtype=np.float64)
        if self.task == "regression":
            with np.errstate(over="ignore"):
                return labels.astype(np.float32)
        if (labels < 0).any() or (labels != np.floor(labels)).any():
            row, found = _first_wrong(labels)
            fail(
                self.where,
                f"{key} must be whole numbers from 0, got {found:g} in sample {self.ids[row]!r} (row {row})",
                "number the classes from 0",
            )
        return labels.astype(np.int64)

    def _label(self, key: str, row: int, item: Any) -> float:
        """A label as a number. There is no neutral value for one that is missing, so that it is refused."""
        item = plain(item)
        if isinstance(item, np.ndarray) and item.size == 1:
            item = item.reshape(-1)[0]
        item = item.item() if isinstance(item, np.generic) else item
        number = math.nan
        if isinstance(item, int | float):
            number = float(item) if abs(item) < 1e300 else math.inf
        if not math.isfinite(number):
            advice = "label the sample, or leave it out of all arrays"
            if isinstance(item, str | bytes):
                classes = (
                    "number the classes from 0" if self.task == "classification" else "write the label as a number"
                )
                advice = f"{classes}, or leave the sample out of all arrays"
            what = _shown(item)
            fail(
                self.where,
                f"{key} must be a finite number for every sample, got {what} in sample {self.ids[row]!r} (row {row})",
                advice,
            )
        return number


def report_zeros(split: FeatureSplit) -> list[str]:
    """Describe the modalities of a split that hold little but zeros, which count as missing.

    Args:
        split: The samples.

    Returns:
        A text for each modality of which all samples, a quarter of the samples, or half of the rows are zero.
    """
    found = []
    for name, values in split.values.items():
        rows = np.stack([(each != 0).any(-1) for each in values]) if values.ndim == 3 else np.True_
        there = split.valid[name] & rows
        empty, count = ~there.any(1), len(split.ids)
        zero = 1 - there.sum() / max(1, int(split.valid[name].sum()))
        if empty.all():
            found.append(f"{name} (all {count} samples)")
        elif empty.mean() >= 0.25:
            first = split.ids[int(empty.argmax())]
            found.append(f"{name} ({int(empty.sum())} of {count} samples, for example {first!r})")
        elif zero >= 0.5:
            found.append(f"{name} ({zero:.0%} of the rows)")
    return found


def fail(where: str, what: str, advice: str = "write the file in the MMSA layout") -> NoReturn:
    """Refuse a file with one line.

    Args:
        where: Setting and file, and the split if it is known.
        what: The rule and what is there instead.
        advice: What to do.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{where}: {what}: {advice}.")


def _tell_apart(ids: list[str], where: str) -> None:
    """Make ids unique by numbering repetitions, because masks and tables identify samples by id."""
    known = set(ids)
    if len(known) == len(ids):
        return
    seen: set[str] = set()
    first = ""
    for place, name in enumerate(ids):
        number, new = 2, name
        while new in seen or (new != name and new in known):
            new, number = f"{name}#{number}", number + 1
        first = first or (name if new != name else "")
        seen.add(new)
        ids[place] = new
    rank_zero_warn(
        f"saccade: {where}: {len(ids) - len(known)} of {len(ids)} samples have the id of another one, for example"
        f" {first!r}. They are renamed to 'id#2' and so on."
    )


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


def _first_wrong(numbers: Array) -> tuple[int, float]:
    """Place and value of the first number that is not whole, or below 0."""
    place = int((~(numbers >= 0) | (numbers != np.floor(numbers))).argmax())
    return place, float(numbers[place])


def _shown(value: Any) -> str:
    """A value for a message; a short form, because nested lists that repeat each other can be endless."""
    if isinstance(value, str):
        return repr(value if len(value) <= _SHOWN else f"{value[:_SHOWN]}...")
    return str(value) if value is None or isinstance(value, float) else f"a value of type {type(value).__name__}"
