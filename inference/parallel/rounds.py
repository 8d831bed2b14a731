"""Rounds of parallel speculation: the target verifies what is pending while the draft model writes on."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from saccade.inference.choice import own_choices
from saccade.inference.drafting.draft_session import DraftSession, SessionDrafter
from saccade.inference.drafting.retrieval_store.retrieval_store import RetrievalRules, RetrievalStore
from saccade.inference.drafting.retrieval_store.text_store import TextStore
from saccade.inference.parallel.burst import Block, DraftBurst
from saccade.inference.parallel.counts import ParallelCounts
from saccade.inference.parallel.overlap import Overlap
from saccade.inference.parallel.walk import Outcome, walk
from saccade.inference.state import GenerationState
from saccade.inference.trees import MAX_NODES
from saccade.inference.verification.draft import Draft, Verdict
from saccade.inference.verification.own_choice import verify_choices
from saccade.inference.verification.verifier import Verifier

MOST_READ = MAX_NODES - 1
"""Tokens that the target reads in a round behind the last verified one."""


@dataclass(frozen=True)
class LookUp:
    """What both sides look up.

    Args:
        draft: Most tokens that the draft model is asked about in each of its forwards; 0 looks nothing up.
        target: Most tokens that the target is asked about behind the pending ones; 0 looks nothing up.
        rules: How the draft model's side looks up.
        strict: How the target's side looks up.
        store: Texts that do not change, for both.
    """

    draft: int = 0
    target: int = 0
    rules: RetrievalRules = field(default_factory=RetrievalRules)
    strict: RetrievalRules = field(default_factory=RetrievalRules)
    store: TextStore | None = None


@dataclass
class _Row:
    """A row of the generation.

    Args:
        strict: What the target's side looks up; holds verified tokens only.
        broad: What the draft's side looks up: the same text, and rejected drafts.
        pending: What the draft has written behind the text, not verified yet.
        candidate: Looked-up tokens behind the pending ones, in the present round.
        block: What the draft has written in the present round.
    """

    strict: RetrievalStore
    broad: RetrievalStore
    pending: Block = field(default_factory=Block)
    candidate: list[int] = field(default_factory=list)
    block: Block = field(default_factory=Block)


class ParallelDrafter(SessionDrafter):
    """Proposes what is pending and a looked-up continuation; the draft model writes on while these are verified.

    A round is: the target reads the last token, the pending ones and the continuation; meanwhile the draft model
    continues the text behind the pending ones (:class:`DraftBurst`). Where all pending tokens are accepted and the
    draft's block begins with what the target says behind them, the rest of the block is pending in the next round. So
    drafting costs no time of its own. If the draft model fails, the target goes on alone, and a warning says so once.

    Args:
        draft_session: The draft model's session.
        gamma: Forwards of the draft model in a round.
        most: Most tokens of a block.
        look_up: What is looked up.
        overlap: Where the draft model works.
        limit: Most new tokens of a row.
        name: The decoder's name, for the warning.

    Attributes:
        counts: What the rounds have done.
    """

    def __init__(
        self,
        draft_session: DraftSession,
        gamma: int,
        most: int,
        look_up: LookUp,
        overlap: Overlap,
        limit: int,
        name: str,
    ) -> None:
        self.draft_session, self.look_up, self.overlap, self.name = draft_session, look_up, overlap, name
        self.counts = ParallelCounts()
        self._burst: DraftBurst | None = DraftBurst(draft_session, look_up.draft, most)
        self._rows: list[_Row] = []
        self.gamma, self._gamma = gamma, 0
        self._new = limit
        self._limits = [limit] * len(draft_session.prompts)

    @property
    def details(self) -> dict[str, float]:
        """The numbers of :class:`ParallelCounts`."""
        return self.counts.to_dict()

    @property
    def verifier(self) -> Verifier:
        """The verifier, which runs the draft model while the target's forward is under way."""
        return ParallelVerifier(self)

    def draft(self, state: GenerationState, limits: Sequence[int]) -> Draft:
        """What the target reads in this round: pending tokens and a continuation of them.

        Rows that cannot use all pending tokens before their limit get no continuation: they end in this round, or
        reject a pending token.
        """
        allowed = max(limits)
        if state.controlled:  # then the limits say what kind of round this is, see RoundControl
            self._gamma, asks = min(self.gamma, max(0, allowed - 1)), allowed > 0
            limits = [left - 1 for left in self._left(state)]
        else:
            asks = True
        self._limits = [limit + 1 for limit in limits]
        proposals = []
        vocabulary = state.session.model.get_input_embeddings().num_embeddings  # type: ignore[operator]
        for row, limit in zip(self._rows, limits, strict=True):
            pending = row.pending.tokens
            room = min(self.look_up.target * asks, limit - len(pending), MOST_READ - len(pending))
            row.candidate = [min(token, vocabulary - 1) for token in row.strict.find(room, pending)] if room > 0 else []
            proposals.append([*pending[:limit], *row.candidate])
        longest = max(len(proposal) for proposal in proposals)
        padded = [proposal + [0] * (longest - len(proposal)) for proposal in proposals]
        tokens = torch.tensor(padded, dtype=torch.long, device=state.session.device).reshape(len(padded), longest)
        return Draft(tokens, [len(proposal) for proposal in proposals])

    def _left(self, state: GenerationState) -> list[int]:
        """New tokens that every row may still have."""
        prompts = [len(self.draft_session.prompts[row]) for row in self.draft_session.rows]
        return [self._new - len(text) + prompt for text, prompt in zip(state.texts, prompts, strict=True)]

    def write_on(self, state: GenerationState) -> None:
        """Lets the draft model continue the texts behind what is pending, beside what the target has been given."""
        if not self._rows:
            self._rows = [self._row() for _ in state.texts]
            for row, text in zip(self._rows, state.texts, strict=True):
                row.strict.extend(text)
        for row in self._rows:
            row.block = Block()
        gamma = self._gamma if state.controlled else self.gamma
        if self._burst is None or not gamma:
            return
        pending = [row.pending.tokens for row in self._rows]
        left = [limit - len(tokens) for limit, tokens in zip(self._limits, pending, strict=True)]
        limits = [limit if limit > 1 else 0 for limit in left]  # the first token of a block comes with this round
        try:
            with self.overlap.beside():
                blocks = self._burst(state, pending, [row.broad for row in self._rows], limits, gamma)
            self.overlap.join()
        except Exception as error:
            self._burst = None
            warnings.warn(
                f"{self.name}: the draft model failed ({type(error).__name__}: {error}), so decoding goes on with the "
                "target alone; the text is not affected.",
                stacklevel=2,
            )
            return
        for row, block in zip(self._rows, blocks, strict=True):
            row.block = block

    def judge(self, logits: Tensor, draft: Draft, state: GenerationState) -> list[Verdict]:
        """The target's verdicts, and what stays pending.

        Args:
            logits: ``[batch, 1 + drafted, vocabulary]`` of the target.
            draft: What it has read.
            state: The generation.

        Raises:
            ValueError: The logits hold NaN.
        """
        if state.sampling is not None and not state.noisy:
            outcomes = []
            for place, (row, stream) in enumerate(zip(self._rows, state.streams, strict=True)):
                pending = len(row.pending.tokens)
                whole = draft.counts[place] >= pending
                target = state.sampling.probabilities(logits[place, : draft.counts[place] + 1])
                known = row.pending if whole else row.pending.first(draft.counts[place])
                outcomes.append(walk(target, known, row.candidate, row.block if whole else Block(), stream))
        else:
            verdicts = verify_choices(draft, own_choices(logits, state, draft.shape().depths))
            outcomes = [
                self._followed(row, draft.verified(place, verdict))
                for place, (row, verdict) in enumerate(zip(self._rows, verdicts, strict=True))
            ]
        for row, outcome in zip(self._rows, outcomes, strict=True):
            self._count(row, outcome)
            self._keep_rejected(row, outcome)
            row.pending = outcome.pending
        return [Verdict(list(range(len(outcome.tokens))), outcome.tokens[-1]) for outcome in outcomes]

    def _followed(self, row: _Row, tokens: list[int]) -> Outcome:
        """What stays pending where a token is accepted if it is the target's own choice."""
        pending, block = row.pending.tokens, row.block.tokens
        behind = tokens[len(pending) :]
        agrees = tokens[: len(pending)] == pending and behind and block[: len(behind)] == behind
        return Outcome(tokens, row.block.rest(len(behind)) if agrees else Block())

    def _count(self, row: _Row, outcome: Outcome) -> None:
        """Counts a round."""
        counts, block, pending = self.counts, row.block, row.pending.tokens
        confirmed = outcome.tokens[: len(pending)] == pending
        behind = outcome.tokens[len(pending) :]
        counts.rounds += 1
        counts.tokens += len(outcome.tokens)
        counts.pending_rounds += bool(pending)
        counts.pending_rejected += not confirmed
        counts.block_rejected += confirmed and behind[: len(block.tokens)] != block.tokens[: len(behind)]
        counts.draft_forwards += block.forwards
        counts.draft_hits += block.hits
        counts.draft_looked_up += block.looked_up
        counts.draft_kept += block.kept
        counts.target_hits += bool(row.candidate)
        counts.target_looked_up += len(row.candidate)
        counts.target_kept += len(behind) - 1 if confirmed and behind else 0

    def _keep_rejected(self, row: _Row, outcome: Outcome) -> None:
        """Keeps what the draft has written and the target has not confirmed: later drafts may look it up."""
        written = [*row.pending.tokens, *row.block.tokens]
        confirmed = [*outcome.tokens, *outcome.pending.tokens]
        if self.look_up.draft and written[: len(confirmed)] != confirmed[: len(written)]:
            row.broad.reject([*row.strict.text.tokens[-self.look_up.rules.max_ngram :], *written])

    def observe(self, state: GenerationState, draft: Draft, verdicts: Sequence[Verdict]) -> None:
        """Indexes the tokens committed since the last round; the texts looked up hold no token that is not verified."""
        for row, text in zip(self._rows, state.texts, strict=True):
            row.strict.extend(text[row.strict.length :])

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps the given rows and drops the others."""
        self._rows = [self._rows[row] for row in rows]
        if self._burst is not None:
            with self.overlap.beside():  # rows of its cache are moved
                self._burst.keep(rows)

    def _row(self) -> _Row:
        strict = RetrievalStore(self.look_up.strict, self.look_up.store)
        return _Row(strict, RetrievalStore(self.look_up.rules, self.look_up.store, strict.text))


class ParallelVerifier(Verifier):
    """Lets the draft model write on while the target's forward is under way, then judges by the strict rules.

    Args:
        drafter: The drafter.
    """

    def __init__(self, drafter: ParallelDrafter) -> None:
        self.drafter = drafter

    def verify(self, logits: Tensor, draft: Draft, state: GenerationState) -> list[Verdict]:
        """Runs the draft model, then accepts what the target says itself, or verifies by rejection sampling."""
        counts, begun = self.drafter.counts, time.perf_counter()
        self.drafter.write_on(state)
        written = time.perf_counter()
        verdicts = self.drafter.judge(logits, draft, state)
        counts.draft_seconds += written - begun
        counts.judge_seconds += time.perf_counter() - written
        return verdicts
