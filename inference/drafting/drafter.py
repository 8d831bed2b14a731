"""Base class of all drafters, and the drafter that proposes nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from saccade.inference.state import GenerationState
from saccade.inference.verification.draft import Draft, Verdict
from saccade.inference.verification.verifier import Verifier


class Drafter(ABC):
    """Proposes tokens in every round of one generation.

    Every generation creates a new drafter, so a drafter keeps its state in its own attributes. A subclass defines
    :meth:`draft`.
    """

    def prepare(self, state: GenerationState) -> None:  # noqa: B027
        """Called once, before the target reads the prompts; its time is part of that until the first token."""

    def grade(self, state: GenerationState) -> int | None:
        """How good the drafter takes its next draft to be, where it knows that before it drafts.

        Args:
            state: The generation.

        Returns:
            0 if it has found nothing, else a small number from 1 on, which draft control keeps apart; ``None``, the
            default, if it does not say.
        """
        return None

    @property
    def verifier(self) -> Verifier | None:
        """The verifier of its drafts, where one belongs to the drafter; ``None``, the default, is the decoder's."""
        return None

    @abstractmethod
    def draft(self, state: GenerationState, limits: Sequence[int]) -> Draft:
        """Proposes up to ``limits[b]`` tokens that continue the text of row ``b``.

        Args:
            state: The generation. A drafter may run the target's session, but must restore its lengths.
            limits: Maximum number of tokens that each row can use before its length limit, at least 0.

        Returns:
            The proposals; a row may get fewer than its limit, or none.
        """

    def observe(self, state: GenerationState, draft: Draft, verdicts: Sequence[Verdict]) -> None:  # noqa: B027
        """Receives the outcome of the last draft; called after the accepted tokens are added to ``state.texts``.

        Also called after the prefill, with an empty draft.
        """

    def keep(self, rows: Sequence[int]) -> None:  # noqa: B027
        """Keeps the state of the given rows and drops that of the others."""

    def close(self) -> None:  # noqa: B027
        """Frees what the drafter holds; also called after an error."""

    @property
    def forwards(self) -> int:
        """Number of forward calls of the drafter's model, if it has one."""
        return 0

    @property
    def cache_bytes(self) -> int:
        """Size in bytes of the drafter's key-value buffers, if it has any."""
        return 0

    @property
    def details(self) -> dict[str, float]:
        """What the drafter counts besides the common statistics, by name."""
        return {}

    @property
    def prefill_seconds(self) -> float:
        """Time in which the drafter's model, if it has one, read the prompts."""
        return 0.0


class NoDraft(Drafter):
    """Proposes nothing: every round gives one token of the target."""

    def draft(self, state: GenerationState, limits: Sequence[int]) -> Draft:
        """An empty draft for every row."""
        return Draft.empty(len(state.texts), state.session.device)
