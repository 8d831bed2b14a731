"""Planted bugs: verifiers that break the law, for tests that must find them."""

from __future__ import annotations

from torch import Tensor, nn

from saccade.inference import Decoder
from saccade.inference.request import Request
from saccade.inference.state import GenerationState
from saccade.inference.verification.draft import Draft, Verdict
from saccade.inference.verification.verifier import StrictVerifier, Verifier


class GreedyBonus(StrictVerifier):
    """The token behind the accepted ones is the target's favourite, not a drawn one."""

    def verify(self, logits: Tensor, draft: Draft, state: GenerationState) -> list[Verdict]:
        verdicts = super().verify(logits, draft, state)
        for row, verdict in enumerate(verdicts):
            verdict.token = int(logits[row, verdict.path[-1]].argmax())
        return verdicts


def judged_by(kind: type[Verifier], decoder: type[Decoder]) -> type[Decoder]:
    """The decoder's class with another verifier."""

    def verifier(self: Decoder, model: nn.Module, request: Request) -> Verifier:
        return kind()

    return type(f"{kind.__name__}{decoder.__name__}", (decoder,), {"verifier": verifier})
