"""Batches: every sequence once, the same number of batches on every rank, resumable."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from saccade.datamodules.loaders import BatchLoader, BatchSampler, PackedSequences
from tests.support.processes import TIME_LIMIT


def _samplers(count: int, batch_size: int, world: int, train: bool) -> list[BatchSampler]:
    return [BatchSampler(count, batch_size, rank, world, train, seed=1) for rank in range(world)]


def test_sequences_are_cut_without_padding() -> None:
    packed = PackedSequences(np.arange(23, dtype=np.int32), 5)
    assert len(packed) == 4
    batch = packed[[3, 0]]["input_ids"]
    assert batch.dtype == torch.int64
    assert batch.tolist() == [[15, 16, 17, 18, 19], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [2, 7, 16, 17, 33])
@pytest.mark.parametrize("batch_size", [1, 4, 8])
def test_validation_has_every_sequence_once(count: int, batch_size: int, world: int) -> None:
    batches = [list(sampler) for sampler in _samplers(count, batch_size, world, train=False)]
    seen = sorted(index for rank in batches for batch in rank for index in batch)
    assert seen == list(range(count))
    assert all(1 <= len(batch) <= batch_size for rank in batches for batch in rank)
    if batch_size > 1 and count >= world:
        assert len({len(rank) for rank in batches}) == 1


def test_ranks_of_a_training_epoch_share_no_sequence() -> None:
    ranks = [list(sampler) for sampler in _samplers(50, 4, 3, train=True)]
    assert {len(rank) for rank in ranks} == {4}
    assert all(len(batch) == 4 for rank in ranks for batch in rank)
    seen = [index for rank in ranks for batch in rank for index in batch]
    assert len(seen) == len(set(seen))


def test_order_changes_with_the_epoch_and_the_seed_only() -> None:
    first, again = (BatchSampler(40, 4, 0, 1, True, seed=1) for _ in range(2))
    assert list(first) == list(again)
    again.set_epoch(1)
    assert list(first) != list(again)
    assert list(first) != list(BatchSampler(40, 4, 0, 1, True, seed=2))


def test_early_sequences_come_first_in_the_first_epoch_only() -> None:
    ranks = [BatchSampler(60, 5, rank, 2, True, seed=1, early=20) for rank in range(2)]
    first = [index for sampler in ranks for batch in list(sampler)[:2] for index in batch]
    assert sorted(first) == list(range(20))
    assert first != sorted(first)
    for sampler in ranks:
        sampler.set_epoch(1)
    later = [index for sampler in ranks for batch in list(sampler)[:2] for index in batch]
    assert max(later) >= 20


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader_goes_on_where_it_was(num_workers: int) -> None:
    data = PackedSequences(np.arange(80, dtype=np.int32), 2)

    def loader(epoch: int) -> BatchLoader:
        sampler = BatchSampler(40, 4, 0, 1, True, seed=1)
        sampler.set_epoch(epoch)
        return BatchLoader(data, sampler, num_workers, pin_memory=False)

    whole = [batch["input_ids"] for batch in loader(3)]
    broken, resumed, later = loader(3), loader(3), loader(4)
    iterator = iter(broken)
    for _ in range(4):
        next(iterator)
    state = broken.state_dict()
    assert state == {"epoch": 3, "batches": 4}
    resumed.load_state_dict(state)
    rest = [batch["input_ids"] for batch in resumed]
    assert len(rest) == 6
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], rest, strict=True))
    later.load_state_dict(state)
    assert len(list(later)) == 10
    assert len(list(resumed)) == 10


class Wide(Dataset[list[bytes]]):
    """Batches that fill the pipe to the training process; notes the processes that read them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, indices: list[int]) -> list[bytes]:
        (self.folder / str(os.getpid())).touch()
        return [bytes(100_000) for _ in indices]


def read_and_die(folder: Path) -> None:
    for _ in BatchLoader(Wide(folder), BatchSampler(64, 2, 0, 1, True, 0), num_workers=2, pin_memory=False):
        if len(list(folder.iterdir())) == 2:
            time.sleep(0.5)  # both processes have read ahead
            os.kill(os.getpid(), signal.SIGKILL)


def test_loader_processes_end_with_a_training_that_is_killed(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=read_and_die, args=(tmp_path,))
    process.start()
    process.join(TIME_LIMIT)
    assert process.exitcode == -signal.SIGKILL
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert len(workers) == 2
    end = time.monotonic() + TIME_LIMIT
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < end
        time.sleep(0.05)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
