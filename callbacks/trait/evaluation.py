"""Evaluation of a ranker during a selection: nDCG@10 after reranking the candidates of BM25."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from saccade.common.checks import check_count
from saccade.common.distributed import reduce_sum
from saccade.datamodules.retrieval.files import RetrievalTask
from saccade.modules.retrieval.ranker import Ranker
from saccade.retrieval.bm25 import BM25
from saccade.retrieval.measures import measure

METRIC = "ndcg_cut_10"


class RankingEvaluation:
    """Evaluates a ranker on the BM25 candidates of judged queries; each rank evaluates its share of the queries.

    Args:
        tasks: Judged collections; the score is the mean over them of the mean over their queries.
        candidates: Number of documents that are reranked for each query, at least 1.

    Raises:
        ValueError: `candidates` is below 1, or a task has no queries.
    """

    def __init__(self, tasks: Sequence[RetrievalTask], candidates: int) -> None:
        check_count("candidates", candidates, advice="100 is usual")
        self.tasks = list(tasks)
        for task in self.tasks:
            if not task.queries:
                raise ValueError(f"target {task.name} has no queries to evaluate on: raise dev_fraction.")
        self.first_stage = [BM25(task.corpus).search(task.queries, candidates) for task in self.tasks]

    @property
    def pairs(self) -> int:
        """Pairs of a query and a document that a ranker scores in one evaluation, on all ranks together."""
        return sum(len(found) for run in self.first_stage for found in run.values())

    def baseline(self) -> dict[str, float]:
        """Return nDCG@10 of BM25 for each query, by task and query id."""
        found = {}
        for task, run in zip(self.tasks, self.first_stage, strict=True):
            values = measure(run, task.qrels, [METRIC], task.queries).per_query[METRIC]
            found.update({f"{task.name}/{query}": value for query, value in values.items()})
        return found

    def per_query(self, ranker: Ranker, rank: int = 0, world_size: int = 1) -> dict[str, float]:
        """Return nDCG@10 of a ranker for each query, by task and query id; the same on every rank.

        Args:
            ranker: The ranker.
            rank: Index of this rank.
            world_size: Number of ranks. All of them must call this.
        """
        found = {}
        for task, run in zip(self.tasks, self.first_stage, strict=True):
            names = sorted(task.queries)
            mine = names[rank::world_size]
            queries = {name: task.queries[name] for name in mine}
            ranked = ranker.rerank(queries, {name: list(run[name]) for name in mine}, task.corpus, task.name)
            values = measure(ranked, task.qrels, [METRIC], mine).per_query[METRIC] if mine else {}
            shares = torch.zeros(len(names), dtype=torch.float64)
            for place, name in enumerate(names):
                shares[place] = values.get(name, 0.0)
            total = reduce_sum(shares, ranker.device).tolist()
            found.update({f"{task.name}/{name}": value for name, value in zip(names, total, strict=True)})
        return found

    def score(self, per_query: dict[str, float]) -> float:
        """Return the mean over tasks of the mean over their queries."""
        means = [statistics.fmean(per_query[f"{task.name}/{query}"] for query in task.queries) for task in self.tasks]
        return statistics.fmean(means)
