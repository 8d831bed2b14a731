"""Judges the rounds of one generation: the contract, and the strict rules that keep it lossless."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from saccade.inference.verification.draft import Draft, Verdict
from saccade.inference.verification.greedy import verify_greedy
from saccade.inference.verification.rejection_sampling import verify_sampling

if TYPE_CHECKING:
    from saccade.inference.state import GenerationState


class Verifier(ABC):
    """Decides which drafted tokens are accepted; made afresh for each generation, whose state it keeps on itself."""

    @abstractmethod
    def verify(self, logits: Tensor, draft: Draft, state: GenerationState) -> list[Verdict]:
        """Judges a round.

        Args:
            logits: ``[batch, 1 + drafted, vocabulary]`` of the target at the last token and the drafted ones.
            draft: The proposals.
            state: The generation.

        Returns:
            One verdict for each row.

        Raises:
            ValueError: The logits hold NaN.
        """

    def begin(self, logits: Tensor, state: GenerationState) -> list[Verdict]:
        """Judges the prompts, a round with nothing drafted: the first token is the target's own choice.

        Args:
            logits: ``[batch, vocabulary]`` behind the prompts.
            state: The generation.

        Returns:
            One verdict for each row.
        """
        return self.verify(logits[:, None], Draft.empty(len(logits), logits.device), state)

    def keep(self, rows: Sequence[int]) -> None:  # noqa: B027
        """Drops the state of finished rows."""


class StrictVerifier(Verifier):
    """The lossless rules: greedy output is that of greedy decoding, sampled output has the target's distribution."""

    def verify(self, logits: Tensor, draft: Draft, state: GenerationState) -> list[Verdict]:
        """Greedy or sampled, as the generation is."""
        if state.sampling is None:
            return verify_greedy(logits, draft)
        return verify_sampling(logits, draft, state.sampling, state.streams, state.session.pool)
