"""Data loaders: batches split over ranks without repetition, and training that resumes in the middle of an epoch."""

import contextlib
import ctypes
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl


class PackedSequences(Dataset[dict[str, Tensor]]):
    """A stream of tokens, cut into sequences of equal length without padding.

    Args:
        tokens: The stream, integers [N]; it may be memory-mapped.
        sequence_length: Tokens per sequence; the last `N % sequence_length` tokens are left out.
    """

    def __init__(self, tokens: np.ndarray, sequence_length: int) -> None:
        count = len(tokens) // sequence_length
        self.sequences = tokens[: count * sequence_length].reshape(count, sequence_length)

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, indices: list[int]) -> dict[str, Tensor]:
        """Return a whole batch: `input_ids` LongTensor [len(indices), sequence_length]."""
        return {"input_ids": torch.from_numpy(self.sequences[indices].astype(np.int64))}


class BatchSampler(DistributedSampler[list[int]]):
    """Yield one list of indices for each batch of this rank.

    This is a `DistributedSampler`, so that Lightning does not replace it, but it repeats no sequence: totals over a
    validation set are exact on any number of ranks. All ranks get the same number of batches, because with sharded
    parameters every forward pass is a collective call. There are two exceptions, in which the last ranks get one batch
    less: fewer sequences than ranks, and a `batch_size` of 1 with a number of sequences that the ranks do not divide.

    Args:
        count: Number of sequences.
        batch_size: Most sequences in a batch of one rank.
        rank: Number of this rank.
        world_size: Number of ranks.
        train: Shuffle in every epoch and leave out the incomplete last batch. Otherwise keep the order, use all
            sequences, and make batches of nearly equal sizes.
        seed: Seed of the shuffling.
        early: In the first epoch of training, the first `early` sequences, shuffled, come before the others.
    """

    def __init__(
        self, count: int, batch_size: int, rank: int, world_size: int, train: bool, seed: int, early: int = 0
    ) -> None:
        super().__init__(range(count), num_replicas=world_size, rank=rank, shuffle=train, seed=seed)  # type: ignore[arg-type]
        self.count = count
        self.batch_size = batch_size
        self.train = train
        self.early = early
        self.start = 0
        share = count // world_size if train else -(-count // world_size)
        self.batches = share // batch_size if train else -(-share // batch_size)

    def __len__(self) -> int:
        """Return the number of batches of an epoch, the same on every rank."""
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self.count)
        if self.train:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
            if self.epoch == 0 and self.early:
                order = np.concatenate([order[order < self.early], order[order >= self.early]])
        own = order[self.rank :: self.num_replicas]
        if self.train:
            pieces = [own[i * self.batch_size : (i + 1) * self.batch_size] for i in range(self.batches)]
        else:
            pieces = np.array_split(own, self.batches)
        for piece in pieces[self.start :]:
            if len(piece):
                yield piece.tolist()


class BatchLoader(DataLoader[Any]):
    """A DataLoader that continues in the middle of an epoch.

    Lightning calls `state_dict` and `load_state_dict` of such a loader. The position that a checkpoint stores is that
    of the training (`ExactResume`), which may have read more batches than it has trained.

    Args:
        dataset: Returns a whole batch for a list of indices.
        sampler: The lists of indices.
        num_workers: Loader processes; 0 loads in the training process.
        pin_memory: Copy batches to page-locked memory, for training on a GPU.
    """

    def __init__(self, dataset: Dataset[Any], sampler: BatchSampler, num_workers: int, pin_memory: bool) -> None:
        super().__init__(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=num_workers,
            pin_memory=pin_memory,
            worker_init_fn=_end_with_the_training if num_workers else None,
            # without its own generator, every epoch takes a number from the one that dropout uses
            generator=torch.Generator().manual_seed(sampler.seed),
        )
        self._batches = sampler
        self._delivered = 0
        self._resume: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # a generator, because Lightning asks for the iterator before it sets the epoch of the sampler
        sampler = self._batches
        resume, self._resume = self._resume, None
        start = resume["batches"] if resume is not None and resume["epoch"] == sampler.epoch else 0
        sampler.start = self._delivered = start
        for batch in super().__iter__():
            self._delivered += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and how many of its batches have been delivered."""
        return {"epoch": self._batches.epoch, "batches": self._delivered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last delivered batch if training resumes in the same epoch.

        Args:
            state: What `state_dict` returned.
        """
        self._resume = dict(state)


def with_a_batch(loader: BatchLoader, batch_size: int, what: str, more: str) -> BatchLoader:
    """A loader of training batches, refused where it has none.

    Args:
        loader: The loader.
        batch_size: The setting, for the message.
        what: How many there are of what, where, for the message.
        more: What there should be more of, for the message.

    Returns:
        The same loader.

    Raises:
        ValueError: It has no batch for every device.
    """
    if not len(loader):
        raise ValueError(
            f"batch_size must leave one batch for every device, got {batch_size} for the {what}: lower it, or give more"
            f" {more}."
        )
    return loader


def _end_with_the_training(worker: int) -> None:
    """Let a loader process end when the process that made it is killed.

    torch's own check happens between two batches only; a process that waits for room to hand one over would stay for
    ever, with its memory.

    Args:
        worker: Unused.
    """
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
