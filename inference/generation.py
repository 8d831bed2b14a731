"""A generation that runs step by step, and its output."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from saccade.inference.engine.capture_turns import TURNS
from saccade.inference.engine.compressed.trial import on_probation
from saccade.inference.engine.session import Session
from saccade.inference.huggingface.visual_prompts import read_visual_prompts
from saccade.inference.request import Request
from saccade.inference.row_tracker import RowTracker
from saccade.inference.state import GenerationState
from saccade.inference.statistics import DecodingStats
from saccade.inference.verification.draft import Draft, Verdict
from saccade.inference.verification.relaxed.rule import AuditEntry

if TYPE_CHECKING:
    from saccade.inference.decoder import Decoder


@dataclass
class GenerationOutput:
    """The output of a decoder.

    Args:
        sequences: ``[batch, length + new]`` token ids in the layout of ``model.generate``, on the device of the input:
            prompts padded on the left to the width of the input, then the new tokens, padded on the right.
        tokens: The new tokens of every row, EOS included.
        stats: Statistics of the whole call.
        per_request: Statistics of every row.
        audit: For relaxed decoders, the decision on every judged token of every row; ``position`` is the token's index
            among the new tokens. Empty for strict decoders.
        details: What a method counts besides, by name: of parallel speculation the numbers of
            :class:`saccade.inference.parallel.counts.ParallelCounts`.
    """

    sequences: Tensor
    tokens: list[list[int]]
    stats: DecodingStats
    per_request: list[DecodingStats]
    audit: list[list[AuditEntry]] = field(default_factory=list)
    details: dict[str, float] = field(default_factory=dict)


class GenerationRun:
    """A generation that advances when the caller asks for it; created by :meth:`saccade.inference.Decoder.start`.

    ::

        with decoder.start(model, input_ids, max_new_tokens=64) as run:
            tokens = run.prefill()
            while not run.finished:
                tokens = run.step()
        output = run.output()

    Iterating over a run does the same and yields the tokens of each step.

    Several runs, of the same or of different decoders, may take turns on one model. Rollback, EOS, limits, statistics
    and batching are handled here for all decoders.

    Args:
        decoder: Provides the drafter and the verifier.
        model: The target.
        request: The checked prompts and limits.
        session: A session of the model; the run uses it and leaves it open, with the texts in its cache. ``None`` opens
            a session that is closed with the run.
        synced: Agree with the other ranks before every forward.

    Raises:
        ValueError: The session is of another model, too small, in use, or lacks what the decoder needs.
    """

    def __init__(
        self,
        decoder: Decoder,
        model: nn.Module,
        request: Request,
        *,
        session: Session | None = None,
        synced: bool = False,
    ) -> None:
        self.request = request
        self._model, self._decoder_name, self._advice = model, type(decoder).__name__, decoder.advice
        self._tracker = RowTracker(request)
        self._rows = list(range(len(request.prompts)))
        self._open = ExitStack()
        self._closed = self._prefilled = False
        with ExitStack() as undo:  # if a later part cannot be opened, the earlier ones are closed again
            self._drafter = decoder.drafter(model, request)
            undo.callback(self._drafter.close)
            self._verifier = self._drafter.verifier or decoder.verifier(model, request)
            self._control = decoder.draft_control(model, request, synced=synced)
            needed = request.positions + decoder.width
            if session is None:
                session = undo.enter_context(decoder.session(model, needed, synced=synced))
            else:
                decoder.check_session(session, model, needed)
            undo.enter_context(session.used())
            self._open = undo.pop_all()
        self.state = GenerationState.of(session, request)
        self.state.controlled = self._control is not None

    def __enter__(self) -> GenerationRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def finished(self) -> bool:
        """Whether all rows have ended, at EOS or at their limit; a closed run is finished."""
        return self._closed or not self._rows

    @TURNS.working()
    def prefill(self) -> list[list[int]]:
        """Reads the prompts, except for tokens that the session's cache already holds; the first step of a run.

        Returns:
            The first new token of every row.

        Raises:
            ValueError: The prompts have been read already, the run is closed, or the logits hold NaN.
        """
        if self._prefilled or self._closed:
            raise ValueError("the run has already read its prompts, or is closed: start another one.")
        state, request = self.state, self.request
        self._tracker.start(state.session, self._drafter)
        self._drafter.prepare(state)
        self._prefilled = True
        if request.visual:
            state.visual = read_visual_prompts(self._model, request.prompts, request.visual)
        verdicts = self._verifier.begin(state.session.prefill(request.prompts, state.visual), state)
        self._tracker.first_token()
        return self._take(Draft.empty(len(verdicts), state.session.device), verdicts)

    @TURNS.working()
    def step(self) -> list[list[int]]:
        """Drafts and verifies once for every unfinished row.

        Returns:
            The new tokens of every row of the batch, an empty list for finished rows.

        Raises:
            ValueError: The prompts have not been read, the run is finished, or the logits hold NaN.
        """
        if not self._prefilled or self.finished:
            raise ValueError("the run cannot step: call prefill first, and step only while it is not finished.")
        state = self.state
        session = state.session
        limits = [self._tracker.remaining(row) - 1 for row in self._rows]
        begun, allowed, grade = time.perf_counter(), 0, None
        control = self._control
        if on_probation(session.storage, session.lengths):  # whose end a draft would pass before it is decided
            limits, control = [0] * len(limits), None
        if control is not None:
            grade = self._drafter.grade(state)
            allowed = min(control.length(grade), max(limits))
            limits = [min(limit, allowed) for limit in limits]
        draft = self._drafter.draft(state, limits)
        tokens = session.token_column([text[-1] for text in state.texts])
        if draft.tokens.shape[1]:
            tokens = torch.cat([tokens, draft.tokens.to(tokens.device)], 1)
        verdicts = self._verifier.verify(session.forward(tokens, draft.tree), draft, state)
        session.commit([verdict.path for verdict in verdicts])
        if control is not None:
            accepted = [len(verdict.path) - 1 for verdict in verdicts]
            control.observe(draft.depths(), accepted, allowed, time.perf_counter() - begun, grade)
        return self._take(draft, verdicts)

    def __iter__(self) -> Iterator[list[list[int]]]:
        """The tokens of every step, from the prompts on."""
        yield self.prefill()
        while not self.finished:
            yield self.step()

    def output(self) -> GenerationOutput:
        """The sequences generated so far and their statistics."""
        tracker = self._tracker
        return GenerationOutput(
            self.request.sequences(tracker.tokens).to(self.request.device or self.state.session.device),
            tracker.tokens,
            tracker.pooled,
            tracker.rows,
            tracker.audit,
            self._drafter.details,
        )

    @TURNS.working()
    def close(self) -> None:
        """Ends the run, finished or not, and frees what it holds. A session given by the caller stays open."""
        if self._closed:
            return
        self._closed = True
        try:
            session, texts = self.state.session, self.state.texts
            if self._control is not None:
                self._control.advise(self._decoder_name, self._advice)
            if self._prefilled and session.lengths:
                self._tracker.finish()
                # a draft that an error broke off has left its own keys behind the text, that of the last token included
                session.truncate([len(text) - 1 for text in texts])
                session.remember(texts)
        finally:
            self._open.close()

    def _take(self, draft: Draft, verdicts: list[Verdict]) -> list[list[int]]:
        """Adds the verified tokens to the texts and drops the rows that end with them."""
        state = self.state
        added = [draft.verified(row, verdict) for row, verdict in enumerate(verdicts)]
        logs = [verdict.log for verdict in verdicts]
        tokens, unfinished = self._tracker.emit(self._rows, added, draft.counts, logs)
        for text, new in zip(state.texts, added, strict=True):
            text.extend(new)
        self._drafter.observe(state, draft, verdicts)
        if not unfinished:
            self._rows = []
            state.session.drain()
            self._tracker.finish()
        elif len(unfinished) < len(self._rows):
            state.keep(unfinished)
            for part in (self._drafter, self._verifier):
                part.keep(unfinished)
            self._rows = [self._rows[index] for index in unfinished]
        return tokens
