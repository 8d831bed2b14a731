"""ChunkPool: labelled sources cut into equal chunks, and the target for which chunks are selected."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from lightning.pytorch import LightningDataModule
from rich.progress import track
from torch.utils.data import DataLoader

from saccade.common.checks import check_choice, check_count, check_fraction
from saccade.common.files import write_text
from saccade.datamodules.loaders import BatchLoader, BatchSampler
from saccade.datamodules.retrieval.batches import ChunkSampler, PairBatches, QueryBatches, SelectedChunks
from saccade.datamodules.retrieval.docstrings import SOURCES, TARGET
from saccade.datamodules.retrieval.files import Pair, RetrievalTask
from saccade.datamodules.retrieval.negatives import hard_negatives
from saccade.datamodules.retrieval.sources import Chunks, read_source, without_shared
from saccade.datamodules.retrieval.targets import Signal, Target, is_path, open_target

_LAYOUT = 1  # version of the manifest; raise it when the content changes


@dataclass(frozen=True)
class Loaded:
    """The data that `setup` reads.

    Args:
        chunks: The sources.
        target: The target.
        negatives: For each source, hard negatives by query; empty if there are none.
    """

    chunks: Chunks
    target: Target
    negatives: list[dict[str, list[str]]]


class ChunkPool(LightningDataModule):
    """Sources of training pairs in equal chunks, from which a retriever's training data is selected (Trait).

    Each source is shuffled once with a seeded permutation, which the manifest contains, and cut into chunks; only the
    last chunk of a source may be smaller. A callback selects the chunk of the next epoch (`select`); the epoch makes
    `passes` passes over it. If chunks differ in size, set `reload_dataloaders_every_n_epochs: 1` in the trainer, so
    that it counts the batches again, and select before the epoch begins. If nothing is selected, an epoch is one pass
    over all sources, mixed.

    Training batches are `{"query": list[str], "document": list[str], "source": list[str], "negatives":
    list[list[str]], "label": FloatTensor [batch]}`. Validation batches are the queries on which the search evaluates
    models, test batches the held-out queries: `{"task": list[str], "query_id": list[str], "query": list[str]}`. After
    `setup`, `dev_tasks` and `held_out` are the collections of these queries.

    Method: Trait, Findings of EMNLP 2025, of which only the abstract is public; sizes are those of its predecessor.

    Args:
        sources: BEIR folders, files of JSON lines in the format of BERRI, or names of installed packages (`python`: the
            standard library), of which docstrings are the queries and functions the documents. A text with a slash, dot
            or tilde is a path. None uses eight packages that Saccade installs.
        target: BEIR folder or package. None uses a package that is not among the sources.
        signal: What the search evaluates on. `fewshot`: a part of the target's judged queries. `pseudo`: queries made
            from the target's documents; its judgements are not read. `both`: the mean of the two. `loto` (leave one
            target out): parts of `other_targets`.
        other_targets: For `loto`, settings like `target`.
        chunk_size: Pairs in each chunk. For a selection no source may have fewer; without one the size does not matter.
        passes: Passes over the selected chunks in each epoch.
        batch_size: Pairs for each training batch and device.
        eval_batch_size: Queries for each validation or test batch and device.
        dev_fraction: Share of the target's queries that the search may use; the others are held out with any signal.
        pseudo_queries: Number of queries to make for `pseudo` and `both`.
        negatives: Random documents of the same source, with label 0, for each positive pair of a source without
            negative pairs; 0 for none, if the other documents of a batch serve as negatives.
        hard_negatives: Documents for each query that BM25 ranks high in the same source and that do not answer it.
            They come with each positive pair and do not count as pairs of a chunk.
        max_pairs_per_package: Most pairs to read from a package.
        keep_instruction: Keep the instructions of BERRI in the training queries.
        shared_queries: What to do if a source of files has queries of the target: `refuse` the source, or `drop` those
            pairs. From packages they are always dropped.
        source_split: Name of the judgements of BEIR sources. If it differs from `target_split`, the target may be a
            source, too.
        target_split: Name of the judgements of BEIR targets.
        allow_unknown: Accept judgements of documents that a corpus lacks.
        seed: Seed of permutations, splits, made queries and drawn negatives. It is independent of `seed_everything`, on
            which the order within a chunk depends.
        num_workers: Loader processes; 0 loads in the training process, which is fast enough for text in memory.

    Raises:
        ValueError: A setting or a file is invalid.
    """

    def __init__(
        self,
        sources: list[str] | None = None,
        target: str | None = None,
        signal: Signal = "fewshot",
        other_targets: list[str] | None = None,
        chunk_size: int = 640,
        passes: int = 4,
        batch_size: int = 48,
        eval_batch_size: int = 256,
        dev_fraction: float = 0.2,
        pseudo_queries: int = 150,
        negatives: int = 0,
        hard_negatives: int = 0,
        max_pairs_per_package: int = 1280,
        keep_instruction: bool = False,
        shared_queries: Literal["refuse", "drop"] = "refuse",
        source_split: str = "test",
        target_split: str = "test",
        allow_unknown: bool = False,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("chunk_size", chunk_size, 1),
            ("passes", passes, 1),
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("pseudo_queries", pseudo_queries, 1),
            ("negatives", negatives, 0),
            ("hard_negatives", hard_negatives, 0),
            ("max_pairs_per_package", max_pairs_per_package, 1),
            ("seed", seed, 0),
            ("num_workers", num_workers, 0),
        ):
            check_count(name, value, least)
        check_fraction("dev_fraction", dev_fraction)
        check_choice("signal", signal, get_args(Signal))
        check_choice("shared_queries", shared_queries, ("refuse", "drop"))
        self.sources = list(SOURCES) if sources is None else sources
        self.target = TARGET if target is None else target
        if not self.sources:
            raise ValueError("sources must name at least one, got an empty list: give one, or null for packages.")
        if self.target in self.sources and (source_split == target_split or not is_path(self.target)):
            other = "set source_split to the name of judgements to train on"
            if not is_path(self.target):
                other = f"write ./{self.target} for a folder"
            raise ValueError(
                f"sources must not contain the target, got {self.target} as both: remove it from one, or {other}."
            )
        self.signal: Signal = signal
        self.other_targets = other_targets or []
        self.chunk_size = chunk_size
        self.passes = passes
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.dev_fraction = dev_fraction
        self.pseudo_queries = pseudo_queries
        self.negatives = negatives
        self.hard_negatives = hard_negatives
        self.max_pairs_per_package = max_pairs_per_package
        self.keep_instruction = keep_instruction
        self.shared_queries = shared_queries
        self.source_split = source_split
        self.target_split = target_split
        self.allow_unknown = allow_unknown
        self.seed = seed
        self.num_workers = num_workers
        self.selection = SelectedChunks()
        self._loaded: Loaded | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read the target and the sources into memory (on all ranks).

        Args:
            stage: Not used: the sources must not contain queries of the target, so both are always read.

        Raises:
            ValueError: A file is invalid, or a source has queries of the target.
        """
        if self._loaded is not None:
            return
        target = open_target(
            self.target,
            self.signal,
            self.dev_fraction,
            self.seed,
            self.target_split,
            self.pseudo_queries,
            self.other_targets,
            self.allow_unknown,
        )
        sources = []
        quiet = self.trainer is not None and not self.trainer.is_global_zero
        for setting in track(self.sources, "Reading sources", transient=True, disable=quiet):
            source = read_source(
                setting,
                self.source_split,
                self.negatives,
                self.seed,
                self.max_pairs_per_package,
                self.keep_instruction,
                self.allow_unknown,
            )
            sources.append(without_shared(source, target, self.shared_queries == "drop"))
        mined = []
        if self.hard_negatives:
            for source in track(sources, "Mining negatives", transient=True, disable=quiet):
                mined.append(hard_negatives(source.pairs, source.documents, self.hard_negatives, self.seed))
        self._loaded = Loaded(Chunks(sources, self.chunk_size, self.seed), target, mined)

    @property
    def names(self) -> list[str]:
        """Names of the sources."""
        return [source.name for source in self._ready().chunks.sources]

    @property
    def chunks_per_source(self) -> list[int]:
        """Number of chunks of each source: its pairs divided by the chunk size, rounded up."""
        return self._ready().chunks.counts

    @property
    def pool_pairs(self) -> int:
        """Number of pairs of all sources together."""
        return sum(len(source.pairs) for source in self._ready().chunks.sources)

    @property
    def dev_tasks(self) -> list[RetrievalTask]:
        """The collections on which the search evaluates models; several with `loto` and `both`, whose mean counts."""
        return self._ready().target.dev

    @property
    def held_out(self) -> RetrievalTask | None:
        """The collection for the final report; None with `pseudo`: use `targets.open_held_out` after the search."""
        return self._ready().target.held_out

    def collections(self) -> tuple[dict[str, list[str]], str]:
        """Return all documents by the name of their source or target, and the name of the target."""
        loaded = self._ready()
        found = {source.name: source.documents for source in loaded.chunks.sources}
        found |= {task.name: list(task.corpus.values()) for task in loaded.target.dev}
        found.setdefault(loaded.target.name, list(loaded.target.documents))
        return found, loaded.target.name

    def labelled(self) -> dict[str, tuple[list[Pair], list[str]]]:
        """Return the pairs and the documents of each source, by its name, for mining negatives."""
        return {source.name: (source.pairs, source.documents) for source in self._ready().chunks.sources}

    def check_sizes(self) -> None:
        """Refuse a source that is smaller than a chunk, because only chunks of one size can be compared.

        Raises:
            ValueError: There is such a source.
        """
        self._ready().chunks.check_sizes()

    def chunk(self, source: int, number: int) -> list[Pair]:
        """Return the pairs of one chunk.

        Args:
            source: Index of the source.
            number: Index of the chunk.

        Returns:
            The pairs in the order of the permutation.

        Raises:
            ValueError: There is no such chunk.
        """
        return self._ready().chunks.pairs(source, number)

    def chunks(self, source: int) -> list[list[Pair]]:
        """Return all chunks of a source, in order.

        Args:
            source: Index of the source.

        Returns:
            The chunks; joined, they are the source in the order of its permutation.

        Raises:
            ValueError: There is no such source.
        """
        first = self.chunk(source, 0)
        return [first, *(self.chunk(source, number) for number in range(1, self.chunks_per_source[source]))]

    def select(self, source: int, number: int) -> None:
        """Select the chunk for the following epochs.

        Args:
            source: Index of the source.
            number: Index of the chunk.

        Raises:
            ValueError: There is no such chunk.
        """
        self.select_chunks([(source, number)])

    def select_chunks(self, chunks: Sequence[tuple[int, int]]) -> None:
        """Select several chunks, which the following epochs mix.

        Args:
            chunks: Source and chunk indices; at least one.

        Raises:
            ValueError: A chunk does not exist, or none is given.
        """
        if not chunks:
            raise ValueError("chunks must name at least one, got an empty list: give one, or call select_all.")
        for source, number in chunks:
            self._ready().chunks.places(source, number)  # refuses chunks that do not exist
        self.selection = SelectedChunks(tuple((source, number) for source, number in chunks))

    def select_all(self) -> None:
        """Select all sources, mixed, for one pass in each epoch."""
        self.selection = SelectedChunks()

    def manifest(self) -> dict[str, Any]:
        """Describe the sources, chunks and target for JSON, with all permutations and the query ids of the split."""
        target = self._ready().target
        return {
            "layout": _LAYOUT,
            "signal": self.signal,
            **self._ready().chunks.manifest(),
            "target": {
                "name": target.name,
                "setting": self.target,
                "dev": [{"name": task.name, "query_ids": list(task.queries)} for task in target.dev],
                "held_out": None if target.held_out is None else list(target.held_out.queries),
            },
        }

    def write_manifest(self, path: str | Path) -> Path:
        """Write the manifest as JSON, atomically.

        Args:
            path: File to write or to replace.

        Returns:
            The path.

        Raises:
            ValueError: The file cannot be written.
        """
        write_text(path, json.dumps(self.manifest()) + "\n")
        return Path(path)

    def train_dataloader(self) -> BatchLoader:
        """Batches of the chunks that are selected when the first batch is requested."""
        loaded = self._ready()
        rank, world_size, on_gpu = self._place()
        sampler = ChunkSampler(self._passes, self.batch_size, rank, world_size)
        return BatchLoader(
            PairBatches(loaded.chunks.sources, loaded.negatives), sampler, self.num_workers, pin_memory=on_gpu
        )

    def val_dataloader(self) -> BatchLoader:
        """The queries on which the search evaluates models, each once, in order, on any number of devices."""
        return self._queries(self.dev_tasks)

    def test_dataloader(self) -> BatchLoader:
        """The held-out queries, each once, in order, on any number of devices.

        Raises:
            ValueError: The signal is `pseudo`.
        """
        if self.held_out is None:
            raise ValueError(
                "signal must be fewshot, both or loto to test on held-out queries, got pseudo: run test with"
                " signal=fewshot and the same seed."
            )
        return self._queries([self.held_out])

    def predict_dataloader(self) -> DataLoader[Any]:
        """The same queries as `test_dataloader`."""
        loader = self.test_dataloader()
        # for `predict` Lightning makes a new loader with the arguments of a plain DataLoader
        return DataLoader(loader.dataset, batch_size=None, sampler=loader.sampler, num_workers=self.num_workers)

    def state_dict(self) -> dict[str, Any]:
        """Return a digest of the pool, and the selected chunks, for the checkpoint."""
        chunks = [list(each) for each in self.selection.chunks]
        return {"pool": self._digest(), "chunks": chunks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the selected chunks; refuse a checkpoint of another pool.

        Args:
            state_dict: What `state_dict` returned.

        Raises:
            ValueError: The chunks differ because of other files, package versions or settings.
        """
        if state_dict["pool"] != self._digest():
            raise ValueError(
                "sources must be those of the checkpoint, got other content, order, seed, chunk_size or target: set"
                " them back, or start without --ckpt_path."
            )
        self.selection = SelectedChunks(tuple((int(source), int(number)) for source, number in state_dict["chunks"]))

    def _digest(self) -> str:
        cut = self._ready().chunks
        sources = [[source.name, source.digest] for source in cut.sources]
        dev = [[task.name, list(task.queries)] for task in self.dev_tasks]
        facts = [cut.seed, cut.size, self.signal, sources, self._ready().target.name, dev]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _ready(self) -> Loaded:
        if self._loaded is None:
            self.setup()
        if self._loaded is None:
            raise RuntimeError("setup has loaded nothing")
        return self._loaded

    def _passes(self, epoch: int) -> list[np.ndarray]:
        # the order of training depends on seed_everything; chunks and splits do not
        seed = int(os.environ.get("PL_GLOBAL_SEED", self.seed))
        return self.selection.order(self._ready().chunks, self.passes, seed, epoch)

    def _queries(self, tasks: list[RetrievalTask]) -> BatchLoader:
        rows = [(task.name, name, text) for task in tasks for name, text in task.queries.items()]
        rank, world_size, on_gpu = self._place()
        sampler = BatchSampler(len(rows), self.eval_batch_size, rank, world_size, train=False, seed=0)
        return BatchLoader(QueryBatches(rows), sampler, self.num_workers, pin_memory=on_gpu)

    def _place(self) -> tuple[int, int, bool]:
        trainer = self.trainer
        if trainer is None:
            return 0, 1, False
        return trainer.global_rank, trainer.world_size, trainer.strategy.root_device.type == "cuda"
