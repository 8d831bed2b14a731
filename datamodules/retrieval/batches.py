"""Batches of query-document pairs from the selected chunks, and batches of queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from saccade.datamodules.loaders import BatchSampler
from saccade.datamodules.retrieval.sources import Chunks, Source

Passes = Callable[[int], list[np.ndarray]]
"""A function from the number of an epoch to the indices of pairs, int [N], for each of its passes."""


@dataclass(frozen=True)
class SelectedChunks:
    """The chunks on which an epoch trains.

    Args:
        chunks: Source and chunk indices; empty for all sources.
    """

    chunks: tuple[tuple[int, int], ...] = ()

    def order(self, cut: Chunks, passes: int, seed: int, epoch: int) -> list[np.ndarray]:
        """Return the order in which the pairs are trained on.

        The order of selected chunks does not depend on the epoch, so that a chunk gives the same child model from the
        same parent model at any time of the search. Without selected chunks, every epoch has a new order and one pass.

        Args:
            cut: The sources.
            passes: Number of passes over the selected chunks.
            seed: Seed of the order.
            epoch: Number of the epoch.

        Returns:
            For each pass, indices into the joined pairs of all sources, int [N].
        """
        sizes = [len(source.pairs) for source in cut.sources]
        if not self.chunks:
            return [np.random.default_rng([seed, 0, epoch]).permutation(sum(sizes))]
        offsets = np.cumsum([0, *sizes])
        places = np.concatenate([offsets[source] + cut.places(source, number) for source, number in self.chunks])
        key = [1, *(value for chunk in self.chunks for value in chunk)]
        return [np.random.default_rng([seed, *key, number]).permutation(places) for number in range(passes)]


class PairBatches(Dataset[dict[str, Any]]):
    """A data set that returns a whole batch of pairs for a list of indices.

    Args:
        sources: All sources; indices count through their joined pairs.
        negatives: For each source, hard negatives by query; empty if there are none.
    """

    def __init__(self, sources: Sequence[Source], negatives: Sequence[Mapping[str, list[str]]] = ()) -> None:
        self.pairs = [(pair, number) for number, source in enumerate(sources) for pair in source.pairs]
        self.names = [source.name for source in sources]
        self.negatives = negatives

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, places: list[int]) -> dict[str, Any]:
        """Return `query`, `document`, `source` (lists of str), `negatives` (list of lists of str), and `label` [B]."""
        chosen = [self.pairs[place] for place in places]
        return {
            "query": [pair.query for pair, _ in chosen],
            "document": [pair.document for pair, _ in chosen],
            "label": torch.tensor([float(pair.label) for pair, _ in chosen]),
            "source": [self.names[number] for _, number in chosen],
            "negatives": [
                self.negatives[number].get(pair.query, []) if self.negatives and pair.label > 0 else []
                for pair, number in chosen
            ],
        }


class QueryBatches(Dataset[dict[str, list[str]]]):
    """A data set that returns a whole batch of queries for a list of indices.

    Args:
        rows: Name of the task, query id and text of each query.
    """

    def __init__(self, rows: Sequence[tuple[str, str, str]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: list[int]) -> dict[str, list[str]]:
        """Return `task`, `query_id` and `query`, lists of str."""
        chosen = [self.rows[place] for place in places]
        return {
            "task": [row[0] for row in chosen],
            "query_id": [row[1] for row in chosen],
            "query": [row[2] for row in chosen],
        }


class ChunkSampler(BatchSampler):
    """Yield one list of indices for each batch of this rank, from the chunks selected at the start of the epoch.

    An epoch uses every pair of a pass, in batches of nearly equal size: 640 pairs at batch size 48 make 14 steps. If
    the ranks do not divide the pairs of a pass, its first pairs are used twice, so that all ranks make as many steps.

    Args:
        passes: Indices of the pairs for each pass of an epoch.
        batch_size: Most pairs in a batch of one rank.
        rank: Number of this rank.
        world_size: Number of ranks.
    """

    def __init__(self, passes: Passes, batch_size: int, rank: int, world_size: int) -> None:
        # the length depends on the selected chunks, so that of the base class is not used
        super().__init__(1, batch_size, rank, world_size, train=False, seed=0)
        self.passes = passes

    def __len__(self) -> int:
        return sum(-(-len(each) // (self.batch_size * self.num_replicas)) for each in self.passes(self.epoch))

    def __iter__(self) -> Iterator[list[int]]:
        pieces: list[np.ndarray] = []
        for places in self.passes(self.epoch):
            share = -(-len(places) // self.num_replicas)
            own = np.resize(places, share * self.num_replicas)[self.rank :: self.num_replicas]
            pieces += np.array_split(own, -(-share // self.batch_size))
        for piece in pieces[self.start :]:
            yield piece.tolist()
