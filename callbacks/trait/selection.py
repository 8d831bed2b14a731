"""TraitSelection: a ranker picks its own training data, one chunk an epoch."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from saccade.callbacks.isolation import where_it_trained
from saccade.callbacks.run_folder import run_folder
from saccade.callbacks.trait.costs import costs
from saccade.callbacks.trait.evaluation import METRIC, Measurement
from saccade.callbacks.trait.events import PRESETS, Best, Event, Preset, Request, Trial
from saccade.callbacks.trait.report import figure, markdown
from saccade.callbacks.trait.search import Steps, search_steps
from saccade.callbacks.trait.selectors import (
    AllSourcesSelector,
    BestSourceSelector,
    Candidate,
    Observation,
    PollingSelector,
    RandomSelector,
    SimilaritySelector,
    TraitSelector,
)
from saccade.callbacks.trait.weights import forget, place_weights
from saccade.common.distributed import shards_parameters
from saccade.common.files import write_json, write_text
from saccade.common.journal import Journal
from saccade.datamodules.retrieval.chunk_pool import ChunkPool
from saccade.datamodules.retrieval.targets import open_held_out
from saccade.modules.retrieval.ranker import Ranker
from saccade.retrieval.measures import paired_bootstrap

Selection = Literal["trait", "random", "polling", "similarity", "best_source", "all_sources"]
SELECTIONS: tuple[Selection, ...] = ("trait", "random", "polling", "similarity", "best_source", "all_sources")


class TraitSelection(Callback):
    """Chooses what a ranker is trained on by trying it: one epoch of `fit` is one trial.

    Every trial goes on from its parent's weights with a fresh optimizer, trains on one chunk of a `ChunkPool`, and is
    measured on the target's dev queries. A Gaussian process over what has been tried chooses the next chunk by
    expected improvement; children that beat their parent become parents, exhausted parents are left, and sources whose
    chunks did worst are pruned (Trait, Findings of EMNLP 2025, of which only the abstract is public; the corrected
    rules are ours). When the budget is spent, `fit` ends and the module has the weights of the best trial.

    In the run folder: `trials.jsonl`, the journal, a line for each event; `weights/`, those of the trials that may
    still be gone on from; `trait.json`, `trait.md` and `trait.png`, what was found, with dev and held-out scores.
    `--ckpt_path last` goes on where the search stopped, with the same result as if it had not. Set `max_epochs: -1`;
    the search says when it is over.

    On several devices, with `ddp` or `deepspeed_stage_2`, rank 0 chooses and writes, all train on their shares of a
    chunk, and all measure their shares of the queries. Where a loss is the mean of those of its pairs, the search is
    that of one device with as large a global batch, up to rounding; a loss that takes negatives from the batch sees
    those of its own rank only, so that there the scores differ.

    Args:
        budget: Most trials, warm-up not counted.
        selection: `trait`, or what it is compared with: `random` and `polling` choose sources without looking at
            scores, `similarity` takes the chunks whose words are most like the target's documents, `best_source` the
            best of the warm-up again and again, `all_sources` a mixture.
        preset: `corrected` or `released` (the predecessor's rules, its surrogate and acquisition).
        warmup: Try one chunk of each source from the base model before the first trial. None takes what the selection
            needs: only `trait` and `best_source` need it.
        margin: What a child must exceed its parent by, in nDCG.
        candidates: Documents of the first stage (BM25) that are ranked for each query.
        xi: Improvement that does not count, in nDCG.
        seed: Of the surrogate, of `random` and `all_sources`, and of what is random in training, whose trials have
            seeds of their own.

    Raises:
        ValueError: A setting is impossible, or module, data or trainer do not fit.
    """

    def __init__(
        self,
        budget: int = 150,
        selection: Selection = "trait",
        preset: Literal["corrected", "released"] = "corrected",
        warmup: bool | None = None,
        margin: float = 0.0,
        candidates: int = 100,
        xi: float = 0.001,
        seed: int = 0,
    ) -> None:
        if budget < 1:
            raise ValueError(f"budget: must be at least 1 trial, but is {budget}")
        if selection not in SELECTIONS:
            raise ValueError(f"selection: must be one of {', '.join(SELECTIONS)}, but is {selection!r}")
        if preset not in PRESETS:
            raise ValueError(f"preset: must be corrected or released, but is {preset!r}")
        if candidates < 1:
            raise ValueError(f"candidates: must be at least 1, but is {candidates}; 100 is usual")
        self.budget, self.selection, self.preset = budget, selection, preset
        self.margin, self.candidates, self.xi, self.seed = margin, candidates, xi, seed
        wanted = selection in ("trait", "best_source") if warmup is None else warmup
        rules = asdict(PRESETS[preset]) | {"warmup": wanted, "margin": margin}
        if not wanted:
            rules["reuse_warmup"] = False
        if selection in ("all_sources", "best_source"):  # trained on one after the other, whatever they do
            rules |= {"accept": "always"}
        self.rules = Preset(**rules)
        self.events: list[Event] = []
        self.best: Best | None = None
        self._resumed: dict[str, Any] = {}
        self.per_query: dict[str, dict[str, float]] = {}
        """At the end of `fit`: nDCG@10 of `bm25`, `base` and `best` by query; of the held-out ones if there are any."""
        self._pending: Request | None = None
        self._seconds = {"select": 0.0, "measure": 0.0, "train": 0.0}
        self._pairs = {"measure": 0, "train": 0}  # gone over by this process and those beside it, in those seconds
        self._begun = 0.0

    # what fit calls, in this order

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what would fail or mean something else later."""
        if stage != "fit":
            return
        if not isinstance(pl_module, Ranker):
            raise ValueError(
                f"model: TraitSelection trains a Retriever or a Reranker, but the model is {type(pl_module).__name__}"
            )
        if not isinstance(_data(trainer), ChunkPool):
            raise ValueError("data: TraitSelection chooses from a ChunkPool; set data to saccade.datamodules.ChunkPool")
        if pl_module.schedule != "constant" or pl_module.warmup_fraction:
            raise ValueError(
                "schedule: every trial begins with a fresh optimizer, so TraitSelection needs schedule=constant and"
                " warmup_fraction=0"
            )
        if getattr(pl_module, "refresh_negatives_every", None) is not None:
            raise ValueError(
                "refresh_negatives_every: a trial must depend on its parent and its chunk alone, and mined negatives on"
                " all before it; leave it out with TraitSelection, and use ChunkPool's hard_negatives"
            )
        if shards_parameters(trainer):
            raise ValueError(
                "strategy: TraitSelection goes back to whole weights between trials, and this one spreads them over the"
                " ranks; use ddp or deepspeed_stage_2"
            )
        trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]  # chunks differ in size

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the base model and selects the first chunk, or goes on where a journal stops."""
        if not self._restored_late(trainer):
            self._start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Does the same where a checkpoint is read only now."""
        if self._restored_late(trainer):
            self._start(trainer, pl_module)
            # the batches of the checkpoint's chunk were counted before; there is no public way to count them again
            trainer.fit_loop._combined_loader = None
            trainer.fit_loop.setup_data()

    def _start(self, trainer: Trainer, module: LightningModule) -> None:
        pool = cast(ChunkPool, _data(trainer))
        folder = run_folder(trainer)
        self._weights = folder / "weights"
        self._measurement = Measurement(pool.dev_tasks, self.candidates)
        journal = self._open(trainer, folder, pool)
        self.events = [Event.from_dict(entry) for entry in journal]
        self.best = next((event for event in reversed(self.events) if isinstance(event, Best)), None)
        if not self.events:
            self._save(trainer, module, 0)
        chooser = self._selector(pool) if trainer.is_global_zero else None

        def select(
            candidates: Sequence[Candidate], observations: Sequence[Observation], history: Sequence[int]
        ) -> int | None:
            begun = time.perf_counter()
            chosen: int | None = trainer.strategy.broadcast(
                None if chooser is None else chooser(candidates, observations, history)
            )
            self._seconds["select"] += time.perf_counter() - begun
            return chosen

        self._steps: Steps = search_steps(
            pool.chunks_per_source, select, self.budget, self.rules, journal=list(self.events)
        )
        self._advance(trainer, module, None)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the trial a fresh optimizer and random numbers of its own."""
        if self._pending is None:
            return
        forget(trainer.optimizers)  # a checkpoint has brought back what its optimizer remembered
        torch.manual_seed(hash((self.seed, self._pending.node, trainer.global_rank)) % 2**31)
        self._begun = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the trial, records it, and selects the next."""
        if self._pending is None:
            return
        self._seconds["train"] += time.perf_counter() - self._begun
        pool, trial = cast(ChunkPool, _data(trainer)), self._pending
        self._pairs["train"] += len(pool.chunk(cast(int, trial.source), cast(int, trial.chunk))) * pool.passes
        self._save(trainer, pl_module, self._pending.node)
        score = self._measure(trainer, pl_module)
        pl_module.log("trait/score", score, prog_bar=True)
        self._advance(trainer, pl_module, score)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the best trial's weights in the module and writes what was found."""
        if self.best is None:
            return
        with where_it_trained(trainer, pl_module):
            found = self._found(trainer, pl_module)
            self._load(trainer, pl_module, self.best.weights)
        if trainer.is_global_zero:
            target = run_folder(trainer) / "trait.json"
            write_json(target, found)
            names = cast(ChunkPool, _data(trainer)).names
            write_text(target.with_suffix(".md"), markdown(self.events, names, found))
            figure(self.events, names, found).savefig(target.with_suffix(".png"), dpi=120)
            held = found["held_out"]
            told = "" if held is None else f"; held-out {held['base']:.4f} to {held['best']:.4f}"
            rank_zero_info(
                f"TraitSelection: dev nDCG@10 {found['dev']['base']:.4f} to {found['dev']['best']:.4f}{told};"
                f" {found['trials']} trials, {found['costs']}; {target}"
            )

    # what it keeps

    def state_dict(self) -> dict[str, Any]:
        """Where journal and weights lie, and how long the journal was."""
        return {"folder": str(self._weights.parent.resolve()), "events": len(self.events)} if self.events else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Notes where to go on from."""
        self._resumed = dict(state_dict)

    def _header(self, pool: ChunkPool) -> dict[str, Any]:
        """What must be the same for a journal to be gone on from; a larger budget is welcome."""
        settings = {"selection": self.selection, "rules": asdict(self.rules), "candidates": self.candidates}
        return settings | {"xi": self.xi, "seed": self.seed, "pool": pool.state_dict()["pool"]}

    @staticmethod
    def _restored_late(trainer: Trainer) -> bool:
        """Whether a checkpoint is read after `on_fit_start`, as DeepSpeed does, and undoes what was done by then."""
        return trainer.ckpt_path is not None and trainer.strategy.restore_checkpoint_after_setup

    def _open(self, trainer: Trainer, folder: Path, pool: ChunkPool) -> list[dict[str, Any]]:
        """The journal's entries. Rank 0 alone reads and mends the file; what it refuses, all refuse."""
        entries: list[dict[str, Any]] = []
        refused: str | None = None
        if trainer.is_global_zero:
            header = self._header(pool)
            try:
                pool.write_manifest(folder / "pool.json")
                self._fetch_resumed(folder, header)
                self._journal = Journal(folder / "trials.jsonl", header)
                entries = self._journal.entries
            except (OSError, ValueError) as error:
                refused = str(error)
        entries, refused = trainer.strategy.broadcast((entries, refused))
        if refused is not None:
            raise ValueError(refused)
        return list(entries)

    def _fetch_resumed(self, folder: Path, header: Mapping[str, Any]) -> None:
        """Copies the journal and the weights of the run that is gone on from into this run's folder."""
        if not self._resumed:
            return
        origin = Path(self._resumed["folder"])
        if origin == folder.resolve():
            return
        if not (origin / "trials.jsonl").exists():
            raise ValueError(
                f"--ckpt_path: the search's journal and weights are no longer in {origin}; move that run back, or start"
                " without --ckpt_path"
            )
        Journal(origin / "trials.jsonl", header)  # refuses another search before anything is copied
        shutil.copytree(origin / "weights", folder / "weights", dirs_exist_ok=True)
        shutil.copyfile(origin / "trials.jsonl", folder / "trials.jsonl")

    def _advance(self, trainer: Trainer, module: LightningModule, answer: float | None) -> None:
        """Runs the search until it asks for a trial, or ends."""
        self._pending = None
        while True:
            try:
                step = self._steps.send(answer)
            except StopIteration:
                trainer.should_stop = True
                return
            answer = None
            if isinstance(step, Request):
                if step.source is None or step.chunk is None or step.parent is None:
                    self._load(trainer, module, 0)
                    answer = self._measure(trainer, module)
                    continue
                self._pending = step
                self._load(trainer, module, step.parent)
                cast(ChunkPool, _data(trainer)).select(step.source, step.chunk)
                return
            self._record(trainer, step)

    def _record(self, trainer: Trainer, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Best):
            self.best = event
        if trainer.is_global_zero:
            entry = event.to_dict()
            self._journal.append(entry.pop("kind"), entry)
            for node in event.drop:
                self._file(node).unlink(missing_ok=True)

    def _measure(self, trainer: Trainer, module: LightningModule) -> float:
        begun = time.perf_counter()
        values = self._measurement.per_query(cast(Ranker, module), trainer.global_rank, trainer.world_size)
        score = trainer.strategy.broadcast(self._measurement.score(values))
        self._seconds["measure"] += time.perf_counter() - begun
        self._pairs["measure"] += self._measurement.pairs
        return float(score)

    def _selector(self, pool: ChunkPool) -> Any:
        released = self.preset == "released"
        if self.selection == "trait":
            return TraitSelector(
                surrogate=self.preset,
                acquisition="ei_released" if released else "ei",
                xi=self.xi,
                seed=self.seed,
            )
        if self.selection == "random":
            return RandomSelector(seed=self.seed)
        if self.selection == "similarity":
            return SimilaritySelector(similarities(pool))
        if self.selection == "all_sources":
            return AllSourcesSelector(seed=self.seed)
        return PollingSelector() if self.selection == "polling" else BestSourceSelector()

    def _file(self, node: int) -> Path:
        return self._weights / f"{node}.pt"

    def _save(self, trainer: Trainer, module: LightningModule, node: int) -> None:
        if trainer.is_global_zero:
            self._weights.mkdir(exist_ok=True)
            unfinished = self._weights / "unfinished.pt"
            torch.save(module.state_dict(), unfinished)
            unfinished.replace(self._file(node))
        trainer.strategy.barrier()

    def _load(self, trainer: Trainer, module: LightningModule, node: int) -> None:
        state: dict[str, Tensor] = torch.load(self._file(node), map_location="cpu", weights_only=True)
        place_weights(module, state, trainer.optimizers)

    def _found(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        """Dev and held-out scores of first stage, base and best, the chosen chunks, shares and costs."""
        pool, best = cast(ChunkPool, _data(trainer)), cast(Best, self.best)
        trials = {event.node: event for event in self.events if isinstance(event, Trial)}
        path, node = [], best.node
        while node:
            path.append({"source": pool.names[trials[node].source], "chunk": trials[node].chunk})
            node = trials[node].parent
        spent = costs(self.events, lambda source, chunk: len(pool.chunk(source, chunk)), pool.pool_pairs)
        held_out = pool.held_out
        if held_out is None:  # the search is over: only now may a pseudo run look at judgements
            held_out = _held_out(pool)
        total = sum(self._seconds.values()) or 1.0
        return {
            "metric": METRIC,
            "selection": self.selection,
            "preset": self.preset,
            "signal": pool.signal,
            "target": pool.manifest()["target"]["name"],
            "dev": self._compared(trainer, module, self._measurement),
            "held_out": None
            if held_out is None
            else self._compared(trainer, module, Measurement([held_out], self.candidates)),
            "chosen": path[::-1],
            "trials": len(trials),
            "accepted": sum(trial.accepted for trial in trials.values()),
            "evaluated_pairs": spent.evaluated,
            "pool_pairs": spent.pool,
            "evaluated_share": spent.share,
            "costs": str(spent),
            "pairs": dict(self._pairs),
            "seconds": dict(self._seconds),
            "select_share": self._seconds["select"] / total,
        }

    def _compared(self, trainer: Trainer, module: LightningModule, measurement: Measurement) -> dict[str, Any]:
        """First stage, base and best on the same queries, and the interval of best minus base."""
        found: dict[str, dict[str, float]] = {"bm25": measurement.baseline()}
        for name, node in (("base", 0), ("best", cast(Best, self.best).weights)):
            self._load(trainer, module, node)
            found[name] = measurement.per_query(cast(Ranker, module), trainer.global_rank, trainer.world_size)
        self.per_query = found
        gain = paired_bootstrap(found["best"], found["base"], seed=self.seed)
        scores = {name: measurement.score(values) for name, values in found.items()}
        return {**scores, "queries": len(found["best"]), "best_minus_base": [gain.difference, gain.low, gain.high]}


def similarities(pool: ChunkPool) -> list[list[float]]:
    """How like the target's documents each chunk's are: cosines of mean TF-IDF vectors, by source and chunk.

    Args:
        pool: Ready for use.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # a second that only this needs

    texts, target = pool.collections()
    vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english")
    wanted = np.asarray(vectorizer.fit_transform(texts[target]).mean(0)).ravel()
    found = []
    for source in range(len(pool.names)):
        row = []
        for chunk in pool.chunks(source):
            mean = np.asarray(vectorizer.transform([pair.document for pair in chunk]).mean(0)).ravel()
            row.append(float(mean @ wanted / (np.linalg.norm(mean) * np.linalg.norm(wanted) + 1e-12)))
        found.append(row)
    return found


def _data(trainer: Trainer) -> Any:
    return getattr(trainer, "datamodule", None)


def _held_out(pool: ChunkPool) -> Any:
    try:
        return open_held_out(pool.target, pool.dev_fraction, pool.seed, pool.target_split, pool.allow_unknown)
    except (OSError, ValueError):  # a target without judgements has nothing to report on
        return None
