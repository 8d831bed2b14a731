"""Base class of all verifiers, and the verifier with the strict rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from saccade.inference.choice import own_choices
from saccade.inference.verification.draft import Draft, Verdict
from saccade.inference.verification.own_choice import verify_choices
from saccade.inference.verification.rejection_sampling import verify_sampling

if TYPE_CHECKING:
    from saccade.inference.state import GenerationState


class Verifier(ABC):
    """Decides which drafted tokens are accepted.

    Every generation creates a new verifier, so a verifier keeps its state in its own attributes. A subclass defines
    :meth:`verify`.
    """

    @abstractmethod
    def verify(self, logits: Tensor, draft: Draft, state: GenerationState) -> list[Verdict]:
        """Verifies the draft of a round.

        Args:
            logits: ``[batch, 1 + drafted, vocabulary]`` of the target at the last committed and the drafted tokens.
            draft: The proposals.
            state: The generation.

        Returns:
            One verdict for each row.

        Raises:
            ValueError: The logits hold NaN.
        """

    def begin(self, logits: Tensor, state: GenerationState) -> list[Verdict]:
        """Gives the first token after the prompts: a round without draft.

        Args:
            logits: ``[batch, vocabulary]`` after the prompts.
            state: The generation.

        Returns:
            One verdict for each row.
        """
        return self.verify(logits[:, None], Draft.empty(len(logits), logits.device), state)

    def keep(self, rows: Sequence[int]) -> None:  # noqa: B027
        """Keeps the state of the given rows and drops that of the others."""


class StrictVerifier(Verifier):
    """Lossless: the text is the target's own, or, with rejection sampling, has the target's distribution."""

    def verify(self, logits: Tensor, draft: Draft, state: GenerationState) -> list[Verdict]:
        """Accepts the target's own choices, or verifies by rejection sampling if the generation asks for that."""
        if state.sampling is not None and not state.noisy:
            return verify_sampling(logits, draft, state.sampling, state.streams, state.session.pool)
        return verify_choices(draft, own_choices(logits, state, draft.shape().depths))
