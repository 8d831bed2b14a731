"""PredictionTable: write the predictions of a model into one CSV file."""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
"""Column that identifies a sample."""

ID = "id"
"""First column: the name of a sample."""

IDS = "ids"
"""Entry of a batch with the names of its samples, a list of str."""


class PredictionTable(Callback):
    """Write what `predict_step` returns into one CSV file in the run folder, one row for each sample.

    `predict_step` returns a dictionary of columns: tensors [B], or lists of B strings. Columns keep the order of the
    dictionary, rows the order of the data. The first column, `id`, names the sample of a row. It is, in this order: a
    column `id` of `predict_step`; the entry `ids` of the batch, a list of B strings; what the datamodule's method
    `sample_ids(keys) -> list[str]` returns for a column `key`; or the number of the sample in the data, from 0 (with
    several dataloaders `loader/number`).

    Every rank writes its rows into a temporary file in the same folder. When all ranks are done, the first rank merges
    these files; it drops repeated keys, which a distributed sampler adds to give every rank the same number of samples.
    The file is written completely or not at all. A `fast_dev_run` writes nothing.

    Args:
        filename: Name of the file inside the run folder.

    Raises:
        ValueError: `filename` contains a folder, or `predict_step` does not return such a dictionary.
    """

    def __init__(self, filename: str = "predictions.csv") -> None:
        if Path(filename).name != filename or filename in ("", ".."):
            raise ValueError(
                f"filename must be the name of a file without a folder, got {filename!r}: leave out the folder."
            )
        self.filename = filename
        self._columns: list[str] | None = None
        self._part: TextIO | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open this rank's part of the table; a part that an earlier run left is overwritten."""
        self._columns = None
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            path = self._path_of_part(trainer, trainer.global_rank)
            # half a character, which UTF-8 does not know, is written as an escape
            self._part = path.open("w", encoding="utf-8", errors="backslashreplace", newline="")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the rows of a batch into this rank's part.

        Raises:
            ValueError: `predict_step` did not return a dictionary of columns, or not the same columns for every batch.
        """
        columns = _columns_of(outputs)
        if ID not in columns:
            count = len(next(iter(columns.values())))
            columns = {ID: _ids(trainer, outputs, batch) or [""] * count, **columns}
            if len(columns[ID]) != count:
                raise ValueError(
                    f"ids of a batch must be one for each row of predict_step, got {len(columns[ID])} for {count}: give"
                    " a name for each sample."
                )
        if self._columns is None:
            self._columns = list(columns)
            self._write([self._columns])
        elif self._columns != list(columns):
            raise ValueError(
                f"predict_step must return the same columns for every batch, got {list(columns)} after {self._columns}:"
                " return all columns every time."
            )
        self._write([str(dataloader_idx), *row] for row in zip(*columns.values(), strict=True))

    def _write(self, rows: Any) -> None:
        if self._part is not None:
            csv.writer(self._part, lineterminator="\n").writerows(rows)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the parts of all ranks.

        Raises:
            ValueError: The first rank cannot find the part of another rank, the parts have different columns, or the
                file cannot be written.
        """
        if self._part is None:
            return
        self._close()
        trainer.strategy.barrier("saccade.PredictionTable: parts are written")
        if trainer.is_global_zero:
            parts = [self._path_of_part(trainer, rank) for rank in range(trainer.world_size)]
            try:
                text = _merged(parts, several=len(trainer.num_predict_batches) > 1)
            finally:
                for part in parts:
                    part.unlink(missing_ok=True)
            if text is not None:
                write_text(run_folder(trainer) / self.filename, text)
                rank_zero_info(f"saccade: predictions are in {run_folder(trainer) / self.filename}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove this rank's part."""
        if self._part is not None:
            self._close()
            self._path_of_part(trainer, trainer.global_rank).unlink(missing_ok=True)

    def _close(self) -> None:
        if self._part is not None:
            self._part.close()
            self._part = None

    def _path_of_part(self, trainer: Trainer, rank: int) -> Path:
        return run_folder(trainer) / f".{self.filename}.rank{rank}"


def _ids(trainer: Trainer, outputs: dict[str, Any], batch: Any) -> list[str]:
    """The names of a batch's samples; empty if neither the batch nor the datamodule has them."""
    if isinstance(batch, Mapping) and batch.get(IDS) is not None:
        return [str(name) for name in batch[IDS]]
    find_ids = getattr(getattr(trainer, "datamodule", None), "sample_ids", None)
    if find_ids is not None and isinstance(outputs.get(KEY), Tensor):
        return list(find_ids(outputs[KEY].detach().cpu()))
    return []


def _columns_of(outputs: Any) -> dict[str, list[str]]:
    """Convert the columns that `predict_step` returned to text.

    Raises:
        ValueError: It returned no columns, or columns of different lengths.
    """
    rule = "predict_step must return a dictionary of tensors [B] or lists of str"
    if not isinstance(outputs, dict) or not outputs:
        what = "an empty dictionary" if outputs == {} else _described(outputs)
        raise ValueError(f"{rule}, got {what}: name each column, as in {{'value': values}}.")
    columns: dict[str, list[str]] = {}
    for name, values in outputs.items():
        if isinstance(values, Tensor) and values.ndim == 1 and not values.is_complex():
            columns[str(name)] = _texts(values)
        elif isinstance(values, list | tuple) and all(isinstance(value, str) for value in values):
            columns[str(name)] = list(values)
        else:
            raise ValueError(f"{rule}, got {_described(values)} for {name!r}: return one value for each sample.")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"predict_step must return columns of one length, got {lengths}: return one value a sample.")
    return columns


def _texts(values: Tensor) -> list[str]:
    """Format numbers with enough digits to read them back exactly in their precision."""
    values = values.detach().cpu()
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    return [str(value) for value in values.numpy()]


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def _merged(parts: Sequence[Path], several: bool) -> str | None:
    """Merge the parts of all ranks, and number the samples without a name; None if no rank has any row.

    Rows are taken from the ranks in turn, as the samplers of torch, of Lightning and of saccade distribute the samples.
    So the rows are in the order of the data.

    Args:
        parts: A file for each rank.
        several: Whether there are several dataloaders, whose numbers are then part of the names.

    Raises:
        ValueError: A part is missing or has other columns than the others.
    """
    for part in parts:
        if not part.exists():
            raise ValueError(
                f"the first rank cannot find the predictions of another rank in {part}: choose a folder that all"
                " machines share with --runs_folder."
            )
    csv.field_size_limit(sys.maxsize)
    with ExitStack() as stack:
        readers = [csv.reader(stack.enter_context(part.open(encoding="utf-8", newline=""))) for part in parts]
        headers = [header for header in (next(reader, None) for reader in readers) if header is not None]
        if not headers:
            return None
        if any(header != headers[0] for header in headers):
            raise ValueError(
                f"predict_step must return the same columns on every rank, got {headers}: return all columns."
            )
        key = headers[0].index(KEY) if KEY in headers[0] else None
        name = headers[0].index(ID)
        numbers = Counter[str]()
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
            if not row[name]:
                row[name] = f"{loader}/{numbers[loader]}" if several else str(numbers[loader])
            table.writerow(row)
            numbers[loader] += 1
    return text.getvalue()


def _in_turn(readers: Sequence[Iterator[list[str]]]) -> Iterator[tuple[str, list[str]]]:
    """Yield one row of each rank in turn, one dataloader after the other, each row with the index of its dataloader."""
    waiting: list[list[str] | None] = [next(reader, None) for reader in readers]
    while any(row is not None for row in waiting):
        current = str(min(int(row[0]) for row in waiting if row is not None))
        for rank, row in enumerate(waiting):
            if row is not None and row[0] == current:
                yield current, row[1:]
                waiting[rank] = next(readers[rank], None)
