"""Feature files: the field's layout is read exactly, wrong files end with one clear line."""

import hashlib
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saccade.datamodules.multimodal import feature_files
from saccade.datamodules.multimodal.feature_files import Published, read_features
from saccade.datamodules.multimodal.synthetic import SyntheticSentiment

COUNTS = {"train": 5, "valid": 3, "test": 4}
Raw = dict[str, dict[str, Any]]


def mmsa(aligned: bool = False, seed: int = 0) -> Raw:
    """The layout of the published files: text 8 positions, audio 12, vision 16 (aligned: 8 each); small widths."""
    draw = np.random.default_rng(seed)
    raw: Raw = {}
    lengths = {"audio": 8 if aligned else 12, "vision": 8 if aligned else 16}
    for split, count in COUNTS.items():
        words = draw.integers(1, 6, count)
        text_bert = np.zeros((count, 3, 8), np.float32)
        for row, length in enumerate(words):
            text_bert[row, 0, : length + 2] = [101, *draw.integers(1000, 2000, length), 102]
            text_bert[row, 1, : length + 2] = 1
        one = {
            "raw_text": np.array([f"words {row}" for row in range(count)], dtype=object),
            "id": [f"{split}video$_${row}" for row in range(count)],
            # BERT gives padding features too
            "text": draw.normal(size=(count, 8, 6)).astype(np.float32),
            "text_bert": text_bert,
            "annotations": ["Neutral"] * count,
            "classification_labels": draw.integers(0, 3, count),
            "regression_labels": np.round(draw.uniform(-3, 3, count), 1),
        }
        for name, width in (("audio", 5), ("vision", 4)):
            there = words + 2 if aligned else draw.integers(2, lengths[name] + 1, count)
            array = draw.normal(size=(count, lengths[name], width)).astype(np.float64)
            array[np.arange(lengths[name]) >= there[:, None]] = 0
            one[name] = array
            if not aligned:
                one[f"{name}_lengths"] = there.tolist()
        raw[split] = one
    return raw


def write(folder: Path, raw: Any, protocol: int = 4) -> Path:
    path = folder / "file.pkl"
    path.write_bytes(pickle.dumps(raw, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("aligned", [False, True])
def test_reads_the_layout_written_with_any_protocol(tmp_path: Path, protocol: int, aligned: bool) -> None:
    raw = mmsa(aligned)
    raw["valid"]["audio"] = np.asfortranarray(raw["valid"]["audio"].astype(">f4"))
    raw["valid"]["vision_lengths"] = [np.int64(length) for length in raw["valid"].get("vision_lengths", [9, 9, 9])]
    file = read_features(write(tmp_path, raw, protocol))
    assert (file.dataset, file.label_range) == ("custom", 3.0)
    assert file.widths == {"text": 6, "audio": 5, "vision": 4}
    for name, wanted in raw.items():
        split = file.splits[name]
        assert split.ids == wanted["id"]
        for modality in ("text", "audio", "vision"):
            assert split.values[modality].dtype == np.float32
            np.testing.assert_array_equal(split.values[modality], wanted[modality].astype(np.float32))
        assert split.labels is not None
        np.testing.assert_array_equal(split.labels, wanted["regression_labels"].astype(np.float32))
        np.testing.assert_array_equal(split.valid["text"], wanted["text_bert"][:, 1] == 1)


def test_lengths_come_from_the_arrays(tmp_path: Path) -> None:
    raw = mmsa()
    raw["train"]["audio"][0, 5:] = 0  # silence at the end is not padding
    raw["train"]["audio_lengths"][0] = 9
    raw["train"]["vision"][1] = 1
    raw["train"]["vision_lengths"][1] = 700  # cut when the file was made
    split = read_features(write(tmp_path, raw)).splits["train"]
    assert split.valid["audio"].sum(1).tolist() == raw["train"]["audio_lengths"][:1] + raw["train"]["audio_lengths"][1:]
    assert split.valid["audio"][0].tolist() == [True] * 9 + [False] * 3
    assert split.valid["vision"][1].all()


def test_aligned_files_take_the_mask_of_the_text_and_unaligned_ones_the_last_row(tmp_path: Path) -> None:
    raw = mmsa(aligned=True)
    mask = raw["train"]["text_bert"][:, 1] == 1
    raw["train"]["audio"][0] = 0  # nothing at all: still as long as the text
    raw["train"]["vision"][1, 7] = 1  # behind the mask, and yet data
    split = read_features(write(tmp_path, raw)).splits["train"]
    np.testing.assert_array_equal(split.valid["audio"], mask)
    np.testing.assert_array_equal(split.valid["vision"][[0, 2, 3, 4]], mask[[0, 2, 3, 4]])
    assert split.valid["vision"][1].all()
    raw = mmsa()
    for one in raw.values():
        one.pop("audio_lengths")
    raw["train"]["audio"][0, 7:] = 0
    raw["train"]["audio"][0, 3] = 0
    split = read_features(write(tmp_path, raw)).splits["train"]
    assert split.valid["audio"][0].tolist() == [True] * 7 + [False] * 5


def test_text_without_tokens_has_no_special_positions(tmp_path: Path) -> None:
    raw = mmsa()
    for one in raw.values():
        one.pop("text_bert")
    raw["train"]["text"][2, 4:] = 0
    split = read_features(write(tmp_path, raw)).splits["train"]
    assert split.special is None
    assert split.valid["text"][2].tolist() == [True] * 4 + [False] * 4


def test_tokens_and_special_positions(tmp_path: Path) -> None:
    raw = mmsa()
    raw["train"]["text_bert"][1, 1] = 0  # no word at all
    file = read_features(write(tmp_path, raw), text="tokens")
    split = file.splits["train"]
    assert split.values["text"].dtype == np.int64
    np.testing.assert_array_equal(split.values["text"], raw["train"]["text_bert"][:, 0].astype(np.int64))
    assert split.special is not None
    assert not split.special[1].any()
    for row in (0, 2, 3, 4):
        assert set(split.values["text"][row, split.special[row]]) == {101, 102}
    assert file.widths["text"] == 1


def test_minus_infinity_becomes_zero_in_audio_and_vision(tmp_path: Path) -> None:
    raw = mmsa()
    raw["test"]["audio"][1, 0, 2] = raw["test"]["vision"][0, 0, 0] = -np.inf
    split = read_features(write(tmp_path, raw)).splits["test"]
    assert split.values["audio"][1, 0, 2] == split.values["vision"][0, 0, 0] == 0
    assert split.values["audio"][1, 0, 1] != 0


def test_extra_labels_of_sims_and_its_range(tmp_path: Path) -> None:
    raw = mmsa()
    for one in raw.values():
        one["regression_labels"] = one["regression_labels"] / 3
        for suffix in "TAV":
            one[f"regression_labels_{suffix}"] = one["regression_labels"]
    assert read_features(write(tmp_path, raw)).label_range == 1.0


def test_classes(tmp_path: Path) -> None:
    raw = mmsa()
    for one in raw.values():
        one.pop("regression_labels")
    labels = read_features(write(tmp_path, raw), task="classification").splits["train"].labels
    assert labels is not None
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, raw["train"]["classification_labels"])


def test_published_files_are_recognised_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, mmsa())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(feature_files.PUBLISHED, digest, Published("mosi_aligned", (5, 3, 4), 3.0))
    assert read_features(path).dataset == "mosi_aligned"
    monkeypatch.setitem(feature_files.PUBLISHED, digest, Published("mosi_aligned", (5, 3, 5), 3.0))
    with pytest.raises(ValueError, match=r"mosi_aligned must have \(5, 3, 5\) samples, got \(5, 3, 4\)"):
        read_features(path)


def test_the_table_of_published_files() -> None:
    assert {(known.name, known.counts, known.label_range) for known in feature_files.PUBLISHED.values()} == {
        ("mosi_aligned", (1284, 229, 686), 3.0),
        ("mosi_unaligned", (1284, 229, 686), 3.0),
        ("mosei_aligned", (16326, 1871, 4659), 3.0),
        ("mosei_unaligned", (16326, 1871, 4659), 3.0),
        ("sims_unaligned", (1368, 456, 457), 1.0),
    }
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in feature_files.PUBLISHED)


def test_repeated_ids_of_a_split_are_told_apart(tmp_path: Path) -> None:
    raw = mmsa()
    raw["train"]["id"] = ["a", "a", "b", "a#2", "a"]
    with pytest.warns(UserWarning, match=r"split train: 2 of 5 samples have the id of another one, for example 'a'\."):
        assert read_features(write(tmp_path, raw)).splits["train"].ids == ["a", "a#3", "b", "a#2", "a#4"]


def test_rows_behind_the_length_are_told(tmp_path: Path) -> None:
    raw = mmsa()
    raw["valid"]["audio"][2, 5] = 1
    raw["valid"]["audio_lengths"][2] = 3
    with pytest.warns(UserWarning, match=r"split valid: audio has rows beyond audio_lengths in 1 samples"):
        read_features(write(tmp_path, raw))


def test_prediction_needs_one_split_and_no_labels(tmp_path: Path) -> None:
    raw = mmsa()["test"]
    raw.pop("regression_labels")
    for content in (raw, {"test": raw}):
        file = read_features(write(tmp_path, content), for_predict=True)
        assert list(file.splits) == ["test"]
        assert file.splits["test"].labels is None
    with pytest.raises(
        ValueError, match=r"predict_path .*: split test must be a dictionary, got nothing, only train: write"
    ):
        read_features(write(tmp_path, {"train": raw}), for_predict=True, setting="predict_path")


def test_the_generator_writes_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "synthetic.pkl"
    settings = SyntheticSentiment(clips=(6, 3, 3))
    settings.write(path)
    file = read_features(path)
    for name, wanted in settings.generate().items():
        np.testing.assert_array_equal(file.splits[name].values["vision"], wanted["vision"])
        assert file.splits[name].valid["vision"].sum(1).tolist() == wanted["vision_lengths"]


# wrong files


def at(split: str, key: str, change: Callable[[Any], Any]) -> Callable[[Raw], None]:
    def edit(raw: Raw) -> None:
        raw[split][key] = change(raw[split][key])

    return edit


def put(place: tuple[int, ...], value: float) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        array = np.array(array, dtype=np.float64)
        array[place] = value
        return array

    return change


WRONG: dict[str, tuple[Callable[[Raw], Any], str]] = {
    "missing split": (
        lambda raw: raw.pop("valid"),
        "split valid must be a dictionary, got nothing, only train, test: write",
    ),
    "split of another kind": (lambda raw: raw.update(valid=[1]), "split valid must be a dictionary, got list"),
    "missing key": (lambda raw: raw["test"].pop("vision"), "split test: vision is missing"),
    "missing labels": (lambda raw: raw["test"].pop("regression_labels"), "split test: regression_labels is missing"),
    "missing ids": (lambda raw: raw["test"].pop("id"), "split test: id is missing"),
    "dimensions": (
        at("train", "audio", lambda array: array[:, 0]),
        "split train: audio must have 3 dimensions, got shape [5, 5]",
    ),
    "ragged": (at("train", "audio", lambda array: [each[:row] for row, each in enumerate(array)]), "be one array, got"),
    "text for numbers": (at("train", "audio", lambda array: array.astype(str)), "audio must hold numbers, got <U"),
    "names that are none": (at("train", "id", lambda ids: [[name] for name in ids]), "id must be a list of names"),
    "names in a table": (
        at("train", "id", lambda ids: np.array([ids, ids])),
        "id must be a list of names, got list",
    ),
    "not an array": (at("train", "vision", lambda array: 3), "vision must be an array, got int"),
    "no features": (at("train", "vision", lambda array: array[..., :0]), "vision must have positions and features"),
    "widths": (
        at("test", "audio", lambda array: array[..., :3]),
        "split test: audio must have 5 features as in train, got 3",
    ),
    "numbers": (
        at("test", "audio", lambda array: array[:3]),
        "split test: audio must have 4 samples, as many as id, got 3",
    ),
    "positions": (at("test", "text", lambda array: array[:, :7]), "text must have the positions of text_bert, 8, got"),
    "empty": (lambda raw: raw["valid"].update(id=[]), "split valid: id must have at least one sample"),
    "range": (
        at("train", "regression_labels", put((2,), 3.2)),
        "regression_labels must be from -3 to 3, got 3.2 in sample 'trainvideo$_$2'",
    ),
    "label that is no number": (
        at("train", "regression_labels", put((2,), np.nan)),
        "regression_labels must be a finite number for every sample, got nan in sample 'trainvideo$_$2' (row 2)",
    ),
    "leak": (
        at("test", "id", lambda ids: [*ids[:-1], "trainvideo$_$2"]),
        "sample 'trainvideo$_$2' is in train and in test",
    ),
    "nan": (
        at("valid", "vision", put((1, 0, 3), np.nan)),
        "split valid: vision must be finite, got nan in sample 'validvideo$_$1'",
    ),
    "inf": (at("valid", "audio", put((2, 1, 0), np.inf)), "audio must be finite, got inf in sample 'validvideo$_$2'"),
    "overflow": (at("valid", "audio", put((2, 1, 0), 1e300)), "got inf in sample 'validvideo$_$2'"),
    "-inf in text": (
        at("valid", "text", put((0, 1, 0), -np.inf)),
        "text must be finite, got -inf in sample",
    ),
    "lengths": (at("train", "audio_lengths", lambda old: [-1, *old[1:]]), "audio_lengths must be whole numbers from 0"),
    "text_bert": (at("train", "text_bert", lambda array: array[:, :2]), "text_bert must have shape [N, 3, T]"),
    "token numbers": (
        at("train", "text_bert", put((3, 0, 1), 7.5)),
        "must hold token ids from 0, got other numbers in sample",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_end_with_one_line(tmp_path: Path, name: str) -> None:
    edit, message = WRONG[name]
    raw = mmsa()
    edit(raw)
    path = write(tmp_path, raw)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_features(path)
    assert str(caught.value).startswith(f"path {path}")
    assert "\n" not in str(caught.value)


def test_wrong_classes(tmp_path: Path) -> None:
    raw = mmsa()
    raw["train"]["classification_labels"] = [0, 1, -1, 2, 0]
    with pytest.raises(
        ValueError, match=r"must be whole numbers from 0, got -1 in sample 'trainvideo\$_\$2' \(row 2\)"
    ):
        read_features(write(tmp_path, raw), task="classification")


def test_training_needs_no_test_split(tmp_path: Path) -> None:
    raw = mmsa()
    del raw["test"]
    assert list(read_features(write(tmp_path, raw)).splits) == ["train", "valid"]
