"""FLy: a mismatch stands where the target is unsure and agrees with the draft again right behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from saccade.inference.verification.relaxed.rule import (
    Judged,
    Reason,
    RelaxedRule,
    RowState,
    Ruling,
    guards,
    required,
    ruling,
)


def top_entropy(logits: Tensor, top: int = 3) -> Tensor:
    """Entropy over the largest probabilities of each distribution, in nats: ``-sum p log p`` over the ``top`` largest.

    The probabilities are those of the whole vocabulary, not renormalised, as vLLM has it: 0 where one token has all the
    mass, ``log(top)`` where ``top`` tokens share it.

    Args:
        logits: ``[..., vocabulary]``.
        top: How many probabilities count, at least 1; a smaller vocabulary counts as a whole.

    Returns:
        ``[...]`` float32.

    Raises:
        ValueError: ``top`` below 1.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}: FLy's own is 3.")
    scores = logits.float()
    largest = scores.topk(min(top, scores.shape[-1]), dim=-1).values
    logs = largest - scores.logsumexp(-1, keepdim=True)
    # a token of no mass adds nothing, where 0 * -inf would be NaN
    return -(logs.exp() * logs.clamp(min=torch.finfo(torch.float32).min)).sum(-1)


@dataclass
class FLyPlus(RelaxedRule):
    """FLy's entropy gate alone: every mismatch stands where the target's entropy reaches the threshold.

    A baseline of LVSpec (arXiv 2604.05650), which calls it FLY+.

    Args:
        threshold: Least entropy over the ``top`` largest probabilities, in nats, at least 0.
        top: Probabilities that the entropy counts (:func:`top_entropy`), at least 1.

    Raises:
        ValueError: A setting outside its range.
    """

    needs_entropies: ClassVar[bool] = True

    threshold: float = 0.3
    top: int = 3

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"threshold must be 0 or more, got {self.threshold}: FLy's own is 0.3 nats.")
        if self.top < 1:
            raise ValueError(f"top must be at least 1, got {self.top}: FLy's own is 3.")

    def judge(self, judged: Judged, state: RowState) -> Ruling:
        """Sure mismatches fall."""
        verdict = ruling(judged, self._reasons(judged, state, required(judged, "entropies")))
        state.position += verdict.accepted + 1
        return verdict

    def _reasons(self, judged: Judged, state: RowState, entropies: list[float]) -> Iterator[Reason]:
        matches = [token == choice for token, choice in zip(judged.drafted, judged.choices, strict=False)]
        for place, match in enumerate(matches):
            if match:
                yield "match"
            elif guards(judged, place, state.guarded):
                yield "guard"
            else:
                unsure = entropies[place] >= self.threshold
                yield "loose" if unsure and self._confirmed(matches, place) else "reject"

    def _confirmed(self, matches: list[bool], place: int) -> bool:
        """Whether what follows the mismatch speaks for it; the gate alone does not look."""
        return True


@dataclass
class FLy(FLyPlus):
    """FLy (arXiv 2511.22972): a mismatch of an unsure target stands if the next drafted tokens all match.

    The target read the draft's token and agrees with what the draft said next, so the two wordings mean the same. The
    whole window must lie inside the draft: mismatches near its end fall, as in vLLM.

    Args:
        threshold: Least entropy over the ``top`` largest probabilities, in nats, at least 0.
        top: Probabilities that the entropy counts (:func:`top_entropy`), at least 1.
        window: Matches that must follow, at least 1; a draft of K tokens asks for ``K - 1`` at most.

    Raises:
        ValueError: A setting outside its range.
    """

    window: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}: FLyPlus is the gate without a window.")

    def _confirmed(self, matches: list[bool], place: int) -> bool:
        """Whether a full window of matches follows."""
        # a draft of one token has nothing behind it, so nothing confirms its mismatch
        window = max(1, min(self.window, len(matches) - 1))
        following = matches[place + 1 : place + 1 + window]
        return len(following) == window and all(following)
