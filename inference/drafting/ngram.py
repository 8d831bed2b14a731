"""Drafting by looking up what followed the last words earlier in the text (prompt lookup)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from saccade.inference.drafting.drafter import Drafter
from saccade.inference.state import GenerationState
from saccade.inference.verification.draft import Draft, Verdict


class NgramIndex:
    """For every n-gram of a growing text, where its most recent occurrence ended; constant time for each token.

    Args:
        largest: Longest n-gram that is indexed.
    """

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.text: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}

    def extend(self, tokens: Sequence[int]) -> None:
        """Appends tokens.

        The n-grams that end with the very last token are indexed by the next call: a lookup of the text's end must
        find an earlier place, not itself.
        """
        for token in tokens:
            end = len(self.text)
            for size in range(1, min(self.largest, end) + 1):
                self._ends[tuple(self.text[end - size : end])] = end
            self.text.append(token)

    def lookup(self, count: int) -> list[int]:
        """The ``count`` tokens that followed the most recent earlier occurrence of the longest matching n-gram.

        Where the text ends before ``count`` tokens, what stands between the two occurrences is repeated: a text that
        repeats itself goes on in its period.
        """
        for size in range(min(self.largest, len(self.text) - 1), 0, -1):
            end = self._ends.get(tuple(self.text[-size:]))
            if end is not None:
                period = len(self.text) - end
                return [self.text[end + i % period] for i in range(count)]
        return []


class NgramDrafter(Drafter):
    """Proposes the continuation of the longest n-gram of the text's end that occurred before, per row.

    Args:
        largest: Longest n-gram.
        length: Most proposed tokens.
    """

    def __init__(self, largest: int, length: int) -> None:
        self.largest, self.length = largest, length
        self._indices: list[NgramIndex] = []

    def draft(self, state: GenerationState, limits: Sequence[int]) -> Draft:
        """Looks every row up; rows without a match get nothing."""
        proposals = [
            index.lookup(min(limit, self.length)) if limit > 0 else []
            for index, limit in zip(self._indices, limits, strict=True)
        ]
        longest = max(len(proposal) for proposal in proposals)
        padded = [proposal + [0] * (longest - len(proposal)) for proposal in proposals]
        tokens = torch.tensor(padded, dtype=torch.long, device=state.session.device).reshape(len(padded), longest)
        return Draft(tokens, [len(proposal) for proposal in proposals])

    def observe(self, state: GenerationState, draft: Draft, verdicts: Sequence[Verdict]) -> None:
        """Indexes the tokens that were committed since the last round."""
        if not self._indices:
            self._indices = [NgramIndex(self.largest) for _ in state.texts]
        for index, text in zip(self._indices, state.texts, strict=True):
            index.extend(text[len(index.text) :])

    def keep(self, rows: Sequence[int]) -> None:
        """Drops the indices of finished rows."""
        self._indices = [self._indices[row] for row in rows]
