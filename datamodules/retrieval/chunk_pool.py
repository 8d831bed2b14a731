"""ChunkPool: labelled sources cut into equal chunks, and the target on which a selection measures them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch import LightningDataModule
from rich.progress import track

from saccade.common.files import write_text
from saccade.datamodules.loaders import BatchLoader, BatchSampler
from saccade.datamodules.retrieval.batches import PairBatches, QueryBatches, Selection, SelectionSampler
from saccade.datamodules.retrieval.docstrings import SOURCES, TARGET
from saccade.datamodules.retrieval.files import Pair, RetrievalTask
from saccade.datamodules.retrieval.negatives import hard_negatives
from saccade.datamodules.retrieval.sources import Chunks, read_source, without_shared
from saccade.datamodules.retrieval.targets import Signal, Target, check_signal, open_target

_LAYOUT = 1  # of the manifest; raise it when its meaning changes


@dataclass(frozen=True)
class Loaded:
    """What `setup` reads.

    Args:
        chunks: The sources.
        target: The target.
        negatives: Of each source, hard negatives by query; empty where none are wanted.
    """

    chunks: Chunks
    target: Target
    negatives: list[dict[str, list[str]]]


class ChunkPool(LightningDataModule):
    """Sources of training pairs in equal chunks, for a retriever that picks its own training data (Trait).

    Each source is shuffled once with its own seeded permutation, kept in the manifest, and cut into chunks; only its
    last chunk may be shorter. A selection callback says which chunk the next epoch trains on (`select`); an epoch goes
    over it `passes` times. Where chunks differ in size, the trainer needs `reload_dataloaders_every_n_epochs: 1`, to
    count the batches anew, and the selection has to be made before the epoch begins. While nothing is selected, an
    epoch goes over all sources mixed, once.

    Batches of training are `{"query": list[str], "document": list[str], "source": list[str], "negatives":
    list[list[str]], "label": FloatTensor [batch]}`. Validation
    gives the queries that children are measured on, test the held-out ones: `{"task": list[str],
    "query_id": list[str], "query": list[str]}`. After `setup`, `dev_tasks` and `held_out` are the collections behind.

    Method: Trait, Findings of EMNLP 2025, of which only the abstract is public; sizes are its predecessor's.

    Args:
        sources: Each a BEIR folder, a file of JSON lines in BERRI's form, or the name of an installed package
            (`python`: the standard library), whose docstrings ask for their functions. What has a slash, dot or tilde
            is a path. None takes eight packages that Saccade installs.
        target: BEIR folder or package. None takes a package that is no source.
        signal: What stands for the target in the search. `fewshot`: a labelled slice of its queries. `pseudo`: queries
            made from its documents; its judgements are never opened. `both`: the mean of the two. `loto`: slices of
            `other_targets`.
        other_targets: For `loto`, settings like `target`.
        chunk_size: Pairs per chunk; no source may be smaller.
        passes: Times that an epoch goes over what is selected.
        batch_size: Pairs per training batch and device.
        eval_batch_size: Queries per batch and device otherwise.
        dev_fraction: Share of the target's queries in the slice; the rest is held out with any signal.
        pseudo_queries: Queries to make for `pseudo` and `both`.
        negatives: Random documents of the same source, with label 0, for each positive pair of a source that has no
            others; 0 leaves negatives to the other pairs of a batch.
        hard_negatives: Documents for each query that BM25 finds in its source and that do not answer it, handed over
            beside each positive pair; they count as no pairs of a chunk.
        max_pairs_per_package: Reading a package stops after so many.
        keep_instruction: Leave BERRI's instructions in the queries of training.
        shared_queries: What happens when a source of files has a query of the target: `refuse` it, or `drop` such
            pairs. Packages always drop them.
        source_split: Judgements of BEIR sources.
        target_split: Judgements of BEIR targets.
        allow_unknown: Accept judgements of documents that a corpus lacks.
        seed: Of permutations, slices, made queries and drawn negatives, which do not follow `seed_everything`; the
            order within a chunk does.
        num_workers: Loader processes; 0 loads in the training process, which is enough for text in memory.

    Raises:
        ValueError: A setting is impossible or a file is broken; one line names it.
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
            if value < least:
                raise ValueError(f"{name}: must be at least {least}, but is {value}; raise it")
        if not 0 < dev_fraction < 1:
            raise ValueError(f"dev_fraction: must lie between 0 and 1, but is {dev_fraction}; 0.1 to 0.2 are usual")
        check_signal(signal)
        if shared_queries not in ("refuse", "drop"):
            raise ValueError(f"shared_queries: must be refuse or drop, but is {shared_queries!r}; choose one")
        self.sources = list(SOURCES) if sources is None else sources
        self.target = TARGET if target is None else target
        if not self.sources:
            raise ValueError("sources: must have at least one, but the list is empty; null takes installed packages")
        if self.target in self.sources:
            raise ValueError(f"sources: must not have the target, but {self.target} is both; remove it from one")
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
        self.selection = Selection()
        self._loaded: Loaded | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read the target and the sources into memory (all ranks).

        Args:
            stage: Unused: measuring needs the target, and what is held out must be kept from the sources.

        Raises:
            ValueError: A file is broken, a source is smaller than a chunk, or shares queries with the target.
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
        """Chunks of each source: its pairs by the chunk size, rounded up."""
        return self._ready().chunks.counts

    @property
    def pool_pairs(self) -> int:
        """Pairs of all sources together."""
        return sum(len(source.pairs) for source in self._ready().chunks.sources)

    @property
    def dev_tasks(self) -> list[RetrievalTask]:
        """What children are measured on; several with `loto`, where the mean counts."""
        return self._ready().target.dev

    @property
    def held_out(self) -> RetrievalTask | None:
        """What the result is reported on; None with `pseudo`, see `retrieval_targets.open_held_out`."""
        return self._ready().target.held_out

    def collections(self) -> tuple[dict[str, list[str]], str]:
        """Give all unlabelled text: the documents of each source and of what is measured on, and the target's name."""
        loaded = self._ready()
        found = {source.name: source.documents for source in loaded.chunks.sources}
        found |= {task.name: list(task.corpus.values()) for task in loaded.target.dev}
        found.setdefault(loaded.target.name, list(loaded.target.documents))
        return found, loaded.target.name

    def labelled(self) -> dict[str, tuple[list[Pair], list[str]]]:
        """Give the pairs and the documents of each source, by its name; negatives are mined from them."""
        return {source.name: (source.pairs, source.documents) for source in self._ready().chunks.sources}

    def chunk(self, source: int, number: int) -> list[Pair]:
        """Give the pairs of one chunk.

        Args:
            source: Number of the source.
            number: Of the chunk.

        Returns:
            The pairs in the stored order.

        Raises:
            ValueError: There is no such chunk.
        """
        return self._ready().chunks.pairs(source, number)

    def chunks(self, source: int) -> list[list[Pair]]:
        """Give all chunks of a source, in order.

        Args:
            source: Number of the source.

        Returns:
            The chunks; joined they are the source in its stored order.

        Raises:
            ValueError: There is no such source.
        """
        first = self.chunk(source, 0)
        return [first, *(self.chunk(source, number) for number in range(1, self.chunks_per_source[source]))]

    def select(self, source: int, number: int) -> None:
        """Train on one chunk from the next epoch on.

        Args:
            source: Number of the source.
            number: Of the chunk.

        Raises:
            ValueError: There is no such chunk.
        """
        self.select_chunks([(source, number)])

    def select_chunks(self, chunks: Sequence[tuple[int, int]]) -> None:
        """Train on several chunks mixed from the next epoch on.

        Args:
            chunks: Source and chunk numbers; at least one.

        Raises:
            ValueError: There is no such chunk, or none is given.
        """
        if not chunks:
            raise ValueError("chunks: must be at least one, but the list is empty; select_all takes all sources")
        for source, number in chunks:
            self._ready().chunks.places(source, number)  # refuses what is not there
        self.selection = Selection(tuple((source, number) for source, number in chunks))

    def select_all(self) -> None:
        """Train on all sources mixed, one pass an epoch."""
        self.selection = Selection()

    def manifest(self) -> dict[str, Any]:
        """Describe what was read and how it was cut, with every permutation and the slice's ids, ready for JSON."""
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
        """Write the manifest, whole or not at all.

        Args:
            path: The file.

        Returns:
            The file.
        """
        write_text(path, json.dumps(self.manifest()) + "\n")
        return Path(path)

    def train_dataloader(self) -> BatchLoader:
        """Batches of what is selected at the moment when the first of them is asked for."""
        loaded = self._ready()
        rank, world_size, on_gpu = self._place()
        sampler = SelectionSampler(self._passes, self.batch_size, rank, world_size)
        return BatchLoader(
            PairBatches(loaded.chunks.sources, loaded.negatives), sampler, self.num_workers, pin_memory=on_gpu
        )

    def val_dataloader(self) -> BatchLoader:
        """The queries that children are measured on, each once, in order, on any number of devices."""
        return self._queries(self.dev_tasks)

    def test_dataloader(self) -> BatchLoader:
        """The held-out queries, each once, in order, on any number of devices.

        Raises:
            ValueError: The signal is `pseudo`.
        """
        if self.held_out is None:
            raise ValueError(
                "signal: must be fewshot or loto to read held-out queries, but is pseudo, which opens no judgements;"
                " run test with signal=fewshot and the same seed"
            )
        return self._queries([self.held_out])

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to know: which pool it is, and what is selected."""
        chunks = [list(each) for each in self.selection.chunks]
        return {"pool": self._digest(), "chunks": chunks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Select what was selected; refuse a checkpoint of another pool.

        Args:
            state_dict: What `state_dict` returned.

        Raises:
            ValueError: The chunks are not the same: other files, package versions or settings.
        """
        if state_dict["pool"] != self._digest():
            raise ValueError(
                "sources: must be those of the checkpoint, but their content, order, seed, chunk_size or target differ;"
                " set them back, or start without --ckpt_path"
            )
        self.selection = Selection(tuple((int(source), int(number)) for source, number in state_dict["chunks"]))

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
            raise RuntimeError("setup left nothing behind")
        return self._loaded

    def _passes(self, epoch: int) -> list[np.ndarray]:
        # the order of training follows seed_everything, as users expect; chunks and slices do not
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
