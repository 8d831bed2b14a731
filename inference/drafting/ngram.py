"""Drafting by n-gram lookup: copies what followed an earlier occurrence of the last tokens (prompt lookup)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from saccade.inference.drafting.drafter import Drafter
from saccade.inference.state import GenerationState
from saccade.inference.verification.draft import Draft, Verdict


class NgramIndex:
    """Index of a growing text: where the most recent occurrence of every n-gram ends. Constant time for each token.

    Args:
        largest: Size of the longest n-gram that is indexed.
    """

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.text: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}

    def extend(self, tokens: Sequence[int]) -> None:
        """Appends tokens.

        The n-grams that end with the last token are indexed by the next call, so that a lookup of the text's end finds
        an earlier occurrence and not itself.
        """
        for token in tokens:
            end = len(self.text)
            for size in range(1, min(self.largest, end) + 1):
                self._ends[tuple(self.text[end - size : end])] = end
            self.text.append(token)

    def match(self) -> tuple[int, int]:
        """The longest n-gram at the end of the text that occurred before.

        Returns:
            Its size, and where its most recent earlier occurrence ends; size 0 if there is none.
        """
        for size in range(min(self.largest, len(self.text) - 1), 0, -1):
            end = self._ends.get(tuple(self.text[-size:]))
            if end is not None:
                return size, end
        return 0, 0

    def lookup(self, count: int) -> list[int]:
        """The ``count`` tokens that followed the most recent earlier occurrence of the longest matching n-gram.

        If fewer than ``count`` tokens follow, the tokens between the two occurrences are repeated, as in a periodic
        text.

        Args:
            count: Number of tokens.

        Returns:
            ``count`` tokens, or none if no n-gram occurred before.
        """
        size, end = self.match()
        period = len(self.text) - end
        return [self.text[end + i % period] for i in range(count)] if size else []


class NgramDrafter(Drafter):
    """Proposes, for each row, what followed the longest n-gram at the end of its text that occurred before.

    Args:
        largest: Size of the longest n-gram.
        length: Maximum number of proposed tokens.
    """

    def __init__(self, largest: int, length: int) -> None:
        self.largest, self.length = largest, length
        self._indices: list[NgramIndex] = []

    def grade(self, state: GenerationState) -> int:
        """The size of the longest match of all rows: longer ones are right far more often."""
        return max(index.match()[0] for index in self._indices)

    def draft(self, state: GenerationState, limits: Sequence[int]) -> Draft:
        """Looks up the end of every text; rows without a match get no tokens."""
        proposals = [
            index.lookup(min(limit, self.length)) if limit > 0 else []
            for index, limit in zip(self._indices, limits, strict=True)
        ]
        longest = max(len(proposal) for proposal in proposals)
        padded = [proposal + [0] * (longest - len(proposal)) for proposal in proposals]
        tokens = torch.tensor(padded, dtype=torch.long, device=state.session.device).reshape(len(padded), longest)
        return Draft(tokens, [len(proposal) for proposal in proposals])

    def observe(self, state: GenerationState, draft: Draft, verdicts: Sequence[Verdict]) -> None:
        """Indexes the tokens committed since the last round."""
        if not self._indices:
            self._indices = [NgramIndex(self.largest) for _ in state.texts]
        for index, text in zip(self._indices, state.texts, strict=True):
            index.extend(text[len(index.text) :])

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps the indices of the given rows and drops the others."""
        self._indices = [self._indices[row] for row in rows]
