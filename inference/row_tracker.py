"""Emitted tokens, ends and statistics of the rows of a generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from saccade.common.timing import clock
from saccade.inference.statistics import DecodingStats

if TYPE_CHECKING:
    from saccade.inference.drafting.drafter import Drafter
    from saccade.inference.engine.session import Session
    from saccade.inference.request import Request
    from saccade.inference.verification.relaxed.rule import AuditEntry


class RowTracker:
    """Records the emitted tokens of one generation, decides where rows end, and counts its statistics.

    Args:
        request: Prompts, limits and EOS ids.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.tokens: list[list[int]] = [[] for _ in request.prompts]
        self.rows = [DecodingStats(requests=1, prompt_tokens=len(prompt)) for prompt in request.prompts]
        self.pooled = DecodingStats()
        self.audit: list[list[AuditEntry]] = [[] for _ in request.prompts]
        self.finished = False
        self._first = 0.0
        self._bytes = (0, 0)

    def start(self, session: Session, drafter: Drafter) -> None:
        """Starts the clock."""
        self._session, self._drafter = session, drafter
        self._forwards = session.target_forwards, session.draft_forwards  # made by earlier generations of the session
        if session.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(session.device)
        self._begin = self._clock()

    def first_token(self) -> None:
        """Records the time of the first token, which all rows share."""
        self._first = self._clock() - self._begin
        self._bytes = self._cache_bytes()

    def remaining(self, row: int) -> int:
        """Number of tokens that a row may still emit."""
        return self.request.max_new_tokens - len(self.tokens[row])

    def emit(
        self,
        rows: Sequence[int],
        added: Sequence[list[int]],
        drafted: Sequence[int],
        logs: Sequence[Sequence[AuditEntry]],
    ) -> tuple[list[list[int]], list[int]]:
        """Cuts the tokens of a round at EOS and at the limit, and counts the round.

        Args:
            rows: Index in the batch of every unfinished row.
            added: For every unfinished row its accepted tokens and the token that the target added.
            drafted: Number of verified draft tokens of every unfinished row.
            logs: The decisions of a relaxed rule on these draft tokens.

        Returns:
            The emitted tokens of every row of the batch, and the positions in ``rows`` of the rows that continue.
        """
        emitted: list[list[int]] = [[] for _ in self.tokens]
        unfinished = []
        is_first = not self.tokens[rows[0]]
        for position, row in enumerate(rows):
            new = added[position][: self.remaining(row)]
            stop = next((i for i, token in enumerate(new) if token in self.request.eos), None)
            new = new if stop is None else new[: stop + 1]
            self.tokens[row] += new
            emitted[row] = new
            stats = self.rows[row]
            before = stats.new_tokens
            stats.new_tokens += len(new)
            for entry in logs[position]:
                self.audit[row].append(replace(entry, position=before + entry.position - 1))
                stats.relaxed += entry.position <= len(new) and entry.relaxed
            stats.target_forwards += 1
            if not is_first:
                stats.record(drafted[position], min(len(new), len(added[position]) - 1))
            if stop is None and self.remaining(row) > 0:
                unfinished.append(position)
            else:
                stats.seconds = self._clock() - self._begin
        return emitted, unfinished

    def finish(self) -> None:
        """Stops the clock and pools the statistics of the rows; later calls do nothing."""
        if self.finished:
            return
        self.finished = True
        seconds = self._clock() - self._begin
        device = self._session.device
        target_forwards = self._session.target_forwards - self._forwards[0]
        draft_forwards = self._session.draft_forwards - self._forwards[1] + self._drafter.forwards
        # rows that have ended may have given their part back
        on_device, on_host = map(max, self._bytes, self._cache_bytes())
        for stats in self.rows:
            stats.prefill_seconds = stats.first_token_seconds = self._first
            stats.draft_prefill_seconds = self._drafter.prefill_seconds
            stats.draft_forwards = draft_forwards
            stats.kv_cache_bytes, stats.kv_host_bytes = on_device, on_host
            if device.type == "cuda":
                stats.peak_memory_bytes = torch.cuda.max_memory_allocated(device)
        self.pooled = sum(self.rows, DecodingStats())
        self.pooled.target_forwards = target_forwards
        self.pooled.draft_forwards = draft_forwards
        self.pooled.seconds, self.pooled.prefill_seconds = seconds, self._first
        self.pooled.draft_prefill_seconds = self._drafter.prefill_seconds

    def _cache_bytes(self) -> tuple[int, int]:
        """What keys and values take now, on the device and in host memory."""
        on_device = self._session.cache_bytes + self._drafter.cache_bytes
        return on_device, self._session.storage.host_bytes

    def _clock(self) -> float:
        return clock(self._session.device)
