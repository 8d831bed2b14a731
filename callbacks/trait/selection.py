"""TraitSelection: select the training data of a ranker while it trains, one chunk in each epoch."""

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
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from saccade.callbacks.isolation import where_it_trained
from saccade.callbacks.run_folder import run_folder
from saccade.callbacks.trait.costs import costs
from saccade.callbacks.trait.evaluation import METRIC, RankingEvaluation
from saccade.callbacks.trait.events import PRESETS, Best, Event, Preset, TrainingRequest, Trial
from saccade.callbacks.trait.figures import figure
from saccade.callbacks.trait.report import markdown
from saccade.callbacks.trait.search import Steps, search_steps
from saccade.callbacks.trait.selectors import (
    AllSourcesSelector,
    BestSourceSelector,
    Candidate,
    PollingSelector,
    RandomSelector,
    ScoredState,
    SimilaritySelector,
    TraitSelector,
)
from saccade.callbacks.trait.weights import clear_state, place_weights
from saccade.common.checks import check_choice, check_count
from saccade.common.distributed import shards_parameters
from saccade.common.files import replacing, write_json, write_text
from saccade.common.journal import Journal
from saccade.datamodules.retrieval.chunk_pool import ChunkPool
from saccade.datamodules.retrieval.targets import open_held_out
from saccade.modules.retrieval.ranker import Ranker
from saccade.retrieval.measures import paired_bootstrap
from saccade.retrieval.words import WORD, spaced

Selection = Literal["trait", "random", "polling", "similarity", "best_source", "all_sources"]
SELECTIONS: tuple[Selection, ...] = ("trait", "random", "polling", "similarity", "best_source", "all_sources")


class TraitSelection(Callback):
    """Select the training data of a ranker by trying chunks: one epoch of `fit` is one trial.

    Every trial starts from its parent's weights with a fresh optimizer, trains on one chunk of a `ChunkPool`, and is
    evaluated on the target's dev queries. A Gaussian process over all trials chooses the next chunk by expected
    improvement. Children with a better score than their parent become parents, the search returns from exhausted
    parents, and the sources of the worst chunks are pruned (Trait, Findings of EMNLP 2025, of which only the abstract
    is public; the corrected rules are ours). When the budget is spent, `fit` ends and the module has the weights of the
    best trial.

    The run folder contains `trials.jsonl`, the journal with one line for each event; `weights/`, the weights of trials
    that the search may return to; and `trait.json`, `trait.md` and `trait.png`, the results with dev and held-out
    scores. `--ckpt_path last` resumes an interrupted search, with the same result as without the interruption. Set
    `max_epochs: -1`; the search ends the fit.

    On several devices, with `ddp` or `deepspeed_stage_2`, rank 0 selects and writes, and every rank trains on its share
    of a chunk and evaluates its share of the queries. If a loss is the mean over pairs, the search equals that of one
    device with the same global batch size, up to rounding. A loss that takes negatives from the batch uses those of its
    own rank only, so its scores differ.

    Args:
        budget: Largest number of trials, without the warm-up.
        selection: `trait`, or a rule to compare it with: `random` and `polling` choose sources independently of
            scores, `similarity` chooses the chunks whose words are most similar to the target's documents,
            `best_source` always the best source of the warm-up, `all_sources` a random mixture.
        preset: `corrected` or `released` (the predecessor's rules, surrogate and acquisition).
        warmup: Try one chunk of each source from the base model before the first trial. None does so if the selection
            needs it, which only `trait` and `best_source` do.
        margin: Amount by which a child must exceed its parent, in nDCG.
        candidates: Number of documents of the first stage (BM25) that are reranked for each query.
        xi: Smallest improvement that counts, in nDCG.
        seed: Seed of the surrogate, of `random` and `all_sources`, and of the training; every trial derives its own.

    Raises:
        ValueError: A setting is outside its range, or the module, the data or the trainer cannot be used.
    """

    whole_epochs = True
    """A trial that was interrupted is repeated from its start; see `ExactResume`."""

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
        check_count("budget", budget, advice="give a number of trials")
        check_choice("selection", selection, SELECTIONS)
        check_choice("preset", preset, PRESETS)
        check_count("candidates", candidates, advice="100 is usual")
        self.budget, self.selection, self.preset = budget, selection, preset
        self.margin, self.candidates, self.xi, self.seed = margin, candidates, xi, seed
        wanted = selection in ("trait", "best_source") if warmup is None else warmup
        rules = asdict(PRESETS[preset]) | {"warmup": wanted, "margin": margin}
        if not wanted:
            rules["reuse_warmup"] = False
        if selection in ("all_sources", "best_source"):  # these train on one chunk after the other, whatever the scores
            rules |= {"accept": "always"}
        self.rules = Preset(**rules)
        self.events: list[Event] = []
        self.best: Best | None = None
        self._resumed: dict[str, Any] = {}
        self.per_query: dict[str, dict[str, float]] = {}
        """After `fit`: nDCG@10 of `bm25`, `base` and `best` by query; of the held-out queries if there are any."""
        self._pending: TrainingRequest | None = None
        self._reason = ""  # why the search ended before its budget was spent
        self._seconds = {"select": 0.0, "measure": 0.0, "train": 0.0}
        self._pairs = {"measure": 0, "train": 0}  # pairs that all ranks scored and trained on in those seconds
        self._begun = 0.0

    # the hooks that fit calls, in this order

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module, data or a trainer with which the search cannot work."""
        if stage != "fit":
            return
        if not isinstance(pl_module, Ranker):
            raise ValueError(
                f"model must be a Retriever or a Reranker for TraitSelection, got {type(pl_module).__name__}: set model"
                " to one of the two."
            )
        if not isinstance(_data(trainer), ChunkPool):
            raise ValueError(
                f"data must be a ChunkPool for TraitSelection, got {type(_data(trainer)).__name__}: set data to"
                " saccade.datamodules.ChunkPool."
            )
        if pl_module.schedule != "constant" or pl_module.warmup_fraction:
            raise ValueError(
                f"schedule must be constant and warmup_fraction 0 for TraitSelection, got {pl_module.schedule} and"
                f" {pl_module.warmup_fraction}: set both, because every trial starts with a fresh optimizer."
            )
        if getattr(pl_module, "refresh_negatives_every", None) is not None:
            raise ValueError(
                f"refresh_negatives_every must be null for TraitSelection, got {pl_module.refresh_negatives_every}: use"
                " ChunkPool's hard_negatives, because mined negatives depend on earlier trials."
            )
        if shards_parameters(trainer):
            raise ValueError(
                f"strategy must keep whole weights on every rank for TraitSelection, got"
                f" {type(trainer.strategy).__name__}: use ddp or deepspeed_stage_2."
            )
        cast(ChunkPool, _data(trainer)).check_sizes()
        trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]  # chunks differ in size

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the base model and select the first chunk, or resume from a journal."""
        if not self._restored_late(trainer):
            self._start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do the same if the strategy has loaded the checkpoint only now."""
        if self._restored_late(trainer):
            self._start(trainer, pl_module)
            # Lightning has counted the batches of another chunk; there is no public way to count again
            trainer.fit_loop._combined_loader = None
            trainer.fit_loop.setup_data()

    def _start(self, trainer: Trainer, module: LightningModule) -> None:
        pool = cast(ChunkPool, _data(trainer))
        folder = run_folder(trainer)
        self._weights = folder / "weights"
        self._evaluation = RankingEvaluation(pool.dev_tasks, self.candidates)
        journal = self._open(trainer, folder, pool)
        self.events = [Event.from_dict(entry) for entry in journal]
        self.best = next((event for event in reversed(self.events) if isinstance(event, Best)), None)
        if not self.events:
            self._save(trainer, module, 0)
        chooser = self._selector(pool) if trainer.is_global_zero else None

        def select(
            candidates: Sequence[Candidate], observations: Sequence[ScoredState], history: Sequence[int]
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
        """Reset the optimizer and seed the random numbers of the trial."""
        if self._pending is None:
            return
        clear_state(trainer.optimizers)  # a checkpoint restores the state of its optimizer
        torch.manual_seed(hash((self.seed, self._pending.node, trainer.global_rank)) % 2**31)
        self._begun = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the trial, record it, and select the next."""
        if self._pending is None:
            return
        self._seconds["train"] += time.perf_counter() - self._begun
        pool, trial = cast(ChunkPool, _data(trainer)), self._pending
        self._pairs["train"] += len(pool.chunk(cast(int, trial.source), cast(int, trial.chunk))) * pool.passes
        self._save(trainer, pl_module, self._pending.node)
        score = self._evaluate(trainer, pl_module)
        pl_module.log("trait/score", score, prog_bar=True)
        self._advance(trainer, pl_module, score)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the best trial's weights into the module and write the results."""
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
            with replacing(target.with_suffix(".png")) as partial:
                figure(self.events, names, found).savefig(partial, dpi=120)
            held = found["held_out"]
            also = "" if held is None else f"; held-out {held['base']:.4f} to {held['best']:.4f}"
            rank_zero_info(
                f"TraitSelection: dev nDCG@10 {found['dev']['base']:.4f} to {found['dev']['best']:.4f}{also};"
                f" {found['trials']} trials, {found['costs']}; {target}"
            )
            if found["ended"]:
                rank_zero_warn(
                    f"saccade: TraitSelection ended after {found['trials']} of {self.budget} trials, because"
                    f" {found['ended']}."
                )

    def _why(self, trainer: Trainer) -> str:
        """Why the fit ends before the budget is spent; empty if it is spent."""
        if self._pending is None:
            return self._reason
        limits = {
            "max_epochs": trainer.current_epoch >= (trainer.max_epochs or -1) > -1,
            "max_steps": trainer.global_step >= trainer.max_steps > -1,
        }
        reached = [f"{name} is {getattr(trainer, name)}: raise it, and" for name, hit in limits.items() if hit]
        return f"{reached[0] if reached else 'the fit was stopped:'} go on with --ckpt_path last"

    # checkpoints and the journal

    def state_dict(self) -> dict[str, Any]:
        """Return the folder of journal and weights, and the length of the journal."""
        return {"folder": str(self._weights.parent.resolve()), "events": len(self.events)} if self.events else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Note the folder from which to resume."""
        self._resumed = dict(state_dict)

    def _header(self, pool: ChunkPool) -> dict[str, Any]:
        """The settings that must be equal to resume from a journal; the budget may be larger."""
        settings = {"selection": self.selection, "rules": asdict(self.rules), "candidates": self.candidates}
        return settings | {"xi": self.xi, "seed": self.seed, "pool": pool.state_dict()["pool"]}

    @staticmethod
    def _restored_late(trainer: Trainer) -> bool:
        """Whether the strategy loads a checkpoint only after `on_fit_start`, as DeepSpeed's does."""
        return trainer.ckpt_path is not None and trainer.strategy.restore_checkpoint_after_setup

    def _open(self, trainer: Trainer, folder: Path, pool: ChunkPool) -> list[dict[str, Any]]:
        """Return the journal's entries. Only rank 0 opens the file; all ranks raise its error."""
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
        """Copy the journal and the weights of the run to resume into this run's folder."""
        if not self._resumed:
            return
        origin = Path(self._resumed["folder"])
        if origin == folder.resolve():
            return
        if not (origin / "trials.jsonl").exists():
            raise ValueError(
                f"--ckpt_path needs the journal and the weights of its search, which are no longer in {origin}: move"
                " that run back, or start without --ckpt_path."
            )
        Journal(origin / "trials.jsonl", header)  # an error if it is another search, before anything is copied
        shutil.copytree(origin / "weights", folder / "weights", dirs_exist_ok=True)
        shutil.copyfile(origin / "trials.jsonl", folder / "trials.jsonl")

    def _advance(self, trainer: Trainer, module: LightningModule, answer: float | None) -> None:
        """Run the search until it requests a trial, or ends."""
        self._pending = None
        while True:
            try:
                step = self._steps.send(answer)
            except StopIteration as end:
                trainer.should_stop = True
                self._reason = end.value
                return
            answer = None
            if isinstance(step, TrainingRequest):
                if step.source is None or step.chunk is None or step.parent is None:
                    self._load(trainer, module, 0)
                    answer = self._evaluate(trainer, module)
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

    def _evaluate(self, trainer: Trainer, module: LightningModule) -> float:
        begun = time.perf_counter()
        values = self._evaluation.per_query(cast(Ranker, module), trainer.global_rank, trainer.world_size)
        score = trainer.strategy.broadcast(self._evaluation.score(values))
        self._seconds["measure"] += time.perf_counter() - begun
        self._pairs["measure"] += self._evaluation.pairs
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
            with replacing(self._file(node)) as partial:
                torch.save(module.state_dict(), partial)
        trainer.strategy.barrier()

    def _load(self, trainer: Trainer, module: LightningModule, node: int) -> None:
        state: dict[str, Tensor] = torch.load(self._file(node), map_location="cpu", weights_only=True)
        place_weights(module, state, trainer.optimizers)

    def _found(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        """Collect dev and held-out scores of BM25, base and best, the chosen chunks, shares and costs."""
        pool, best = cast(ChunkPool, _data(trainer)), cast(Best, self.best)
        trials = {event.node: event for event in self.events if isinstance(event, Trial)}
        path, node = [], best.node
        while node:
            path.append({"source": pool.names[trials[node].source], "chunk": trials[node].chunk})
            node = trials[node].parent
        spent = costs(self.events, lambda source, chunk: len(pool.chunk(source, chunk)), pool.pool_pairs)
        held_out = pool.held_out
        if held_out is None:  # the search is over: a run with pseudo-queries reads judgements only now
            held_out = _held_out(pool)
        total = sum(self._seconds.values()) or 1.0
        return {
            "metric": METRIC,
            "selection": self.selection,
            "preset": self.preset,
            "signal": pool.signal,
            "target": pool.manifest()["target"]["name"],
            "dev": self._compared(trainer, module, self._evaluation),
            "held_out": None
            if held_out is None
            else self._compared(trainer, module, RankingEvaluation([held_out], self.candidates)),
            "chosen": path[::-1],
            "trials": len(trials),
            "ended": self._why(trainer),
            "accepted": sum(trial.accepted for trial in trials.values()),
            "evaluated_pairs": spent.evaluated,
            "pool_pairs": spent.pool,
            "evaluated_share": spent.share,
            "costs": str(spent),
            "pairs": dict(self._pairs),
            "seconds": dict(self._seconds),
            "select_share": self._seconds["select"] / total,
        }

    def _compared(self, trainer: Trainer, module: LightningModule, evaluation: RankingEvaluation) -> dict[str, Any]:
        """Evaluate BM25, base and best on the same queries, with the interval of best minus base."""
        found: dict[str, dict[str, float]] = {"bm25": evaluation.baseline()}
        for name, node in (("base", 0), ("best", cast(Best, self.best).weights)):
            self._load(trainer, module, node)
            found[name] = evaluation.per_query(cast(Ranker, module), trainer.global_rank, trainer.world_size)
        self.per_query = found
        gain = paired_bootstrap(found["best"], found["base"], seed=self.seed)
        scores = {name: evaluation.score(values) for name, values in found.items()}
        return {**scores, "queries": len(found["best"]), "best_minus_base": [gain.difference, gain.low, gain.high]}


def similarities(pool: ChunkPool) -> list[list[float]]:
    """Compute the similarity of each chunk to the target's documents: cosines of mean TF-IDF vectors.

    Args:
        pool: The pool, after its set-up.

    Returns:
        The similarity of each chunk, by source and chunk.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # the import takes a second and is needed only here

    texts, target = pool.collections()
    vectorizer = TfidfVectorizer(
        sublinear_tf=True, stop_words="english", token_pattern=WORD.pattern,
        preprocessor=lambda text: spaced(text).lower(),
    )  # fmt: skip
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
    except (OSError, ValueError):  # a target without judgements has no held-out scores
        return None
