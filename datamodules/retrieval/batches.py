"""Batches of retrieval: pairs of what is selected at the moment, and queries."""

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
"""For the number of an epoch: places of pairs, int [N], for each of its passes, in order of training."""


@dataclass(frozen=True)
class Selection:
    """What an epoch trains on; everything, where neither is given.

    Args:
        chunks: Source and chunk numbers.
    """

    chunks: tuple[tuple[int, int], ...] = ()

    def order(self, cut: Chunks, passes: int, seed: int, epoch: int) -> list[np.ndarray]:
        """Put pairs in the order of training.

        The order of a selection depends on the selection, not on the epoch: a chunk gives the same child from the same
        father whenever it is tried. Without a selection, every epoch has a new order and one pass.

        Args:
            cut: The sources.
            passes: Times to go over the selection.
            seed: Of the order.
            epoch: Number of the epoch.

        Returns:
            For each pass, places among the pairs of all sources joined, int [N].
        """
        sizes = [len(source.pairs) for source in cut.sources]
        if not self.chunks:
            return [np.random.default_rng([seed, 0, epoch]).permutation(sum(sizes))]
        offsets = np.cumsum([0, *sizes])
        places = np.concatenate([offsets[source] + cut.places(source, number) for source, number in self.chunks])
        key = [1, *(value for chunk in self.chunks for value in chunk)]
        return [np.random.default_rng([seed, *key, number]).permutation(places) for number in range(passes)]


class PairBatches(Dataset[dict[str, Any]]):
    """Pairs, a whole batch at once.

    Args:
        sources: All of them; places count through their pairs in order.
        negatives: For each source, hard negatives by query; empty where none were mined.
    """

    def __init__(self, sources: Sequence[Source], negatives: Sequence[Mapping[str, list[str]]] = ()) -> None:
        self.pairs = [(pair, number) for number, source in enumerate(sources) for pair in source.pairs]
        self.names = [source.name for source in sources]
        self.negatives = negatives

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, places: list[int]) -> dict[str, Any]:
        """Return `query`, `document`, `source`, lists of texts, `negatives`, lists of lists, and `label` [B]."""
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
    """Queries, a whole batch at once.

    Args:
        rows: Name of the task, query id and text of each.
    """

    def __init__(self, rows: Sequence[tuple[str, str, str]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: list[int]) -> dict[str, list[str]]:
        """Return `task`, `query_id` and `query`, lists of texts."""
        chosen = [self.rows[place] for place in places]
        return {
            "task": [row[0] for row in chosen],
            "query_id": [row[1] for row in chosen],
            "query": [row[2] for row in chosen],
        }


class SelectionSampler(BatchSampler):
    """Yield one list of places per batch, for this rank, of what is selected when the first batch is asked for.

    Every pair of a pass is trained on, in batches of nearly the same size: 640 pairs at batch size 48 are 14 steps.
    Where the ranks do not divide a pass, its first pairs are taken once more, so that all ranks make the same steps.

    Args:
        passes: What is selected.
        batch_size: Most pairs per batch and rank.
        rank: This rank.
        world_size: Number of ranks.
    """

    def __init__(self, passes: Passes, batch_size: int, rank: int, world_size: int) -> None:
        # the base class's own count is of no use: what is selected changes
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
