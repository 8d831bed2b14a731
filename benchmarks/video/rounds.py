"""Seconds of a decoder's round, timed with its own code for a given number of accepted drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from saccade.common.timing import median_seconds
from saccade.inference import Decoder, LVSpec, Session
from saccade.inference.drafting.draft_session import SessionDrafter
from saccade.inference.drafting.drafter import NoDraft
from saccade.inference.huggingface.models import cache_bytes
from saccade.inference.huggingface.visual_prompts import read_visual_prompts
from saccade.inference.request import Request
from saccade.inference.state import GenerationState
from saccade.inference.verification.draft import Draft
from saccade.inference.verification.relaxed import visual_relevance
from saccade.inference.verification.verifier import Verifier

_COMMITTED = 16  # new tokens that the text has when its rounds are timed


@dataclass(frozen=True)
class RoundCost:
    """Seconds of a round, and the memory of its draft.

    Args:
        whole: A round from its draft to its commit.
        draft: Its draft alone.
        relevance: Scoring the visual relevance of the drafted tokens; ``None`` where nothing is scored.
        draft_prompt: Tokens of the prompt that the draft reads; 0 without a draft model.
        draft_kv_bytes: Bytes of their keys and values.
        draft_buffer_bytes: Bytes of its buffers, with room for new tokens.
    """

    whole: float
    draft: float
    relevance: float | None = None
    draft_prompt: int = 0
    draft_kv_bytes: int = 0
    draft_buffer_bytes: int = 0


def round_cost(
    decoder: Decoder,
    model: PreTrainedModel,
    inputs: dict[str, Any],
    answer: Sequence[int],
    new: int,
    accepted: int,
    repeats: int,
) -> RoundCost:
    """Times a round after a prompt and the beginning of its answer; every repetition starts from the same text.

    Whatever the verification decides, a given number of drafts counts as accepted: so many tokens are read by the draft
    model at the start of its next draft, and so many slots are moved by the target at a commit.

    Args:
        decoder: The decoder whose rounds are timed.
        model: The target.
        inputs: One prompt with its video.
        answer: The tokens with which the target continues it.
        new: Most new tokens of a call, so that the call's buffers and graphs serve here.
        accepted: Accepted drafts of the round.
        repeats: Number of rounds of which the median is taken.
    """
    visual = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    request = Request.read(
        model, inputs["input_ids"], inputs["attention_mask"], new, None, None, None, visual, do_sample=False
    )
    drafter = decoder.drafter(model, request)
    try:
        with Session(
            model, request.positions + decoder.width, pool=decoder.pool, recording=decoder.recording(model)
        ) as session:
            state = GenerationState.of(session, request)
            state.visual = read_visual_prompts(model, request.prompts, request.visual)
            verifier = decoder.verifier(model, request)
            verifier.begin(session.prefill(request.prompts, state.visual), state)
            known = list(answer[: max(1, min(_COMMITTED, new - 1))])
            state.texts[0] += known
            if len(known) > 1:
                session.forward(torch.tensor([known[:-1]], device=session.device))
                session.commit([range(len(known) - 1)])
            return _timed(decoder, verifier, drafter, state, accepted, repeats, len(known))
    finally:
        drafter.close()


def _timed(
    decoder: Decoder,
    verifier: Verifier,
    drafter: object,
    state: GenerationState,
    accepted: int,
    repeats: int,
    known: int,
) -> RoundCost:
    """The cost of rounds after a text that the target has read."""
    session, limits = state.session, [decoder.width]
    read, length = 0, session.lengths[0]
    if isinstance(drafter, SessionDrafter):
        drafter.draft_session.catch_up(state)
        read = drafter.draft_session.session.lengths[0] - known
    proposer = drafter if isinstance(drafter, SessionDrafter) else NoDraft()
    first = proposer.draft(state, limits)
    after = drafter.draft_session.session.lengths[0] if isinstance(drafter, SessionDrafter) else 0
    path = _path(first, accepted)

    def drafted() -> Draft:
        if isinstance(drafter, SessionDrafter):
            # the draft has not read the accepted tokens and the bonus token of the round before
            drafter.draft_session.session.truncate([after - len(path)])
        return proposer.draft(state, limits)

    def a_round() -> None:
        play(verifier, state, drafted(), path)
        session.truncate([length])

    whole = median_seconds(a_round, repeats, session.device)
    draft = median_seconds(drafted, repeats, session.device)
    if not isinstance(drafter, SessionDrafter):
        return RoundCost(whole, 0.0)
    model = drafter.draft_session.model
    return RoundCost(
        whole,
        draft,
        _relevance(decoder, state, first.tokens.shape[1], repeats),
        read,
        cache_bytes(model, 1, read),
        drafter.cache_bytes,
    )


def play(verifier: Verifier, state: GenerationState, draft: Draft, path: Sequence[int]) -> None:
    """A round from its verification on; whatever that decides, a given path is committed.

    Args:
        verifier: Judges the draft.
        state: A generation of one row.
        draft: The round's draft.
        path: Nodes that are committed, the root first.
    """
    session = state.session
    last = session.token_column([state.texts[0][-1]])
    tokens = torch.cat([last, draft.tokens.to(last.device)], 1)
    verifier.verify(session.forward(tokens, draft.tree), draft, state)
    session.commit([path])


def _path(draft: Draft, accepted: int) -> list[int]:
    """The first accepted nodes of the best path."""
    children, path = draft.shape().children, [0]
    while len(path) <= accepted and children[path[-1]]:
        path.append(children[path[-1]][0])
    return path


def _relevance(decoder: Decoder, state: GenerationState, drafted: int, repeats: int) -> float | None:
    """Seconds of scoring a round's drafted tokens, as :class:`saccade.inference.LVSpec` does it."""
    noted = state.session.recorded
    if not isinstance(decoder, LVSpec) or noted.states is None:
        return None
    states, seen = noted.states[0], noted.visual_states[0]

    def scored() -> None:
        visual_relevance(states, seen, decoder.neighbours, unit=True)[:drafted].tolist()

    return median_seconds(scored, repeats, state.session.device)
