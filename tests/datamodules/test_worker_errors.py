"""Loader processes refuse wrong input with the line that the training process would say."""

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from torch.utils.data import Dataset, _utils

from saccade.common.checks import check_count
from saccade.datamodules.worker_errors import Loader


class Items(Dataset[int]):
    """Five items, of which the fourth cannot be made.

    Args:
        kind: Who finds out: `ours` or `theirs`, another library.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> int:
        if index == 3:
            try:
                np.stack([])
            except ValueError:
                if self.kind == "theirs":
                    raise
                check_count("clips.jsonl, line 4: height", 0)  # during the handling of the other error, as in readers
        return index


@pytest.fixture(autouse=True)
def quick_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After an error torch would wait 5 seconds for each loader process to end."""
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    yield
    gc.collect()


def _ended(kind: str, workers: int) -> tuple[list[int], BaseException]:
    """What came before the error, and the error."""
    seen: list[int] = []
    loader: Any = Loader(Items(kind), batch_size=None, num_workers=workers)
    try:
        for item in loader:
            seen.append(int(item))
    except ValueError as error:
        return seen, error
    pytest.fail("the loader did not end with an error")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_line_is_the_same_from_any_process(workers: int) -> None:
    seen, error = _ended("ours", workers)
    assert seen == [0, 1, 2]
    assert str(error) == "clips.jsonl, line 4: height must be at least 1, got 0: raise it."
    assert type(error) is ValueError


def test_errors_of_other_libraries_keep_the_traceback_of_their_process() -> None:
    _, error = _ended("theirs", 1)
    assert "DataLoader worker process 0" in str(error)
    assert "need at least one array to stack" in str(error)
