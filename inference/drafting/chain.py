"""Drafting a chain with a language model: one token after the other, until it is no longer sure."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from saccade.common.transfer import to_device
from saccade.inference.drafting.drafter import Drafter, NoDraft
from saccade.inference.state import GenerationState
from saccade.inference.verification.draft import Draft


def confidence(logits: Tensor, tokens: Tensor) -> Tensor:
    """Probability of each row's token at temperature 1.

    Args:
        logits: ``[batch, vocabulary]``.
        tokens: ``[batch, 1]`` ids.

    Returns:
        ``[batch]``, in float64 for float64 logits and in float32 otherwise.
    """
    raw = logits if logits.dtype == torch.float64 else logits.float()
    return raw.gather(-1, tokens)[:, 0].sub(raw.logsumexp(-1)).exp()


class ChainDrafter(Drafter):
    """Drafts with any forward that continues texts by one token; a subclass says which forward.

    A token whose probability (softmax of the raw logits at temperature 1) is below the row's threshold is still
    proposed, and drafting stops there for that row.

    Args:
        length: Most drafted tokens in a round, at least 1.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    @abstractmethod
    def begin(self, state: GenerationState) -> Tensor:
        """Logits ``[batch, vocabulary]`` behind the texts: the distribution of the first drafted token."""

    @abstractmethod
    def step(self, state: GenerationState, tokens: Tensor) -> Tensor:
        """Logits ``[batch, vocabulary]`` after one more token ``[batch, 1]``."""

    def end(self, state: GenerationState) -> None:
        """Called when the draft is complete."""

    def thresholds(self, state: GenerationState) -> list[float]:
        """Confidence below which a row stops drafting; 0 never stops."""
        return [0.0] * len(state.texts)

    def draft(self, state: GenerationState, limits: Sequence[int]) -> Draft:
        """Drafts until every row is unsure, at its limit, or ``length`` tokens long."""
        limits = [min(limit, self.length) for limit in limits]
        thresholds = self.thresholds(state)
        counts = [0] * len(limits)
        open_rows = {row for row, limit in enumerate(limits) if limit > 0}
        columns: list[Tensor] = []
        distributions: list[Tensor] = []
        while open_rows:
            logits = self.step(state, columns[-1]) if columns else self.begin(state)
            if state.sampling is None:
                tokens = logits.argmax(-1, keepdim=True)
            else:
                # closed rows draw nothing, so that a row's random numbers do not depend on its neighbours
                uniforms = [stream.random() if row in open_rows else 0.5 for row, stream in enumerate(state.streams)]
                drawn = state.session.pool.captured(("draft", state.sampling.warpers), state.sampling.proposals)
                # a captured function's results are overwritten by its next call
                points = to_device(uniforms, logits.device, torch.float64)
                distribution, tokens = (made.clone() for made in drawn(logits, points))
                distributions.append(distribution)
            columns.append(tokens)
            unsure: list[bool] = [False] * len(counts)
            if any(thresholds):
                sure = state.session.pool.captured("confidence", confidence)(logits, tokens).tolist()
                unsure = [share < threshold for share, threshold in zip(sure, thresholds, strict=True)]
            for row in list(open_rows):
                counts[row] += 1
                if unsure[row] or counts[row] >= limits[row]:
                    open_rows.remove(row)
        if not columns:
            return NoDraft().draft(state, limits)
        self.end(state)
        device = state.session.device
        drafted = torch.stack(distributions, 1).to(device) if distributions else None
        return Draft(torch.cat(columns, 1).to(device), counts, drafted)
