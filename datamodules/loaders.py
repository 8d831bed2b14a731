"""Batches of fixed-length sequences: shared among ranks without repeats, resumable in the middle of an epoch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler


class PackedSequences(Dataset[dict[str, Tensor]]):
    """A stream of tokens cut into sequences of one length, without padding.

    Args:
        tokens: The stream, integers [N]; may be memory-mapped.
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
    """Yield one list of indices per batch, for this rank.

    It is a `DistributedSampler`, so that Lightning leaves it in place, but it repeats nothing: totals over a validation
    set are exact on any number of ranks. All ranks get the same number of batches, because with sharded parameters
    every forward pass is a collective one; only when there are fewer sequences than ranks, or `batch_size` is 1 and the
    ranks do not divide the sequences, the last ranks get one batch less.

    Args:
        count: Number of sequences.
        batch_size: Most sequences per batch and rank.
        rank: This rank.
        world_size: Number of ranks.
        train: Shuffle every epoch and leave out the incomplete last batch, instead of evening the batches out.
        seed: Of the shuffling.
        early: The first so many sequences come before the others in the first epoch of a training set, shuffled too.
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
    """A DataLoader whose position is saved in the checkpoint, so that training resumes in the middle of an epoch.

    Lightning calls `state_dict` and `load_state_dict` of such a loader by itself.

    Args:
        dataset: Gives a whole batch for a list of indices.
        sampler: The batches.
        num_workers: Loader processes; 0 loads in the training process.
        pin_memory: Copy batches to page-locked memory, for a GPU.
    """

    def __init__(self, dataset: Dataset[Any], sampler: BatchSampler, num_workers: int, pin_memory: bool) -> None:
        super().__init__(dataset, batch_size=None, sampler=sampler, num_workers=num_workers, pin_memory=pin_memory)
        self._batches = sampler
        self._delivered = 0
        self._resume: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, because Lightning asks for the iterator before it tells the sampler the epoch.
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
        """Go on behind the last delivered batch, if the run goes on in the same epoch."""
        self._resume = dict(state)
