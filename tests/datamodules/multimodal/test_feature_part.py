"""One part of a feature file: arrays of any form in memory, labels that are none, and modalities without values."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saccade.datamodules.multimodal.feature_files import read_features
from tests.datamodules.multimodal.test_feature_files import mmsa, write


def objects(rows: Any) -> np.ndarray:
    """An array of objects with one row in each place."""
    made = np.empty(len(rows), object)
    made[:] = list(rows)
    return made


def padded(array: np.ndarray) -> np.ndarray:
    """The same values, every second one of a larger array."""
    larger = np.zeros((array.shape[0], 2 * array.shape[1], 3 * array.shape[2]), array.dtype)
    larger[:, ::2, ::3] = array
    return larger[:, ::2, ::3]


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "Fortran order": np.asfortranarray,
    "[N, D, T] transposed": lambda array: np.ascontiguousarray(array.transpose(0, 2, 1)).transpose(0, 2, 1),
    "[T, D, N] transposed": lambda array: np.ascontiguousarray(array.transpose(1, 2, 0)).transpose(2, 0, 1),
    "[D, N, T] transposed": lambda array: np.ascontiguousarray(array.transpose(2, 0, 1)).transpose(1, 2, 0),
    "a view": padded,
    "backwards": lambda array: np.ascontiguousarray(array[::-1])[::-1],
    "big-endian": lambda array: array.astype(">f8"),
    "big-endian and transposed": lambda array: np.ascontiguousarray(array.astype(">f4").transpose(0, 2, 1)).transpose(
        0, 2, 1
    ),
    "float16": lambda array: array.astype(np.float16),
    "float64": lambda array: array.astype(np.float64),
    "whole numbers": lambda array: array.astype(np.int16),
    "a list of rows": list,
    "objects, one row each": lambda array: objects(list(array)),
    "objects, one number each": lambda array: array.astype(object),
    "rows of objects": lambda array: list(array.astype(object)),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_any_memory_order_and_type(tmp_path: Path, name: str, protocol: int) -> None:
    raw = mmsa()
    whole = np.round(raw["train"]["audio"] * 4) / 4 + 1  # every form holds them exactly
    if name == "whole numbers":
        whole = np.round(whole)
    raw["train"]["audio"], raw["train"]["audio_lengths"] = FORMS[name](whole), [12] * 5
    read = read_features(write(tmp_path, raw, protocol)).splits["train"].values["audio"]
    assert (read.dtype, read.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_array_equal(read, whole.astype(np.float32))


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_numpy_writes_the_orders_that_are_read(protocol: int) -> None:
    """Only protocol 5 stores an array with permuted axes, so that the test above reaches that way of reading."""
    text = pickle.dumps(FORMS["[N, D, T] transposed"](np.zeros((3, 4, 5))), protocol=protocol)
    assert (b"_frombuffer" in text and b"K" in text) == (protocol == 5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([np.ones((2, 3)), np.ones((1, 3))], "audio must be one array, got rows of different shapes: pad them"),
        ([None, np.ones((2, 3))], "audio must be one array, got rows of different shapes"),
        (np.array([[["a"], [1.0]], [[2.0], [3.0]]], object), "audio must hold numbers, got str in an array of objects"),
        (np.array([[[None]], [[1.0]]], object), "audio must hold numbers, got NoneType in an array of objects"),
        (np.array([[[10**400]], [[1.0]]], object), "audio must hold numbers, got one that no float can hold"),
        (np.ones((2, 4, 3), complex), "contains values of type 'c16'"),
    ],
)
def test_objects_that_are_no_rows_of_numbers(tmp_path: Path, rows: Any, message: str) -> None:
    raw = mmsa()
    raw["train"] = {key: value[:2] for key, value in raw["train"].items()}
    raw["train"]["audio"] = rows if isinstance(rows, np.ndarray) else objects(rows)
    del raw["train"]["audio_lengths"]
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_features(write(tmp_path, raw))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("task", ["regression", "classification"])
@pytest.mark.parametrize(
    ("label", "shown", "advice"),
    [
        ("positive", "'positive'", "or leave the sample out of all arrays"),
        ("1.0", "'1.0'", "or leave the sample out of all arrays"),
        ("", "''", "or leave the sample out of all arrays"),
        (None, "None", "label the sample, or leave it out of all arrays"),
        (float("nan"), "nan", "label the sample, or leave it out of all arrays"),
        (float("-inf"), "-inf", "label the sample, or leave it out of all arrays"),
        ([1.0], "a value of type list", "label the sample, or leave it out of all arrays"),
        (10**400, "a value of type int", "label the sample, or leave it out of all arrays"),
    ],
)
@pytest.mark.parametrize("form", [list, objects])
def test_labels_that_are_no_numbers(
    tmp_path: Path, task: Any, label: Any, shown: str, advice: str, form: Callable[[Any], Any]
) -> None:
    raw = mmsa()
    raw["valid"][f"{task}_labels"] = form([1.0, label, 0.0])
    path = write(tmp_path, raw)
    with pytest.raises(ValueError) as caught:
        read_features(path, task=task)
    said = str(caught.value)
    wanted = f"{task}_labels must be a finite number for every sample, got {shown} in sample 'validvideo$_$1' (row 1): "
    assert said.startswith(f"path {path}, split valid: {wanted}")
    assert said.endswith(f"{advice}.")
    assert "neutral" not in said.casefold()
    assert "zero" not in said
    assert "\n" not in said


def test_labels_of_any_form_of_numbers(tmp_path: Path) -> None:
    for labels in (
        [1, 0.5, -2.0],
        objects([1, 0.5, -2.0]),
        np.array([[1], [0.5], [-2.0]], ">f2"),
        [np.array([1.0]), np.float16(0.5), np.array(-2)],
    ):
        raw = mmsa()
        raw["valid"]["regression_labels"] = labels
        read = read_features(write(tmp_path, raw, 5)).splits["valid"].labels
        assert read is not None
        assert read.tolist() == [1.0, 0.5, -2.0]


def test_modalities_of_zeros_are_told_in_one_line(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    raw = mmsa()
    raw["train"]["audio"][:] = 0
    raw["valid"]["vision"][1] = 0
    raw["test"]["audio"] = np.ones((4, 12, 5))
    raw["test"]["audio"][:, 2:] = 0
    raw["test"]["audio_lengths"] = [12] * 4
    raw["test"]["text"][:3] = 0
    path = write(tmp_path, raw)
    read_features(path)
    (said,) = [str(warning.message) for warning in recwarn if "zeros" in str(warning.message)]
    assert said.startswith(f"saccade: path {path}: there are only zeros in split train: audio (all 5 samples); ")
    assert "split valid: vision (1 of 3 samples, for example 'validvideo$_$1'); " in said
    assert "split test: text (3 of 4 samples, for example 'testvideo$_$0'), audio (" in said
    assert re.search(r"audio \(83% of the rows\)\. Rows of zeros count as missing: [^\n]*$", said)


def test_usual_files_are_read_without_a_word(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    for aligned in (False, True):
        raw = mmsa(aligned)
        raw["train"]["vision"][0] = 0  # no face in one clip of five
        read_features(write(tmp_path, raw))
        read_features(write(tmp_path, raw), text="tokens")
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "half \ud83d", "c"], r"id must be Unicode text, got half a character in 'half \\ud83d' \(row 1\)"),
        (["a", None, "c"], "id must be a list of names, got NoneType in it"),
        (["a", "b"], "must have 2 samples, as many as id, got 3"),
        ([], "id must have at least one sample, got none"),
    ],
)
def test_wrong_ids(tmp_path: Path, ids: list[Any], message: str) -> None:
    raw = mmsa()
    raw["valid"]["id"] = ids
    with pytest.raises(ValueError, match=rf"^path [^\n]*, split valid: [^\n]*{message}[^\n]*$"):
        read_features(write(tmp_path, raw))
