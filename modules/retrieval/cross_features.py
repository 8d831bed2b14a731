"""What a query and a document have in common, as a few numbers that mean the same in every collection (ours)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.modules.retrieval.hashed_encoder import HashedEncoder

NAMES = ("bm25", "cosine", "words", "parts", "pairs", "length", "rarest", "bm25_share")
"""BM25 over the root of the query's length; cosine of latent semantic vectors; share of the query's idf that is in the
document, by words and with their character n-grams; share of its word pairs; logarithm of its length over the mean;
idf of the rarest common word; BM25 over the query's idf."""

_K1, _B = 1.5, 0.75
_REMEMBERED = 1_000_000  # pairs whose features are kept: a search measures the same candidates again and again


class CrossFeatures:
    """The features within one collection, whose unlabelled texts give frequencies and directions.

    Args:
        texts: Documents of the collection, at least two.
        rows: Rows of the hashed encoder.
        width: Features of the latent semantic vectors.
    """

    def __init__(self, texts: Sequence[str], rows: int = 65536, width: int = 128) -> None:
        self.encoder = HashedEncoder(rows, width)
        self.encoder.fit(texts)
        self.idf: list[float] = self.encoder.idf.tolist()
        self.mean_length = max(1.0, sum(len(self.encoder.words(text)) for text in texts) / len(texts))
        self._vectors: dict[str, Tensor] = {}
        self._bags: dict[str, _Bag] = {}
        self._known: dict[tuple[str, str], Tensor] = {}

    def __call__(self, query: str, documents: Sequence[str]) -> Tensor:
        """The features of a query with each document.

        Args:
            query: The query.
            documents: N documents.

        Returns:
            Features [N, 8], in the order of `NAMES`.
        """
        new = [document for document in dict.fromkeys(documents) if (query, document) not in self._known]
        if new:
            if len(self._known) > _REMEMBERED:
                self._known.clear()
            self._known.update(zip([(query, document) for document in new], self._made(query, new), strict=True))
        known = [self._known[query, document] for document in documents]
        return torch.stack(known) if known else torch.zeros(0, len(NAMES))

    def _made(self, query: str, documents: Sequence[str]) -> Tensor:
        asked, idf = self._bag(query), self.idf
        total = sum(idf[row] for row in asked.counts) + 1e-6
        parts = sum(idf[row] for row in asked.rows) + 1e-6
        found = []
        for document in documents:
            told = self._bag(document)
            common = [row for row in asked.counts if row in told.counts]
            slope = _K1 * (1 - _B + _B * told.length / self.mean_length)
            bm25 = sum(idf[row] * told.counts[row] * (_K1 + 1) / (told.counts[row] + slope) for row in common)
            found.append(
                (
                    bm25 / math.sqrt(len(asked.counts) + 1),
                    0.0,
                    sum(idf[row] for row in common) / total,
                    sum(idf[row] for row in asked.rows & told.rows) / parts,
                    len(asked.pairs & told.pairs) / (len(asked.pairs) + 1),
                    math.log((1 + told.length) / (1 + self.mean_length)),
                    max((idf[row] for row in common), default=0.0),
                    bm25 / total,
                )
            )
        features = torch.tensor(found, dtype=torch.float32).reshape(len(documents), len(NAMES))
        features[:, 1] = self._encoded(documents) @ self._encoded([query])[0]
        return features

    def _encoded(self, texts: Sequence[str]) -> Tensor:
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new:
            with torch.no_grad():
                self._vectors.update(zip(new, self.encoder(new), strict=True))
        return torch.stack([self._vectors[text] for text in texts]) if texts else torch.zeros(0, self.encoder.width)

    def _bag(self, text: str) -> _Bag:
        bag = self._bags.get(text)
        if bag is None:
            bag = self._bags[text] = _Bag(self.encoder, text)
        return bag


class _Bag:
    """Counts of a text's words, its rows of every kind, its word pairs and its length in words."""

    def __init__(self, encoder: HashedEncoder, text: str) -> None:
        words = [encoder.row(word) for word in encoder.words(text)]
        self.counts: dict[int, int] = {}
        for word in words:
            self.counts[word] = self.counts.get(word, 0) + 1
        self.rows = frozenset(encoder.features(text)[0])
        self.pairs = frozenset(pairwise(words))
        self.length = len(words)


class FeatureScorer(nn.Module):
    """A score from cross features: a weighted sum and a small network beside it, which starts at 0.

    Untrained, the score is BM25. A few hundred weights learn in seconds what of a source holds in the target: which
    collections write long documents, how much a rare word says, whether meaning beats words.

    Args:
        hidden: Units of the network.
        seed: Of its weights.

    Raises:
        ValueError: `hidden` is below 1.
    """

    def __init__(self, hidden: int = 16, seed: int = 0) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"hidden: must be at least 1, but is {hidden}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.linear = nn.Linear(len(NAMES), 1)
            last = nn.Linear(hidden, 1)
            self.network = nn.Sequential(nn.Linear(len(NAMES), hidden), nn.Tanh(), last)
        for weight in (*self.linear.parameters(), *last.parameters()):
            nn.init.zeros_(weight)
        with torch.no_grad():
            self.linear.weight[0, 0] = 1.0

    def forward(self, features: Tensor) -> Tensor:
        """Score.

        Args:
            features: Cross features [N, 8].

        Returns:
            Scores [N].
        """
        # in the finer precision of both: DeepSpeed makes the weights bfloat16, in which most candidates would tie
        finer = torch.promote_types(features.dtype, self.linear.weight.dtype)
        first, last = cast(nn.Linear, self.network[0]), cast(nn.Linear, self.network[2])
        features = features.to(finer)
        scores: Tensor = _linear(self.linear, features) + _linear(last, _linear(first, features).tanh())
        return scores.squeeze(-1)


def _linear(layer: nn.Linear, values: Tensor) -> Tensor:
    return F.linear(values, layer.weight.to(values), layer.bias.to(values))
