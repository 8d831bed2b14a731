"""HeadKV (arXiv 2410.19258, ICLR 2025) and SparseMM (arXiv 2506.05344): heads share by scores measured beforehand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saccade.common.checks import check_count, check_number
from saccade.inference.compression.allocation import water_fill
from saccade.inference.compression.compressor import CacheCompressor, Plan, static_plan
from saccade.inference.compression.observation import Observation
from saccade.inference.compression.selection import PoolKind, check_pool, window_and_best
from saccade.inference.huggingface.models import text_config


@dataclass
class HeadKV(CacheCompressor):
    """Gives heads that look up answers more tokens, and keeps what SnapKV would keep.

    Every head gets ``1 - 1 / beta`` of the mean, and the rest is divided by the scores. SparseMM is the same rule with
    scores of visual heads, and a tenth of the mean for every head: ``beta=10 / 9`` and ``pool=5``.

    Args:
        scores: The scores of the heads of each layer, or the path of a JSON file with them. The file has such lists, or
            an object with a number or a list of numbers for each ``"LAYER-HEAD"``, as the authors publish them. Scores
            of query heads are summed over those of a KV head. Make them with :func:`needle_scores`.
        budget: Share of the prompt that heads keep on average, the window included.
        window: Last tokens of the prompt, which are kept; the most rows that are observed.
        pool: Width of the pooling, odd.
        pool_kind: ``mean`` or ``max``.
        beta: At least 1; the larger, the less counts the score.

    Raises:
        ValueError: A setting outside its range, or scores that are none; a file is read when it is needed.
    """

    scores: str | list[list[float]]
    budget: float = 0.1
    window: int = 32
    pool: int = 7
    pool_kind: PoolKind = "max"
    beta: float = 1.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("window", self.window, advice="scores of tokens are the attention of observed rows")
        check_pool(self.pool, self.pool_kind)
        check_number("beta", self.beta)
        if not self.beta >= 1:
            raise ValueError(f"beta must be at least 1, got {self.beta}: 1 divides all by the scores.")
        if not isinstance(self.scores, str):
            read_scores(self.scores)

    def check(self, model: nn.Module | None = None) -> None:
        """Checks that the scores are those of a model with these layers and heads.

        Args:
            model: The model.

        Raises:
            ValueError: They are not, or a layer does not attend to the whole prefix.
        """
        super().check(model)
        if model is None:
            read_scores(self.scores)
        else:
            config = text_config(model)
            self._by_head([config.num_key_value_heads or config.num_attention_heads] * config.num_hidden_layers)

    def plan(self, seen: Observation) -> Plan:
        """The window and the highest scores of every head, in numbers by the heads' scores."""
        weights, total = self._by_head(seen.heads), self.total(seen)
        window = min(self.window, total // seen.units)
        fixed = (total / seen.units - window) * (1 - 1 / self.beta)
        low = [window + int(fixed)] * seen.units
        caps = water_fill(total, weights, low, [seen.length] * seen.units)
        return static_plan(window_and_best(seen, caps, self.window, self.pool, self.pool_kind))

    def _by_head(self, heads: Sequence[int]) -> list[float]:
        """One score for each KV head, of sum 1."""
        scores = read_scores(self.scores)
        if len(heads) != len(scores) or any(len(row) % count for row, count in zip(scores, heads, strict=True)):
            raise ValueError(
                f"scores must have {len(heads)} layers with multiples of {sorted(set(heads))} heads, got {len(scores)} "
                f"layers with {sorted({len(row) for row in scores})}: use those of this model."
            )
        grouped = [
            sum(row[len(row) // count * head : len(row) // count * (head + 1)])
            for row, count in zip(scores, heads, strict=True)
            for head in range(count)
        ]
        return [score / (sum(grouped) or 1) for score in grouped]


def needle_scores(samples: Sequence[tuple[Observation, Tensor]]) -> list[list[float]]:
    """How much each KV head looks up what it is asked for: the scores of HeadKV, nearly.

    A sample is a prompt that hides an answer (a sentence in a long text; a word in an image for SparseMM) and asks for
    it. Its score is the attention on those tokens of the answer that are among the head's best keys, as many as the
    answer has. The authors take the attention of the answer's tokens as they are generated; here it is that of the
    observed rows of the question (ours).

    Args:
        samples: For each sample what is seen of it, and the positions of the answer.

    Returns:
        For each layer the mean score of each KV head. ``json.dumps`` of it is a file for :class:`HeadKV`.

    Raises:
        ValueError: No sample.
    """
    if not samples:
        raise ValueError("samples must be at least one, got none: observe prompts that hide an answer.")
    found = []
    for seen, answer in samples:
        layers = []
        for scores in seen.mean:
            best = scores.topk(len(answer), dim=-1)
            layers.append((best.values * torch.isin(best.indices, answer.to(scores.device))).sum(-1).cpu())
        found.append(layers)
    return [(sum(layer) / len(found)).tolist() for layer in zip(*found, strict=True)]


def read_scores(given: str | list[list[float]]) -> list[list[float]]:
    """Reads the scores of heads.

    Args:
        given: The scores, or the path of their file.

    Returns:
        For each layer the score of each head.

    Raises:
        ValueError: The file cannot be read, or these are no numbers that are finite and not negative.
    """
    content: Any = given
    if isinstance(given, str):
        try:
            content = json.loads(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"scores must be a JSON file, got {given} ({error}): make it with needle_scores."
            ) from None
    try:
        if isinstance(content, dict):
            content = _by_name(content)
        rows = [[float(score) for score in row] for row in content]
        valid = bool(rows) and all(row and all(0 <= score < float("inf") for score in row) for row in rows)
    except (TypeError, ValueError, KeyError):
        valid = False
    if not valid:
        raise ValueError(
            "scores must be a list of numbers from 0 on for each layer, or an object with one for each 'LAYER-HEAD', "
            f"got {str(given)[:60]}: make them with needle_scores."
        )
    return rows


def _by_name(content: dict[str, Any]) -> list[list[float]]:
    """Rows of an object with an entry for each ``LAYER-HEAD``; of a list of numbers the mean."""
    layers = 1 + max(int(name.split("-")[0]) for name in content)
    heads = len(content) // layers
    values = [[content[f"{layer}-{head}"] for head in range(heads)] for layer in range(layers)]
    return [[sum(one) / len(one) if isinstance(one, list) else one for one in row] for row in values]
