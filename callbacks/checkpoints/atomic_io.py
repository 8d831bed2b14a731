"""AtomicCheckpointIO: a checkpoint on the disk is the old one or the new one, never a part of one."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from saccade.common.files import replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its place, flush it to the disk, and rename it.

    Lightning (2.6) collects a checkpoint in `$TMPDIR` or in memory and then overwrites the file, so that a kill or a
    full disk in this moment leaves neither the old nor the new checkpoint. Every ``saccade fit`` uses this class; with
    an own trainer, give it as ``Trainer(plugins=[AtomicCheckpointIO()])``.

    Source: ours.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: Its content.
            path: The file; addresses such as ``s3://...`` are written as Lightning does.
            storage_options: None.

        Raises:
            ValueError: The file cannot be written; the one before is as it was.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replacing(Path(path)) as temporary, _disk_errors(), open(temporary, "wb") as file:
            torch.save(checkpoint, file)


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Raise an error of the disk as an OSError; torch wraps it while it closes its archive."""
    try:
        yield
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None and "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
            raise
        raise cause or OSError(errno.EIO, "the disk did not take all of it") from error
