"""Errors of loader processes, raised in the training process as they were raised there: with the line they said."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

_ROOT = str(Path(__file__).parent.parent)  # folder of the packages
_WRAPPED = re.compile(r"Caught \w+ in DataLoader worker process \d+\.\nOriginal Traceback")


class Loader(DataLoader[Any]):
    """A DataLoader whose processes refuse wrong input with the same line as the training process would.

    torch puts the traceback of a loader's process in front of the line, so that the command would show the traceback
    and not what is wrong. Only errors that Saccade raises are changed; those of other libraries keep the traceback.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = iter(super().__iter__())
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except ValueError as error:
                line = _line_of(str(error))
                if line is None:
                    raise
                raise ValueError(line) from error
            yield batch


def _line_of(text: str) -> str | None:
    """The line that Saccade said in a loader's process; None for any other error."""
    if not _WRAPPED.match(text):
        return None
    frames = re.findall(r'^  File "(.+)", line \d+, in ', text, flags=re.MULTILINE)
    if not frames or not frames[-1].startswith(_ROOT):
        return None
    return re.sub(r"^[\w.]+: ", "", text.rstrip().splitlines()[-1])
