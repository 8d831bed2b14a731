"""PredictionTable: what a model predicts, as one CSV file."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from saccade.callbacks.run_folder import run_folder
from saccade.common.files import write_text

KEY = "key"
"""Column by which samples are told apart."""


class PredictionTable(Callback):
    """Write what `predict_step` returns into one CSV file in the run folder, one row for each sample.

    `predict_step` returns a dictionary of columns: tensors [B], or lists of B strings. The columns stand in the
    dictionary's order, the rows in the order of the data. With a column `key` and a datamodule that has
    `sample_ids(keys) -> list[str]`, the first column is `id`. Every rank writes its rows beside the file; the first
    rank merges them once all are there, and leaves out rows of a `key` that a sampler repeated to give all ranks
    equally many. The file is there whole or not at all. A `fast_dev_run` writes nothing.

    Args:
        filename: Name of the file inside the run folder.

    Raises:
        ValueError: The name is not a plain one, or `predict_step` returns something else; the message says what.
    """

    def __init__(self, filename: str = "predictions.csv") -> None:
        if Path(filename).name != filename or filename in ("", ".."):
            raise ValueError(f"filename: must be the plain name of a file, but is {filename!r}; leave out its folder")
        self.filename = filename
        self._columns: list[str] | None = None
        self._part: TextIO | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin this rank's part of the table, in place of what an earlier run may have left."""
        self._columns = None
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            path = self._path_of_part(trainer, trainer.global_rank)
            self._part = path.open("w", encoding="utf-8", newline="")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a batch's rows into this rank's part.

        Raises:
            ValueError: `predict_step` returned no table.
        """
        columns = _columns_of(outputs)
        find_ids = getattr(getattr(trainer, "datamodule", None), "sample_ids", None)
        if find_ids is not None and isinstance(outputs.get(KEY), Tensor) and "id" not in columns:
            columns = {"id": list(find_ids(outputs[KEY].detach().cpu())), **columns}
        if self._columns is None:
            self._columns = list(columns)
            self._write([self._columns])
        elif self._columns != list(columns):
            raise ValueError(
                f"predict_step: must return the same columns for every batch, but returned {list(columns)} after"
                f" {self._columns}"
            )
        self._write([str(dataloader_idx), *row] for row in zip(*columns.values(), strict=True))

    def _write(self, rows: Any) -> None:
        if self._part is not None:
            csv.writer(self._part, lineterminator="\n").writerows(rows)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the parts of all ranks.

        Raises:
            ValueError: The part of a rank cannot be seen from here, has other columns, or the file cannot be written.
        """
        if self._part is None:
            return
        self._close()
        trainer.strategy.barrier("saccade.PredictionTable: parts are written")
        if trainer.is_global_zero:
            parts = [self._path_of_part(trainer, rank) for rank in range(trainer.world_size)]
            try:
                text = _merged(parts)
            finally:
                for part in parts:
                    part.unlink(missing_ok=True)
            if text is not None:
                write_text(run_folder(trainer) / self.filename, text)
                rank_zero_info(f"saccade: predictions are in {run_folder(trainer) / self.filename}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no part behind."""
        if self._part is not None:
            self._close()
            self._path_of_part(trainer, trainer.global_rank).unlink(missing_ok=True)

    def _close(self) -> None:
        if self._part is not None:
            self._part.close()
            self._part = None

    def _path_of_part(self, trainer: Trainer, rank: int) -> Path:
        return run_folder(trainer) / f".{self.filename}.rank{rank}"


def _columns_of(outputs: Any) -> dict[str, list[str]]:
    """The columns that `predict_step` returned, as text.

    Raises:
        ValueError: They are no columns of one length.
    """
    wish = "predict_step: must return a dictionary of tensors [B] or lists of str"
    if not isinstance(outputs, dict) or not outputs:
        what = "an empty one" if outputs == {} else _described(outputs)
        raise ValueError(f"{wish}, but returned {what}; name each column, as in {{'value': values}}")
    columns: dict[str, list[str]] = {}
    for name, values in outputs.items():
        if isinstance(values, Tensor) and values.ndim == 1 and not values.is_complex():
            columns[str(name)] = _texts(values)
        elif isinstance(values, list | tuple) and all(isinstance(value, str) for value in values):
            columns[str(name)] = list(values)
        else:
            raise ValueError(f"{wish}, but column {name!r} is {_described(values)}; make it one value for each sample")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"predict_step: must return columns of one length, but returned {lengths}")
    return columns


def _texts(values: Tensor) -> list[str]:
    """Numbers with as many digits as their precision needs to be read back exactly."""
    values = values.detach().cpu()
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    return [str(value) for value in values.numpy()]


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def _merged(parts: Sequence[Path]) -> str | None:
    """The table of all ranks; None when no rank has any row.

    Ranks take turns, as the samplers of torch, of Lightning and ours deal the samples out: so rows stand in the order
    of the data.

    Raises:
        ValueError: A part is missing or does not fit the others.
    """
    for part in parts:
        if not part.exists():
            raise ValueError(
                f"the predictions of a rank must lie in {part}, but are not seen from the first rank; choose a folder"
                " that all machines share with --runs_folder"
            )
    csv.field_size_limit(sys.maxsize)
    with ExitStack() as stack:
        readers = [csv.reader(stack.enter_context(part.open(encoding="utf-8", newline=""))) for part in parts]
        headers = [header for header in (next(reader, None) for reader in readers) if header is not None]
        if not headers:
            return None
        if any(header != headers[0] for header in headers):
            raise ValueError(f"predict_step: must return the same columns on every rank, but returned {headers}")
        key = headers[0].index(KEY) if KEY in headers[0] else None
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(headers[0])
        seen: set[tuple[str, str]] = set()
        for loader, row in _in_turn(readers):
            if key is not None and len(parts) > 1:
                sample = (loader, row[key])
                if sample in seen:
                    continue
                seen.add(sample)
            table.writerow(row)
    return text.getvalue()


def _in_turn(readers: Sequence[Iterator[list[str]]]) -> Iterator[tuple[str, list[str]]]:
    """One row of every rank, again and again, one dataloader after the other; each with its dataloader."""
    waiting: list[list[str] | None] = [next(reader, None) for reader in readers]
    while any(row is not None for row in waiting):
        current = str(min(int(row[0]) for row in waiting if row is not None))
        for rank, row in enumerate(waiting):
            if row is not None and row[0] == current:
                yield current, row[1:]
                waiting[rank] = next(readers[rank], None)
