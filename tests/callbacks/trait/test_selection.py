"""TraitSelection within `fit`: trials from their parent's weights, journal, resume, and what it writes at the end."""

from __future__ import annotations

import json

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader

from saccade.callbacks.export import ModelExport
from saccade.callbacks.trait import selection as trait_selection
from saccade.callbacks.trait.evaluation import RankingEvaluation
from saccade.callbacks.trait.selection import SELECTIONS, TraitSelection
from saccade.modules.retrieval.hashed_sentences import HashedSentences
from saccade.modules.retrieval.reranker import Reranker
from saccade.modules.retrieval.retriever import Retriever
from tests.callbacks.tiny import TinyModule
from tests.callbacks.trait.pool import make_pool


@pytest.fixture
def pool(tmp_path):
    return lambda **settings: make_pool(tmp_path, **settings)


def fit(
    pool,
    folder,
    selection="trait",
    budget=5,
    module=None,
    ckpt_path=None,
    epochs=-1,
    more=(),
    strategy="auto",
    precision="32-true",
    **settings,
):
    seed_everything(0, verbose=False)
    module = module or Reranker(width=4, learning_rate=0.1)
    callback = TraitSelection(budget, selection, candidates=10, **settings)
    trainer = Trainer(
        max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        limit_val_batches=0, enable_checkpointing=False, default_root_dir=folder, callbacks=[callback, *more],
        strategy=strategy, precision=precision,
    )  # fmt: skip
    trainer.fit(module, pool, ckpt_path=ckpt_path)
    return module, callback, trainer


def journal(folder):
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def same(first, second):
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.figures
def test_a_search_ends_with_the_best_weights_and_its_report(pool, tmp_path):
    seed_everything(0, verbose=False)
    base = {name: value.clone() for name, value in Reranker(width=4, learning_rate=0.1).state_dict().items()}
    module, callback, trainer = fit(pool(), tmp_path / "run")
    lines = journal(tmp_path / "run")
    trials = [line for line in lines if line["kind"] == "trial"]
    assert len(trials) == 5
    # the warm-up's three models and the trials that it did not answer are epochs; the root is none
    assert trainer.current_epoch == 3 + sum(not trial["reused"] for trial in trials)
    weights = tmp_path / "run" / "weights"
    assert same(torch.load(weights / "0.pt"), base)
    best = max(lines, key=lambda line: line.get("score", 0.0) if line["kind"] in ("best", "trial") else 0.0)
    assert callback.best.score == best["score"]
    assert same(module.state_dict(), torch.load(weights / f"{callback.best.weights}.pt"))
    found = json.loads((tmp_path / "run" / "trait.json").read_text())
    assert found["dev"]["best"] == pytest.approx(best["score"])
    assert found["dev"]["base"] == pytest.approx(lines[1]["score"])
    assert (found["dev"]["queries"], found["held_out"]["queries"]) == (12, 18)
    assert found["evaluated_pairs"] == 8 * (3 + sum(not trial["reused"] for trial in trials))
    assert found["pool_pairs"] == 72
    assert found["ended"] == ""
    once, trained = RankingEvaluation(trainer.datamodule.dev_tasks, 10).pairs, found["evaluated_pairs"] // 8
    assert 12 < once <= 12 * 10
    assert found["pairs"] == {"train": 2 * found["evaluated_pairs"], "measure": (trained + 1) * once}
    text = (tmp_path / "run" / "trait.md").read_text()
    assert "| blue |" in text
    assert "held-out (18)" in text
    assert f"{found['evaluated_pairs']} of 72 pairs evaluated" in text
    assert (tmp_path / "run" / "trait.png").stat().st_size > 10_000


def test_a_child_goes_on_from_its_parent_and_nothing_is_inherited_from_other_trials(pool, tmp_path):
    """Training the best path alone, chunk by chunk from the base, gives the best trial's weights."""
    module, callback, _ = fit(pool(), tmp_path / "run")
    chosen = json.loads((tmp_path / "run" / "trait.json").read_text())["chosen"]
    trials = {line["node"]: line for line in journal(tmp_path / "run") if line["kind"] == "trial"}
    path, node = [], callback.best.node
    while node:
        path.append(trials[node])
        node = trials[node]["parent"]
    assert [(item["source"], item["chunk"]) for item in chosen] == [
        (["red", "green", "blue"][trial["source"]], trial["chunk"]) for trial in reversed(path)
    ]
    data = pool()
    data.setup()
    again = Reranker(width=4, learning_rate=0.1)
    again.prepare(*data.collections())
    for trial in reversed(path):
        data.select(trial["source"], trial["chunk"])
        optimizer = again.configure_optimizers()
        for batch in data.train_dataloader():
            optimizer.zero_grad()
            again.loss(batch).backward()
            optimizer.step()
    for name, value in module.state_dict().items():
        assert torch.allclose(again.state_dict()[name], value, atol=1e-6)


class Stop(Callback):
    """Leaves a run in the middle, as a kill does: after some trials, before anything else is written."""

    def __init__(self, epochs):
        self.left = epochs

    def on_train_epoch_start(self, trainer, pl_module):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("killed")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a search that nothing ended."""
    folder = tmp_path_factory.mktemp("whole")
    fit(make_pool(folder), folder / "run")
    return folder / "run"


@pytest.mark.parametrize("epochs", [0, 1, 3, 5])
def test_a_killed_search_goes_on_with_the_same_journal(pool, tmp_path, whole, epochs):
    with pytest.raises(RuntimeError, match="killed"):
        fit(pool(), tmp_path / "run", more=[Stop(epochs)])
    assert len(journal(tmp_path / "run")) < len(journal(whole))
    fit(pool(), tmp_path / "run")
    assert journal(tmp_path / "run") == journal(whole)
    parts = [json.loads((folder / "trait.json").read_text()) for folder in (tmp_path / "run", whole)]
    assert parts[0]["held_out"] == parts[1]["held_out"]


def test_a_checkpoint_goes_on_in_another_folder(pool, tmp_path, whole):
    _, _, trainer = fit(pool(), tmp_path / "run", epochs=4)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    fit(pool(), tmp_path / "next", ckpt_path=tmp_path / "last.ckpt")
    assert journal(tmp_path / "next") == journal(whole)
    with pytest.raises(ValueError, match=r"belongs to another search \(different: xi\)"):
        fit(pool(), tmp_path / "other", ckpt_path=tmp_path / "last.ckpt", xi=0.5)
    assert not (tmp_path / "other" / "trials.jsonl").exists()


class RestoresLate(SingleDeviceStrategy):
    """Reads a checkpoint after `on_fit_start`, as DeepSpeed does."""

    restore_checkpoint_after_setup = True


def test_a_checkpoint_that_is_read_late_goes_on_too(pool, tmp_path):
    chunks = {"chunk_size": 10}  # the last one of a source is short
    fit(pool(**chunks), tmp_path / "whole", budget=9)
    _, _, trainer = fit(pool(**chunks), tmp_path / "run", budget=9, epochs=7)
    assert len(trainer.datamodule.chunk(*trainer.datamodule.selection.chunks[0])) == 4
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    for folder in ("next", "later"):
        if folder == "later":  # the journal is ahead of the checkpoint, and its next chunk has more batches
            _, _, trainer = fit(pool(**chunks), tmp_path / "run", budget=9, epochs=1)
            assert len(trainer.datamodule.chunk(*trainer.datamodule.selection.chunks[0])) == 10
        module, callback, _ = fit(
            pool(**chunks), tmp_path / folder, budget=9, ckpt_path=tmp_path / "last.ckpt",
            strategy=RestoresLate(torch.device("cpu")),
        )  # fmt: skip
        assert journal(tmp_path / folder) == journal(tmp_path / "whole")
        assert same(module.state_dict(), torch.load(tmp_path / folder / "weights" / f"{callback.best.weights}.pt"))


def test_a_strategy_that_spreads_the_weights_is_refused(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(trait_selection, "shards_parameters", lambda trainer: True)
    with pytest.raises(
        ValueError,
        match=r"^strategy must keep whole weights on every rank for TraitSelection, got SingleDeviceStrategy",
    ):
        fit(pool(), tmp_path / "run")


@pytest.mark.parametrize("selection", SELECTIONS)
def test_every_selection_spends_its_budget(pool, tmp_path, selection):
    fit(pool(), tmp_path / "run", selection, budget=4)
    kinds = [line["kind"] for line in journal(tmp_path / "run")]
    # the best source has three chunks, and the search ends with them
    assert kinds.count("trial") == (3 if selection == "best_source" else 4)
    assert kinds.count("warmup") == (3 if selection in ("trait", "best_source") else 0)
    ended = json.loads((tmp_path / "run" / "trait.json").read_text())["ended"]
    assert ended == ("the selection wants none of the 6 chunks that are left" if selection == "best_source" else "")


def told(recwarn):
    return [str(each.message) for each in recwarn if "TraitSelection ended" in str(each.message)]


def test_a_search_that_ends_before_its_budget_says_why(pool, tmp_path, recwarn):
    fit(pool(chunk_size=24), tmp_path / "all", "all_sources", budget=99)
    why = "all 3 chunks were tried"
    assert told(recwarn) == [f"saccade: TraitSelection ended after 3 of 99 trials, because {why}."]
    assert json.loads((tmp_path / "all" / "trait.json").read_text())["ended"] == why
    assert f"3 trials (ended before the budget: {why});" in (tmp_path / "all" / "trait.md").read_text()
    recwarn.clear()
    fit(pool(), tmp_path / "cut", "random", budget=5, epochs=2)
    why = "max_epochs is 2: raise it, and go on with --ckpt_path last"
    assert told(recwarn) == [f"saccade: TraitSelection ended after 2 of 5 trials, because {why}."]


def test_a_source_that_is_smaller_than_a_chunk_is_refused(pool, tmp_path):
    with pytest.raises(ValueError, match=r"^chunk_size must be at most 24, the pairs of red, got 25: [^\n]+$"):
        fit(pool(chunk_size=25), tmp_path / "run")


def test_pseudo_runs_need_no_judgements_until_they_are_over(pool, tmp_path):
    data = pool(signal="pseudo", pseudo_queries=10)
    judgements = tmp_path / "white" / "qrels" / "test.tsv"
    judgements.rename(tmp_path / "hidden.tsv")
    fit(data, tmp_path / "run", budget=2)
    found = json.loads((tmp_path / "run" / "trait.json").read_text())
    assert found["held_out"] is None
    (tmp_path / "hidden.tsv").rename(judgements)
    fit(pool(signal="pseudo", pseudo_queries=10), tmp_path / "next", budget=2)
    assert json.loads((tmp_path / "next" / "trait.json").read_text())["held_out"]["queries"] == 18


def test_both_measures_made_queries_beside_the_slice(pool, tmp_path):
    queries, base = {}, {}
    for signal in ("fewshot", "pseudo", "both"):
        fit(pool(signal=signal, pseudo_queries=10), tmp_path / signal, budget=2)
        found = json.loads((tmp_path / signal / "trait.json").read_text())
        queries[signal], base[signal] = found["dev"]["queries"], found["dev"]["base"]
        assert found["held_out"]["queries"] == 18
    assert queries["both"] == queries["fewshot"] + queries["pseudo"]
    assert base["both"] == pytest.approx((base["fewshot"] + base["pseudo"]) / 2)


def test_a_dual_encoder_selects_too(pool, tmp_path):
    module = Retriever(rows=512, width=8)
    fit(pool(), tmp_path / "run", budget=2, module=module)
    assert [line["kind"] for line in journal(tmp_path / "run")].count("trial") == 2


def test_the_best_retriever_is_exported(pool, tmp_path):
    _, callback, _ = fit(pool(), tmp_path / "run", module=Retriever(rows=512, width=8), more=[ModelExport()])
    exported = HashedSentences.load(str(tmp_path / "run" / "model"))
    best = torch.load(tmp_path / "run" / "weights" / f"{callback.best.weights}.pt")
    assert same(exported.state_dict(), best)
    assert callback.best.node > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0}, "budget must be at least 1, got 0"),
        ({"selection": "greedy"}, "selection must be trait, random"),
        ({"preset": "old"}, "preset must be corrected or released, got 'old'"),
        ({"candidates": 0}, "candidates must be at least 1, got 0"),
        ({"margin": -1.0}, "margin must be at least 0"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        TraitSelection(**settings)


def test_what_does_not_fit_is_refused_before_anything_runs(pool, tmp_path):
    with pytest.raises(
        ValueError, match=r"^schedule must be constant and warmup_fraction 0 for TraitSelection, got cosine and 0"
    ):
        fit(pool(), tmp_path / "run", module=Reranker(width=4, schedule="cosine"))
    with pytest.raises(
        ValueError, match=r"^model must be a Retriever or a Reranker for TraitSelection, got TinyModule"
    ):
        fit(pool(), tmp_path / "run", module=TinyModule())
    with pytest.raises(ValueError, match=r"^data must be a ChunkPool for TraitSelection, got "):
        fit(DataLoader([{}]), tmp_path / "run")
    assert not (tmp_path / "run" / "trials.jsonl").exists()


class Travelling(Reranker):
    """Notes where it is ranked with: Lightning calls `cpu` at the end of a fit, before `on_fit_end`."""

    def __init__(self):
        super().__init__(width=4, learning_rate=0.1)
        self.away, self.ranked_away = False, []

    def cpu(self):
        self.away = True
        return super().cpu()

    def to(self, *args, **kwargs):
        self.away = False
        return super().to(*args, **kwargs)

    def rerank(self, *args, **kwargs):
        self.ranked_away.append(self.away)
        return super().rerank(*args, **kwargs)


def test_the_last_measurements_are_made_where_the_model_trained(pool, tmp_path):
    module, *_ = fit(pool(), tmp_path / "run", module=Travelling())
    assert len(module.ranked_away) > 4
    assert not any(module.ranked_away)
    assert module.away  # and left as Lightning leaves it


@pytest.mark.parametrize("module", [Reranker, lambda **given: Retriever(rows=512, **given)])
def test_a_search_with_16_bit_weights(pool, tmp_path, module):
    """As DeepSpeed makes them with `bf16-mixed`."""
    module = module(width=4, learning_rate=0.1)
    fit(pool(), tmp_path / "run", module=module, precision="bf16-true")
    assert {weight.dtype for weight in module.parameters()} == {torch.bfloat16}
    found = json.loads((tmp_path / "run" / "trait.json").read_text())
    assert found["trials"] == 5
    assert found["dev"]["best"] >= found["dev"]["base"]
