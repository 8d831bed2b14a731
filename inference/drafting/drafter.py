"""The contract of everything that proposes tokens, and the proposer that proposes none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from saccade.inference.state import GenerationState
from saccade.inference.verification.draft import Draft, Verdict


class Drafter(ABC):
    """Proposes tokens for the rounds of one generation; a subclass writes ``draft`` and keeps its state on itself."""

    @abstractmethod
    def draft(self, state: GenerationState, limits: Sequence[int]) -> Draft:
        """Proposes up to ``limits[b]`` tokens behind the text of every row.

        Args:
            state: The generation. A drafter may run the target's session, but leaves its lengths as they were.
            limits: Most tokens that a row can use before its length limit, at least 0.

        Returns:
            The proposals; a row may get fewer than its limit, or none.
        """

    def observe(self, state: GenerationState, draft: Draft, verdicts: Sequence[Verdict]) -> None:  # noqa: B027
        """Learns what became of the last draft; called after the accepted tokens are in ``state.texts``."""

    def keep(self, rows: Sequence[int]) -> None:  # noqa: B027
        """Drops the state of finished rows."""

    def close(self) -> None:  # noqa: B027
        """Gives back what the drafter holds; called also after an error."""

    @property
    def forwards(self) -> int:
        """Forward calls of a model of the drafter's own."""
        return 0

    @property
    def cache_bytes(self) -> int:
        """Size of key-value buffers of the drafter's own."""
        return 0

    @property
    def prefill_seconds(self) -> float:
        """Time until a model of the drafter's own has read the prompts."""
        return 0.0


class NoDraft(Drafter):
    """Proposes nothing: every round is one token of the target's own."""

    def draft(self, state: GenerationState, limits: Sequence[int]) -> Draft:
        """No columns for every row."""
        return Draft.empty(len(state.texts), state.session.device)
