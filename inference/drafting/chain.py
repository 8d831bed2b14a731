"""Drafting chains with a language model: one token after the other while its confidence is high enough."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from saccade.common.transfer import to_device
from saccade.inference.choice import best_tokens
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
    """Drafts chains with a forward that continues every text by one token; a subclass defines that forward.

    Without a draft control, a row stops drafting after a token whose probability (softmax of the raw logits at
    temperature 1) is below the row's threshold; that token is still proposed. Under a control there is no threshold:
    the control chooses the length, and a threshold makes the host wait for every drafted token.

    Args:
        length: Maximum number of drafted tokens in a round, at least 1.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    @abstractmethod
    def begin(self, state: GenerationState) -> Tensor:
        """Logits ``[batch, vocabulary]`` after the texts: the distribution of the first drafted token."""

    @abstractmethod
    def step(self, state: GenerationState, tokens: Tensor) -> Tensor:
        """Logits ``[batch, vocabulary]`` after one more token ``[batch, 1]``."""

    def end(self, state: GenerationState) -> None:
        """Called when the draft is complete."""

    def thresholds(self, state: GenerationState) -> list[float]:
        """Confidence threshold of every row; with 0 a row never stops early."""
        return [0.0] * len(state.texts)

    def draft(self, state: GenerationState, limits: Sequence[int]) -> Draft:
        """Drafts until every row is below its threshold, at its limit, or at ``length`` tokens."""
        limits = [min(limit, self.length) for limit in limits]
        thresholds = [0.0] * len(state.texts) if state.controlled else self.thresholds(state)
        counts = [0] * len(limits)
        open_rows = {row for row, limit in enumerate(limits) if limit > 0}
        columns: list[Tensor] = []
        distributions: list[Tensor] = []
        while open_rows:
            logits = self.step(state, columns[-1]) if columns else self.begin(state)
            if state.sampling is None or state.noisy:
                tokens = best_tokens(logits[:, None], state, [len(columns)])[:, 0]
            else:
                # finished rows use no random numbers, so that those of a row do not depend on the other rows
                uniforms = [stream.random() if row in open_rows else 0.5 for row, stream in enumerate(state.streams)]
                propose = state.session.pool.captured(("draft", state.sampling.warpers), state.sampling.proposals)
                points = to_device(uniforms, logits.device, torch.float64)
                # the next call of a captured function overwrites its results
                distribution, tokens = (result.clone() for result in propose(logits, points))
                distributions.append(distribution)
            columns.append(tokens)
            unsure: list[bool] = [False] * len(counts)
            if any(thresholds):
                confidences = state.session.pool.captured("confidence", confidence)(logits, tokens).tolist()
                unsure = [value < threshold for value, threshold in zip(confidences, thresholds, strict=True)]
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
