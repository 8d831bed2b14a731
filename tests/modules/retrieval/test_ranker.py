"""Retrievers and rerankers search the target: what validation and test measure, and what predict writes."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from saccade.callbacks.prediction_table import PredictionTable
from saccade.modules.retrieval.reranker import Reranker
from saccade.modules.retrieval.retriever import Retriever
from saccade.retrieval.bm25 import BM25
from saccade.retrieval.measures import measure
from tests.callbacks.trait.pool import make_pool

RANKERS = {"retriever": lambda: Retriever(rows=512, width=8), "reranker": lambda: Reranker(width=4)}


def trainer_in(folder, *callbacks, **settings):
    return Trainer(
        logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        enable_checkpointing=False, default_root_dir=folder, callbacks=list(callbacks), **settings,
    )  # fmt: skip


def measured(module, task, part):
    """The measures as somebody would compute them by hand."""
    run = module.searcher(task.corpus, task.name)(task.queries, 100)
    found = measure(run, task.qrels, ["ndcg_cut_10", "recall_100", "recip_rank"]).mean
    names = {"ndcg_cut_10": "ndcg_10", "recall_100": "recall_100", "recip_rank": "mrr"}
    return {f"{part}_{names[name]}": pytest.approx(value, abs=1e-6) for name, value in found.items()}


@pytest.mark.parametrize("kind", RANKERS)
def test_validation_and_test_measure_the_whole_search(tmp_path, kind):
    module, pool = RANKERS[kind](), make_pool(tmp_path, eval_batch_size=5)
    trainer = trainer_in(tmp_path / "run", max_epochs=1, num_sanity_val_steps=1)
    trainer.fit(module, datamodule=pool)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val_")}
    assert logged == measured(module, pool.dev_tasks[0], "val")
    (logged,) = trainer.test(module, datamodule=pool, verbose=False)
    assert logged == measured(module, pool.held_out, "test")
    assert 0 < logged["test_ndcg_10"] < 1
    assert module._searches == {}, "the vectors of old weights are not kept"


def test_made_and_judged_queries_of_one_target_are_searched_in_their_own_documents(tmp_path):
    module, pool = RANKERS["retriever"](), make_pool(tmp_path, signal="both", pseudo_queries=7, eval_batch_size=4)
    (logged,) = trainer_in(tmp_path / "run").validate(module, datamodule=pool, verbose=False)
    made, judged = pool.dev_tasks
    assert made.name == judged.name
    parts = [(measured(module, task, "val")["val_ndcg_10"].expected, len(task.queries)) for task in (made, judged)]
    wanted = sum(value * count for value, count in parts) / sum(count for _, count in parts)
    assert logged["val_ndcg_10"] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("kind", RANKERS)
def test_predict_writes_the_best_documents_of_each_query(tmp_path, kind):
    module, pool = RANKERS[kind](), make_pool(tmp_path, eval_batch_size=4)
    trainer_in(tmp_path / "run", PredictionTable()).predict(module, datamodule=pool, return_predictions=False)
    with (tmp_path / "run" / "predictions.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    task = pool.held_out
    assert [row["id"] for row in rows] == list(task.queries)
    run = module.searcher(task.corpus, task.name)(task.queries, 10)
    for row in rows:
        assert json.loads(row["documents"]) == list(run[row["id"]])
        assert json.loads(row["scores"]) == pytest.approx(list(run[row["id"]].values()))
        assert json.loads(row["scores"]) == sorted(json.loads(row["scores"]), reverse=True)


def test_a_retriever_searches_every_document_and_a_reranker_those_of_bm25(tmp_path):
    documents = {"a": "red apple", "b": "green apple and pear", "c": "blue river", "d": ""}
    module = Retriever(rows=512, width=8)
    found = module.searcher(documents)({"q": "apple"}, 10)["q"]
    vectors = module.encode(["apple", *documents.values()])
    wanted = dict(zip(documents, (vectors[1:] @ vectors[0]).tolist(), strict=True))
    assert found == pytest.approx(wanted, abs=1e-6)
    assert list(found) == sorted(found, key=lambda name: (found[name], name), reverse=True)
    reranker = Reranker(width=2)
    reranker.prepare({"own": list(documents.values())}, "own")
    search = reranker.searcher(documents, "own")
    assert set(search({"q": "apple"}, 10)["q"]) == set(BM25(documents).search({"q": "apple"}, 10)["q"]) == {"a", "b"}
    assert len(search({"q": "apple"}, 1)["q"]) == 1
    with pytest.warns(UserWarning, match="BM25 finds no document for 1 of 1 queries, for example 'q' \\('train'\\)"):
        assert search({"q": "train"}, 10) == {"q": {}}


def test_a_search_uses_the_weights_of_its_time(tmp_path):
    """The index of an epoch is not that of the epoch before."""
    module, pool = Retriever(rows=512, width=8, learning_rate=0.1), make_pool(tmp_path)
    seen = []

    class Watched(Retriever):
        def searcher(self, documents, collection=""):
            seen.append(self.encoder.table.detach().clone())
            return super().searcher(documents, collection)

    module = Watched(rows=512, width=8, learning_rate=0.1)
    trainer_in(tmp_path / "run", max_epochs=2, num_sanity_val_steps=0).fit(module, datamodule=pool)
    assert len(seen) == 2
    assert not torch.equal(*seen)


def test_data_that_are_no_pool_are_refused(tmp_path):
    rows = DataLoader([{"query": ["q"], "query_id": ["1"], "task": ["t"]}], batch_size=None)
    with pytest.raises(ValueError, match=r"^data must be a ChunkPool to evaluate a Retriever, got NoneType: [^\n]+\.$"):
        trainer_in(tmp_path).test(Retriever(rows=512, width=8), rows)
