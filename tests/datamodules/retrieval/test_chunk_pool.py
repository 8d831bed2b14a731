"""ChunkPool: chunks are exact and reproducible, an epoch is what is selected, wrong settings are one line."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor

from saccade.datamodules.retrieval.batches import SelectedChunks
from saccade.datamodules.retrieval.chunk_pool import ChunkPool
from saccade.datamodules.retrieval.files import Pair, RetrievalTask
from saccade.datamodules.retrieval.sources import Chunks, Source
from tests.support.retrieval_files import write_beir, write_pairs
from tests.support.shared_data import shared_file


def made(name: str, queries: int, documents: int = 40) -> RetrievalTask:
    """A collection in which query i asks for documents i and i + 1."""
    long = " ".join(f"word{i}" for i in range(12))
    return RetrievalTask(
        name,
        {f"d{i}": f"{name} document number {i}. {name} {i} goes on with {long} here." for i in range(documents)},
        {f"q{i}": f"{name} asks {i}" for i in range(queries)},
        {f"q{i}": {f"d{i}": 2, f"d{i + 1}": 1, "d0": 0} for i in range(1, queries)},
    )


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Two BEIR folders of 20 and 40 pairs, a file of 25 pairs, and a target."""
    folders = {name: str(write_beir(made(name, count), tmp_path / name)) for name, count in (("one", 11), ("two", 21))}
    pairs = [Pair(f"Find it.</s>three asks {i // 5}", f"three says {i}", int(i % 5 == 0)) for i in range(25)]
    folders["three"] = str(write_pairs(pairs, tmp_path / "three.jsonl"))
    folders["goal"] = str(write_beir(made("goal", 31), tmp_path / "goal"))
    return folders


def _pool(files: dict[str, str], **settings: Any) -> ChunkPool:
    defaults: dict[str, Any] = {
        "sources": [files["one"], files["two"], files["three"]],
        "target": files["goal"],
        "chunk_size": 8,
        "batch_size": 3,
        "passes": 2,
    }
    return ChunkPool(**{**defaults, **settings})


def _trained(pool: ChunkPool) -> list[Pair]:
    batches = list(pool.train_dataloader())
    assert all(batch["label"].dtype == torch.float32 for batch in batches)
    return [
        Pair(query, document, int(label))
        for batch in batches
        for query, document, label in zip(batch["query"], batch["document"], batch["label"], strict=True)
    ]


def test_sources_are_read_by_their_kind(files: dict[str, str]) -> None:
    pool = _pool(files)
    assert pool.names == ["one", "two", "three"]
    assert pool.chunks_per_source == [3, 5, 4]
    assert pool.pool_pairs == 85
    one = [pair for chunk in pool.chunks(0) for pair in chunk]
    assert [len(chunk) for chunk in pool.chunks(0)] == [8, 8, 4]
    # grade 0 is no positive, and grades above 0 all are
    expected = {(f"one asks {i}", made("one", 11).corpus[f"d{j}"]) for i in range(1, 11) for j in (i, i + 1)}
    assert {(pair.query, pair.document) for pair in one} == expected
    three = [pair for chunk in pool.chunks(2) for pair in chunk]
    assert (three[0].query[:5], sum(pair.label for pair in three)) == ("three", 5)
    kept = _pool(files, keep_instruction=True)
    assert all(pair.query.startswith("Find it.</s>") for pair in kept.chunk(2, 0))


def test_all_labelled_text_is_handed_out_by_source(files: dict[str, str]) -> None:
    pool = _pool(files)
    labelled = pool.labelled()
    assert list(labelled) == pool.names
    for number, (pairs, documents) in enumerate(labelled.values()):
        chunked = [pair for chunk in pool.chunks(number) for pair in chunk]
        assert sorted((pair.query, pair.document) for pair in pairs) == sorted((p.query, p.document) for p in chunked)
        assert {pair.document for pair in pairs} <= set(documents)
        assert len(set(documents)) == len(documents)


def test_permutations_follow_seed_and_name_and_are_stored(files: dict[str, str], tmp_path: Path) -> None:
    pool = _pool(files)
    manifest = json.loads(pool.write_manifest(tmp_path / "manifest.json").read_text())
    assert manifest == pool.manifest() == _pool(files).manifest()
    assert [source["permutation"] for source in manifest["sources"]] != [
        source["permutation"] for source in _pool(files, seed=1).manifest()["sources"]
    ]
    alone = _pool(files, sources=[files["two"]]).manifest()["sources"][0]
    assert alone == manifest["sources"][1]
    assert sorted(alone["permutation"]) == list(range(40))
    target = manifest["target"]
    assert not set(target["dev"][0]["query_ids"]) & set(target["held_out"])
    assert len(target["dev"][0]["query_ids"]) + len(target["held_out"]) == 30
    assert target["dev"] != _pool(files, seed=1).manifest()["target"]["dev"]
    twins = Chunks([Source(name, name, "pairs", [Pair("q", "d", 1)] * 30) for name in ("left", "right")], 8)
    assert twins.permutations[0].tolist() != twins.permutations[1].tolist()


def test_an_epoch_is_what_is_selected(files: dict[str, str]) -> None:
    pool = _pool(files)
    everything = Counter(pair for k in range(3) for chunk in pool.chunks(k) for pair in chunk)
    assert Counter(_trained(pool)) == everything
    pool.select(1, 4)
    assert Counter(_trained(pool)) == Counter(pool.chunk(1, 4) * 2)
    pool.select_chunks([(0, 2), (2, 0)])
    assert Counter(_trained(pool)) == Counter((pool.chunk(0, 2) + pool.chunk(2, 0)) * 2)
    pool.select_all()
    assert Counter(_trained(pool)) == everything


def test_order_depends_on_the_selection_not_on_what_came_before(files: dict[str, str]) -> None:
    first, second = _pool(files), _pool(files)
    first.select(1, 0)
    order = _trained(first)
    assert order[:8] != order[8:], "both passes have the same order"
    second.select(0, 0)
    loader = second.train_dataloader()
    loader.sampler.set_epoch(7)
    second.select(1, 0)  # after the loader was made, before the first batch
    assert [query for batch in loader for query in batch["query"]] == [pair.query for pair in order]


def test_order_follows_seed_everything_and_chunks_do_not(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = _pool(files)
    pool.select(1, 0)
    before, chunk = _trained(pool), pool.chunk(1, 0)
    monkeypatch.setenv("PL_GLOBAL_SEED", "77")
    assert _trained(pool) != before
    assert _pool(files).chunk(1, 0) == chunk


def test_queries_come_once_and_in_order(files: dict[str, str]) -> None:
    pool = _pool(files, eval_batch_size=4)
    for loader, task in ((pool.val_dataloader(), pool.dev_tasks[0]), (pool.test_dataloader(), pool.held_out)):
        assert task is not None
        batches = list(loader)
        assert max(len(batch["query"]) for batch in batches) <= 4
        rows = [row for batch in batches for row in zip(batch["query_id"], batch["query"], strict=True)]
        assert rows == list(task.queries.items())
        assert {name for batch in batches for name in batch["task"]} == {"goal"}


def test_pseudo_runs_whole_without_judgements(files: dict[str, str]) -> None:
    (Path(files["goal"]) / "qrels" / "test.tsv").unlink()
    pool = _pool(files, signal="pseudo", pseudo_queries=9)
    assert len(_trained(pool)) == 85
    assert sum(len(batch["query"]) for batch in pool.val_dataloader()) == 9
    assert pool.manifest()["target"]["held_out"] is None
    with pytest.raises(ValueError, match="signal must be fewshot, both or loto to test on held-out queries"):
        pool.test_dataloader()


def test_loto_gives_queries_of_all_other_targets(files: dict[str, str], tmp_path: Path) -> None:
    others = [str(write_beir(made(name, 11), tmp_path / name)) for name in ("left", "right")]
    pool = _pool(files, signal="loto", other_targets=others)
    tasks = [name for batch in pool.val_dataloader() for name in batch["task"]]
    assert Counter(tasks) == {"left": 2, "right": 2}
    with pytest.raises(ValueError, match="sources must not have queries of the target goal, got 10 in one"):
        _pool(files, signal="loto", other_targets=[files["one"]]).setup()


def test_negatives_are_drawn_for_sources_without_any(files: dict[str, str]) -> None:
    pool = _pool(files, negatives=3)
    pairs = [pair for chunk in pool.chunks(0) for pair in chunk]
    positives = {(pair.query, pair.document) for pair in pairs if pair.label}
    negatives = [(pair.query, pair.document) for pair in pairs if not pair.label]
    assert (len(positives), len(negatives)) == (20, 60)
    assert not positives & set(negatives)
    assert {document for _, document in negatives} <= set(made("one", 11).corpus.values())
    # a source that has negatives keeps to them
    assert len(pool.manifest()["sources"][2]["permutation"]) == 25
    assert pool.manifest() == _pool(files, negatives=3).manifest()


def test_shared_queries_are_refused_or_dropped(files: dict[str, str], tmp_path: Path) -> None:
    pairs = [Pair(f"own {i}", "d", 1) for i in range(10)] + [Pair(f"  GOAL asks, {i}?", "d", 1) for i in range(1, 6)]
    source = str(write_pairs(pairs, tmp_path / "leak.jsonl"))
    with pytest.raises(
        ValueError, match=r"sources must not have queries of the target goal, got 5 in leak \('  GOAL"
    ) as caught:
        _pool(files, sources=[source]).setup()
    assert "and 2 more" in str(caught.value)
    assert "\n" not in str(caught.value)
    pool = _pool(files, sources=[source], shared_queries="drop")
    assert {pair.query for chunk in pool.chunks(0) for pair in chunk} == {f"own {i}" for i in range(10)}
    assert pool.manifest()["sources"][0]["dropped"] == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"passes": 0}, "passes must be at least 1"),
        ({"negatives": -1}, "negatives must be at least 0"),
        ({"dev_fraction": 1.0}, "dev_fraction must be above 0 and below 1"),
        ({"signal": "none"}, "signal must be fewshot, pseudo, both or loto, got 'none'"),
        ({"shared_queries": "keep"}, "shared_queries must be refuse or drop"),
        ({"sources": []}, "sources must name at least one, got an empty list"),
        ({"sources": ["./not_there"]}, "sources must be BEIR folders or files of JSON lines, got ./not_there"),
        ({"sources": ["not_there"]}, "package 'not_there' must be installed"),
        ({"sources": ["{one}", "{one}/"]}, "sources must have different names, got 'one' twice"),
        ({"sources": ["{goal}"]}, "as both: remove it from one, or set source_split"),
        ({"sources": ["networkx"], "target": "networkx", "source_split": "train"}, "or write ./networkx for"),
        ({"target": "./not_there"}, "cannot read not_there/corpus.jsonl"),
        ({"source_split": "train"}, "must hold the judgements of split 'train'"),
        ({"other_targets": ["{one}"]}, "other_targets must be given with signal=loto"),
    ],
)
def test_wrong_settings_end_with_one_line(files: dict[str, str], settings: dict[str, Any], message: str) -> None:
    filled = {
        name: [each.format(**files) for each in value] if isinstance(value, list) else value
        for name, value in settings.items()
    }
    with pytest.raises(ValueError) as caught:
        _pool(files, **filled).setup()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_source_smaller_than_a_chunk_is_one_chunk_and_refused_for_a_selection(files: dict[str, str]) -> None:
    pool = _pool(files, chunk_size=640)
    assert pool.chunks_per_source == [1, 1, 1]
    assert len(_trained(pool)) == 85
    with pytest.raises(ValueError, match=r"^chunk_size must be at most 20, the pairs of one, got 640: [^\n]+$"):
        pool.check_sizes()
    _pool(files, chunk_size=20).check_sizes()


def test_a_collection_is_source_and_target_with_judgements_of_its_own(files: dict[str, str]) -> None:
    folder = Path(files["goal"])
    rows = (folder / "qrels" / "test.tsv").read_text().splitlines(keepends=True)
    train = [row for row in rows if row.startswith(tuple(f"q{number}\t" for number in range(1, 11)))]
    (folder / "qrels" / "train.tsv").write_text("".join(train))
    (folder / "qrels" / "test.tsv").write_text("".join(row for row in rows if row not in train))
    pool = _pool(files, sources=[files["goal"]], source_split="train")
    queries = {pair.query for pair in _trained(pool)}
    assert queries == {f"goal asks {number}" for number in range(1, 11)}
    held_out = pool.held_out
    assert held_out is not None
    measured = {*held_out.queries.values(), *pool.dev_tasks[0].queries.values()}
    assert measured == {f"goal asks {number}" for number in range(11, 31)}
    (folder / "qrels" / "train.tsv").write_text("".join(rows))
    with pytest.raises(ValueError, match="sources must not have queries of the target goal, got 20 in goal"):
        _pool(files, sources=[files["goal"]], source_split="train").setup()


def test_predict_reads_the_held_out_queries(files: dict[str, str]) -> None:
    pool = _pool(files, eval_batch_size=7)
    assert [batch["query_id"] for batch in pool.predict_dataloader()] == [
        batch["query_id"] for batch in pool.test_dataloader()
    ]


def test_empty_sources_and_sources_of_negatives_end_with_one_line(files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"empty.jsonl must hold at least one line, got none"):
        _pool(files, sources=[str(tmp_path / "empty.jsonl")]).setup()
    path = write_pairs([Pair(f"q{i}", "d", 0) for i in range(20)], tmp_path / "negative.jsonl")
    with pytest.raises(ValueError, match=r"sources must have a positive pair, got none in .*negative.jsonl"):
        _pool(files, sources=[str(path)]).setup()


def test_chunks_that_are_not_there_are_refused(files: dict[str, str]) -> None:
    pool = _pool(files)
    for source, number, message in (
        (3, 0, "source must be from"),
        (-1, 0, "source must be from"),
        (0, 3, "chunk must be from"),
    ):
        with pytest.raises(ValueError, match=message):
            pool.select(source, number)
        with pytest.raises(ValueError, match=message):
            pool.chunk(source, number)
    with pytest.raises(ValueError, match="chunks must name at least one"):
        pool.select_chunks([])
    assert pool.selection == SelectedChunks()


class Watcher(LightningModule):
    """Remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[str]] = []
        self.validated = 0

    def on_train_epoch_start(self) -> None:
        self.seen.append([])

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.seen[-1] += batch["document"]
        return self.weight * batch["label"].sum()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.validated += len(batch["query"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Script(Callback):
    """Selects one chunk after another."""

    trials = ((0, 2), (1, 0), (2, 3), (1, 4))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.datamodule.select(*self.trials[trainer.current_epoch])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch + 1 < len(self.trials):
            trainer.datamodule.select(*self.trials[trainer.current_epoch + 1])


def test_fit_trains_on_the_selected_chunk_of_each_epoch(files: dict[str, str], tmp_path: Path) -> None:
    seed_everything(0)
    pool, module = _pool(files), Watcher()
    trainer = Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        callbacks=[Script()],
        default_root_dir=tmp_path,
    )
    trainer.fit(module, datamodule=pool)
    # chunks of 4, 8, 1 and 8 pairs: a short one ends its epoch early, and is validated all the same
    assert [len(seen) for seen in module.seen] == [8, 16, 2, 16]
    for (source, number), seen in zip(Script.trials, module.seen, strict=True):
        assert Counter(seen) == Counter([pair.document for pair in pool.chunk(source, number)] * 2)
    assert module.validated == 4 * len(pool.dev_tasks[0].queries)


def test_checkpoints_keep_the_selection_and_refuse_another_pool(files: dict[str, str]) -> None:
    pool, again = _pool(files), _pool(files)
    for select in (lambda: pool.select(2, 1), lambda: pool.select_chunks([(0, 2), (2, 0)]), pool.select_all):
        select()
        again.load_state_dict(json.loads(json.dumps(pool.state_dict())))
        assert again.selection == pool.selection
    signals = [{"signal": "pseudo"}, {"signal": "both"}]
    for settings in ({"seed": 1}, {"chunk_size": 7}, *signals, {"sources": [files["one"]]}):
        with pytest.raises(ValueError, match="sources must be those of the checkpoint"):
            _pool(files, **settings).load_state_dict(pool.state_dict())


def test_real_collections_and_the_shared_queries_of_adi_and_cisi() -> None:
    folders = {name: str(shared_file(f"retrieval/{name}")) for name in ("cran", "cisi", "med", "cacm", "npl", "adi")}
    names = ["cisi", "med", "cacm", "npl"]
    pool = ChunkPool([folders[name] for name in names], folders["cran"], chunk_size=160)
    pool.setup()
    assert pool.names == names
    assert pool.pool_pairs == sum(
        map(len, (pool.chunk(k, j) for k in range(4) for j in range(pool.chunks_per_source[k])))
    )
    for source, target in (("adi", "cisi"), ("cisi", "adi")):
        with pytest.raises(ValueError, match=f"not have queries of the target {target}, got 3. in {source}"):
            ChunkPool([folders[source]], folders[target], chunk_size=16).setup()


@pytest.mark.slow
def test_embedded_default_needs_no_file() -> None:
    pool = ChunkPool()
    assert len(pool.names) >= 8
    assert min(pool.chunks_per_source) >= 1
    held_out = pool.held_out
    assert held_out is not None
    assert not {pair.query for k in range(len(pool.names)) for pair in pool.chunk(k, 0)} & set(
        held_out.queries.values()
    )
