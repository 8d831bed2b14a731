"""FLy: accepts a mismatch if the target is uncertain and agrees with the draft on the tokens that follow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from saccade.common.checks import check_count
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

    The probabilities are those of the whole vocabulary and are not renormalised, as in vLLM. The entropy is 0 if one
    token has probability 1, and ``log(top)`` if ``top`` tokens are equally likely and no others are possible.

    Args:
        logits: ``[..., vocabulary]``.
        top: Number of largest probabilities, at least 1; all, if the vocabulary is smaller.

    Returns:
        ``[...]`` float32.

    Raises:
        ValueError: ``top`` below 1.
    """
    check_count("top", top)
    scores = logits.float()
    largest = scores.topk(min(top, scores.shape[-1]), dim=-1).values
    logs = largest - scores.logsumexp(-1, keepdim=True)
    # a token of probability 0 adds 0 to the entropy; without the clamp it would add 0 * -inf, which is NaN
    return -(logs.exp() * logs.clamp(min=torch.finfo(torch.float32).min)).sum(-1)


@dataclass
class FLyPlus(RelaxedRule):
    """Accepts every mismatch where the target's entropy reaches the threshold: FLy without its window.

    A baseline of LVSpec (arXiv 2604.05650), where it is called FLY+.

    Args:
        threshold: Minimum entropy over the ``top`` largest probabilities, in nats, at least 0.
        top: Number of probabilities in the entropy (:func:`top_entropy`), at least 1.

    Raises:
        ValueError: A setting outside its range.
    """

    needs_entropies: ClassVar[bool] = True

    threshold: float = 0.3
    top: int = 3

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"threshold must be at least 0, got {self.threshold}: FLy uses 0.3 nats.")
        check_count("top", self.top)

    def judge(self, judged: Judged, state: RowState) -> Ruling:
        """Accepts mismatches of high entropy and rejects the others."""
        outcome = ruling(judged, self._reasons(judged, state, required(judged, "entropies")))
        state.position += outcome.accepted + 1
        return outcome

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
        """Whether the tokens after a mismatch confirm it; always true without a window."""
        return True


@dataclass
class FLy(FLyPlus):
    """FLy (arXiv 2511.22972): accepts a mismatch of high entropy if the drafted tokens after it all match.

    The target, having read the mismatch, agrees with what the draft continues with, so both wordings are taken to mean
    the same. The whole window must be inside the draft: mismatches near its end are rejected, as in vLLM.

    Args:
        threshold: Minimum entropy over the ``top`` largest probabilities, in nats, at least 0.
        top: Number of probabilities in the entropy (:func:`top_entropy`), at least 1.
        window: Number of matches that must follow, at least 1; at most ``K - 1`` are required in a draft of K tokens.

    Raises:
        ValueError: A setting outside its range.
    """

    window: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("window", self.window)  # FLyPlus is the rule without a window

    def _confirmed(self, matches: list[bool], place: int) -> bool:
        """Whether a full window of matches follows."""
        # at least 1: in a draft of one token no token follows, so nothing confirms a mismatch
        window = max(1, min(self.window, len(matches) - 1))
        following = matches[place + 1 : place + 1 + window]
        return len(following) == window and all(following)
