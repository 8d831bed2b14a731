"""A text encoder without pretrained weights: hashed words and character n-grams in a table of vectors (ours).

`sentence_export` copies this file and `saccade.retrieval.words` into exported folders, so it must not import the rest
of the package.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.retrieval.words import MARKS, spaced

_WORD = re.compile(rf"(?:[^\W_]|[{MARKS}])+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_PART = 0.5  # total weight of a word's character n-grams, divided by the weight of the word
_UNSEEN = 0.01  # scale of the initial vectors of rows that no fitted text uses
_CACHED = 200_000  # texts whose features are cached


class HashedEncoder(nn.Module):
    """Encodes a text as a weighted sum of rows of a table, which is fitted to unlabelled text and then trained.

    The features of a text are its words and the character n-grams of its longer words, so that inflected forms of a
    word share features; scripts without blanks between words, such as Chinese, give pairs of characters. Each feature
    is hashed to a row, with weight `(1 + ln tf) idf exp(gain)`; the gain is learned and starts at 0. The vectors of the
    rows start as random directions, whose inner products approximate TF-IDF with much noise. `fit` replaces them by the
    directions of latent semantic analysis, which on classic collections rank as well as BM25 before any training
    (fitted to the collection, with 256 features: nDCG@10 0.38 on Cranfield and 0.75 on MEDLINE). Ours.

    Args:
        rows: Rows of the table. Features that are hashed to the same row cannot be distinguished.
        width: Features of a vector.
        characters: Length of the character n-grams; 0 leaves them out.
        seed: Seed of the initial vectors.

    Raises:
        ValueError: A setting is out of range; the message names it.
    """

    idf: Tensor

    def __init__(self, rows: int = 65536, width: int = 256, characters: int = 4, seed: int = 0) -> None:
        super().__init__()
        for name, value, least in (("rows", rows, 2), ("width", width, 1), ("characters", characters, 0)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}: choose a larger number.")
        self.rows, self.width, self.characters = rows, width, characters
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(rows, width, generator=generator) / math.sqrt(width))
        self.gain = nn.Parameter(torch.zeros(rows))
        self.register_buffer("idf", torch.ones(rows))
        self._known: dict[str, tuple[list[int], list[float]]] = {}

    def fit(self, texts: Sequence[str], seed: int = 0) -> None:
        """Set the idf and the initial vectors from unlabelled texts: those that will be searched, or similar ones.

        The idf is `ln((1 + texts) / (1 + occurrences))`, at least 0.1, divided by its maximum. The vectors are the
        right singular vectors of the matrix of the texts' normalized weights; if there are fewer of them than `width`,
        the remaining features stay 0. Rows that no text uses keep small random vectors, so that they can be learned.

        Args:
            texts: At least two texts.
            seed: Seed of the randomized decomposition.

        Raises:
            ValueError: There are fewer than two texts.
        """
        # imported here because they take a second to import and only this method needs them
        from scipy.sparse import csr_matrix  # type: ignore[import-untyped]
        from sklearn.preprocessing import normalize
        from sklearn.utils.extmath import randomized_svd

        if len(texts) < 2:
            raise ValueError(f"texts must be at least two texts, got {len(texts)}: give the documents to be searched.")
        found = [self.features(text) for text in texts]
        lengths = np.array([len(rows) for rows, _ in found])
        columns = np.array([row for rows, _ in found for row in rows], dtype=np.int64)
        counts = np.bincount(columns, minlength=self.rows)
        idf = np.maximum(0.1, np.log((1 + len(texts)) / (1 + counts)))
        idf /= idf.max()
        weights = np.array([weight for _, shares in found for weight in shares]) * idf[columns]
        matrix = csr_matrix((weights, (np.repeat(np.arange(len(texts)), lengths), columns)), (len(texts), self.rows))
        normed = normalize(matrix)
        directions = min(self.width, min(normed.shape) - 1)
        _, _, right = randomized_svd(normed, directions, n_iter=2, random_state=seed)
        with torch.no_grad():
            self.idf.copy_(torch.from_numpy(idf))
            self.table.mul_(_UNSEEN)
            used = torch.from_numpy(counts > 0)
            fitted = torch.zeros(int(used.sum()), self.width)
            fitted[:, :directions] = torch.from_numpy(np.ascontiguousarray(right.T))[used]
            self.table[used] = fitted.to(self.table)

    def features(self, text: str) -> tuple[list[int], list[float]]:
        """Compute the rows of a text and the term-frequency part of their weights, without the idf.

        Args:
            text: Any text; names in camel case or with underscores are split into words.
        """
        known = self._known.get(text)
        if known is not None:
            return known
        counts = Counter[int]()
        shares: dict[int, float] = {}
        for word, count in Counter(self.words(text)).items():
            grams = [word]
            if self.characters and len(word) > self.characters:
                marked = f"#{word}#"
                grams += [marked[at : at + self.characters] for at in range(len(marked) - self.characters + 1)]
            for place, gram in enumerate(grams):
                row = self.row(gram, word=place == 0)
                counts[row] += count
                shares.setdefault(row, 1.0 if place == 0 else _PART / math.sqrt(len(grams) - 1))
        rows = list(counts)
        made = rows, [shares[row] * (1 + math.log(counts[row])) for row in rows]
        if len(self._known) < _CACHED:
            self._known[text] = made
        return made

    def words(self, text: str) -> list[str]:
        """Split a text into words in lower case; scripts without blanks between words into pairs of characters."""
        return _WORD.findall(_CAMEL.sub(" ", spaced(text)).lower())

    def row(self, feature: str, word: bool = True) -> int:
        """Return the row of a word or, if `word` is false, of a character n-gram; "able" has two different rows."""
        return zlib.crc32(f"{'w' if word else 'c'}{feature}".encode()) % self.rows

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Encode texts.

        Args:
            texts: B texts.

        Returns:
            Vectors of length 1 [B, width], in at least float32; zeros for a text without words.
        """
        rows: list[int] = []
        weights: list[float] = []
        starts: list[int] = []
        for text in texts:
            starts.append(len(rows))
            found, shares = self.features(text)
            rows += found
            weights += shares
        device = self.table.device
        index = torch.tensor(rows, dtype=torch.long, device=device)
        # at least float32: rounding to bfloat16 would change rankings, and CUDA does not implement the gradient of
        # per_sample_weights in bfloat16
        share = torch.tensor(weights, dtype=torch.promote_types(self.table.dtype, torch.float32), device=device)
        share = share * self.idf[index] * self.gain[index].to(share).exp()
        bags = torch.tensor(starts, dtype=torch.long, device=device)
        vectors = F.embedding_bag(index, self.table.to(share.dtype), bags, per_sample_weights=share, mode="sum")
        return F.normalize(vectors, dim=-1)
