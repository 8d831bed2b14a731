"""Whatever goes wrong while a checkpoint is written, the one before is whole."""

import multiprocessing
import os
import resource
import signal
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from saccade.callbacks.checkpoints.atomic_io import AtomicCheckpointIO
from tests.support.processes import TIME_LIMIT

OLD = {"step": 1, "weight": torch.arange(1000.0)}
NEW = {"step": 2, "weight": torch.zeros(2_000_000)}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(OLD, path)
    return path


def check_old(path: Path) -> None:
    found = torch.load(path, weights_only=True)
    assert found["step"] == 1
    assert torch.equal(found["weight"], OLD["weight"])
    assert os.listdir(path.parent) == [path.name], "nothing half written is left"


def test_a_new_one_replaces_the_old(saved):
    AtomicCheckpointIO().save_checkpoint(NEW, saved)
    assert torch.load(saved, weights_only=True)["step"] == 2
    assert os.listdir(saved.parent) == [saved.name]


def test_a_full_disk(saved):
    """A limit on the size of files fails the write in the middle, as a full disk or a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(ValueError, match=r"last\.ckpt") as raised:
            AtomicCheckpointIO().save_checkpoint(NEW, saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert str(raised.value).startswith(f"cannot write {saved} (")
    assert "\n" not in str(raised.value)
    check_old(saved)


def save_and_die(path: Path) -> None:
    write, sent = torch.save, []

    def interrupted(obj: object, file: BinaryIO) -> None:
        class Half:
            def write(self, data: bytes) -> int:
                sent.append(len(data))
                if sum(sent) > 2_000_000:
                    os.kill(os.getpid(), signal.SIGKILL)
                return file.write(data)

            def flush(self) -> None:
                file.flush()

        write(obj, Half())

    torch.save = interrupted
    AtomicCheckpointIO().save_checkpoint(NEW, path)


def test_a_kill_during_the_write(saved):
    """The process dies when half of the file is written: the old checkpoint is still the one that is found."""
    process = multiprocessing.get_context("fork").Process(target=save_and_die, args=(saved,))
    process.start()
    process.join(TIME_LIMIT)
    assert process.exitcode == -signal.SIGKILL
    left = [path for path in saved.parent.iterdir() if path != saved]
    assert len(left) == 1, "what the killed process had written lies beside it, under another name"
    left[0].unlink()
    check_old(saved)


def test_the_temporary_folder_does_not_matter(saved, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nowhere")
    monkeypatch.setattr("tempfile.tempdir", None)
    AtomicCheckpointIO().save_checkpoint(NEW, saved)
    assert torch.load(saved, weights_only=True)["step"] == 2


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "taken").write_text("a file where the folder should be")
    with pytest.raises(ValueError, match=r"cannot write .*taken/last.ckpt \(.*\): choose a folder"):
        AtomicCheckpointIO().save_checkpoint(NEW, tmp_path / "taken" / "last.ckpt")


def test_errors_of_the_content_are_not_errors_of_the_disk(saved):
    with pytest.raises(Exception, match="pickle") as raised:
        AtomicCheckpointIO().save_checkpoint({"callback": lambda: None}, saved)
    assert not isinstance(raised.value, ValueError)
    check_old(saved)
