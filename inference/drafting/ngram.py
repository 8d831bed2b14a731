"""Drafting by look-up: copies what followed an earlier occurrence of the last tokens (prompt lookup)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from saccade.inference.drafting.drafter import Drafter
from saccade.inference.drafting.retrieval_store.retrieval_store import RetrievalRules, RetrievalStore
from saccade.inference.state import GenerationState
from saccade.inference.verification.draft import Draft, Verdict


class NgramDrafter(Drafter):
    """Proposes, for each row, what followed the longest n-gram at the end of its text that occurred before.

    Args:
        rules: How texts are looked up.
        length: Maximum number of proposed tokens.
    """

    def __init__(self, rules: RetrievalRules, length: int) -> None:
        self.rules, self.length = rules, length
        self._stores: list[RetrievalStore] = []

    def grade(self, state: GenerationState) -> int:
        """The size of the longest match of all rows: longer ones are right far more often."""
        return max(store.match() for store in self._stores)

    def draft(self, state: GenerationState, limits: Sequence[int]) -> Draft:
        """Looks up the end of every text; rows without a match get no tokens."""
        proposals = [store.find(min(limit, self.length)) for store, limit in zip(self._stores, limits, strict=True)]
        longest = max(len(proposal) for proposal in proposals)
        padded = [proposal + [0] * (longest - len(proposal)) for proposal in proposals]
        tokens = torch.tensor(padded, dtype=torch.long, device=state.session.device).reshape(len(padded), longest)
        return Draft(tokens, [len(proposal) for proposal in proposals])

    def observe(self, state: GenerationState, draft: Draft, verdicts: Sequence[Verdict]) -> None:
        """Indexes the tokens committed since the last round; a store never holds a token that was not verified."""
        if not self._stores:
            self._stores = [RetrievalStore(self.rules) for _ in state.texts]
        for store, text in zip(self._stores, state.texts, strict=True):
            store.extend(text[store.length :])

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps the indices of the given rows and drops the others."""
        self._stores = [self._stores[row] for row in rows]
