"""Drafting with the target's session while some of its sub-layers are skipped (Draft & Verify)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from saccade.inference.drafting.chain import ChainDrafter
from saccade.inference.state import GenerationState
from saccade.inference.verification.draft import Draft, Verdict


@dataclass
class ThresholdController:
    """The adaptive draft-exit threshold of Draft & Verify (arXiv 2309.08168, section 3.3, and its released code).

    The running acceptance rate is ``AR <- beta1 AR + (1 - beta1) matched / drafted``. The threshold becomes
    ``gamma <- beta2 gamma + (1 - beta2) (gamma + step)``, where ``step`` is ``epsilon`` if ``AR`` is below ``alpha``,
    0 if the draft had its full length, and ``-epsilon`` otherwise.

    Args:
        gamma: Confidence below which drafting stops.
        alpha: Target acceptance rate.
        beta1: Weight of the old acceptance rate.
        beta2: Weight of the old threshold.
        epsilon: Step of the threshold.
        acceptance: Running acceptance rate.
    """

    gamma: float = 0.6
    alpha: float = 0.9
    beta1: float = 0.5
    beta2: float = 0.9
    epsilon: float = 0.01
    acceptance: float = 0.0

    def update(self, matched: int, drafted: int, longest: int) -> None:
        """Updates the threshold after a round.

        Args:
            matched: Number of accepted tokens.
            drafted: Number of drafted tokens.
            longest: Maximum number of drafted tokens in a round.
        """
        if drafted == 0:
            return
        self.acceptance = self.beta1 * self.acceptance + (1 - self.beta1) * matched / drafted
        aim = self.gamma
        if self.acceptance < self.alpha:
            aim = self.gamma + self.epsilon
        elif drafted != longest:
            aim = self.gamma - self.epsilon
        # with a threshold of 0 or 1 drafting would never or always stop, whatever the acceptance rate (ours)
        self.gamma = min(0.99, max(0.05, self.beta2 * self.gamma + (1 - self.beta2) * aim))


class LayerSkipDrafter(ChainDrafter):
    """Drafts with the target's session, sub-layers skipped; verification overwrites the keys that the draft writes.

    Args:
        length: Maximum number of drafted tokens in a round.
        controllers: One threshold controller for each row.
        adaptive: Whether the thresholds are updated after each round.
    """

    def __init__(self, length: int, controllers: list[ThresholdController], adaptive: bool) -> None:
        super().__init__(length)
        self.controllers = controllers
        self.adaptive = adaptive
        self._before: list[int] = []

    def begin(self, state: GenerationState) -> Tensor:
        """Reads the last committed token, which is not in the cache yet."""
        self._before = list(state.session.lengths)
        tokens = state.session.token_column([text[-1] for text in state.texts])
        return self.step(state, tokens)

    def step(self, state: GenerationState, tokens: Tensor) -> Tensor:
        """Runs one forward without the skipped sub-layers, after the tokens drafted so far."""
        logits = state.session.forward(tokens, skipped=True)[:, -1]
        state.session.commit([[0]] * len(state.texts))
        return logits

    def end(self, state: GenerationState) -> None:
        """Rolls the cache back: verification writes the same slots with all layers."""
        state.session.truncate(self._before)

    def thresholds(self, state: GenerationState) -> list[float]:
        """The current threshold of every row."""
        return [controller.gamma for controller in self.controllers]

    def observe(self, state: GenerationState, draft: Draft, verdicts: Sequence[Verdict]) -> None:
        """Updates the threshold of every row, unless a draft control chooses the length."""
        if self.adaptive and not state.controlled:
            for controller, verdict, drafted in zip(self.controllers, verdicts, draft.counts, strict=True):
                controller.update(len(verdict.path) - 1, drafted, self.length)

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps the controllers of the given rows and drops the others."""
        self.controllers = [self.controllers[row] for row in rows]
