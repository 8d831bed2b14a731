"""Features of a pair of query and document that are comparable between collections (ours)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.common.checks import check_count
from saccade.modules.retrieval.hashed_encoder import HashedEncoder

NAMES = ("bm25", "cosine", "words", "parts", "pairs", "length", "rarest", "bm25_share")
"""Names of the features.

`bm25`: BM25 divided by the square root of the query's length. `cosine`: cosine similarity of latent semantic vectors.
`words`, `parts`: fraction of the query's idf that occurs in the document, by words, and by words and character n-grams.
`pairs`: fraction of the query's word pairs in the document. `length`: logarithm of the document's length divided by the
mean. `rarest`: idf of the rarest common word. `bm25_share`: BM25 divided by the query's total idf.
"""

_K1, _B = 1.5, 0.75  # parameters of BM25
_CACHED = 1_000_000  # pairs whose features are cached, because a selection scores the same candidates repeatedly


class CrossFeatures:
    """Computes the features within one collection; word frequencies and vectors are fitted to its documents.

    Args:
        texts: Documents of the collection, at least two.
        rows: Rows of the table of the hashed encoder.
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
        """Compute the features of a query with each document.

        Args:
            query: The query.
            documents: N documents.

        Returns:
            Features [N, 8], in the order of `NAMES`.
        """
        new = [document for document in dict.fromkeys(documents) if (query, document) not in self._known]
        if new:
            if len(self._known) > _CACHED:
                self._known.clear()
            self._known.update(zip([(query, document) for document in new], self._computed(query, new), strict=True))
        known = [self._known[query, document] for document in documents]
        return torch.stack(known) if known else torch.zeros(0, len(NAMES))

    def _computed(self, query: str, documents: Sequence[str]) -> Tensor:
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
        # in float64, so that the feature does not depend on the documents with which a pair is first seen: the rounding
        # of a matrix product does, and a continued training first sees other pairs together
        features[:, 1] = (self._encoded(documents).double() * self._encoded([query]).double()).sum(-1)
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
    """The word counts of a text, all its rows in the encoder's table, its word pairs, and its length in words."""

    def __init__(self, encoder: HashedEncoder, text: str) -> None:
        words = [encoder.row(word) for word in encoder.words(text)]
        self.counts: dict[int, int] = {}
        for word in words:
            self.counts[word] = self.counts.get(word, 0) + 1
        self.rows = frozenset(encoder.features(text)[0])
        self.pairs = frozenset(pairwise(words))
        self.length = len(words)


class FeatureScorer(nn.Module):
    """A score from cross features: the sum of a linear map and a small network, whose output starts at 0.

    Before training, the score is BM25. The model has a few hundred weights and trains in seconds.

    Args:
        hidden: Hidden units of the network.
        seed: Seed of its weights.

    Raises:
        ValueError: `hidden` is below 1.
    """

    def __init__(self, hidden: int = 16, seed: int = 0) -> None:
        super().__init__()
        check_count("hidden", hidden)
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
        """Compute scores.

        Args:
            features: Cross features [N, 8].

        Returns:
            Scores [N].
        """
        # DeepSpeed may convert the weights to bfloat16, in which most candidates would have equal scores
        precision = torch.promote_types(features.dtype, self.linear.weight.dtype)
        first, last = cast(nn.Linear, self.network[0]), cast(nn.Linear, self.network[2])
        features = features.to(precision)
        scores: Tensor = _linear(self.linear, features) + _linear(last, _linear(first, features).tanh())
        return scores.squeeze(-1)


def _linear(layer: nn.Linear, values: Tensor) -> Tensor:
    return F.linear(values, layer.weight.to(values), layer.bias.to(values))
