"""Judges the rounds of one generation by a relaxed rule, with what the rule asks the target for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from saccade.inference.huggingface.vision import special_token_ids
from saccade.inference.verification.draft import Draft, Verdict
from saccade.inference.verification.greedy import greedy_choices, verify_greedy
from saccade.inference.verification.relaxed.fly import top_entropy
from saccade.inference.verification.relaxed.relevance import directions, visual_relevance
from saccade.inference.verification.relaxed.rule import Judged, RelaxedRule, RowState, standing
from saccade.inference.verification.verifier import Verifier

if TYPE_CHECKING:
    from saccade.inference.state import GenerationState

ScoredAt = Literal["judge", "draft", "max"]
_LOOKS_BACK = 64  # emitted tokens that a rule is shown


class RelaxedVerifier(Verifier):
    """Accepts what the rule accepts; the first token, behind the prompt, is the target's own choice.

    Args:
        rule: Decides on every drafted chain, greedily.
        neighbours: Visual tokens whose cosines are averaged into the relevance of a place, the most similar ones.
        score_at: Whose state says how visual a place is (:class:`saccade.inference.LVSpec`).
    """

    def __init__(self, rule: RelaxedRule, neighbours: int, score_at: ScoredAt) -> None:
        self.rule, self.neighbours, self.score_at = rule, neighbours, score_at
        self._rows: list[tuple[RowState, int]] = []  # the rule's state, and the length of the prompt

    def begin(self, logits: Tensor, state: GenerationState) -> list[Verdict]:
        """Sets up the rule's state of every row."""
        guarded = state.eos | special_token_ids(state.session.model)
        recorded = state.session.recorded
        recorded.visual_states = [directions(states) for states in recorded.visual_states]  # once for all rounds
        self._rows = [(self.rule.begin(row, guarded), len(text)) for row, text in enumerate(state.texts)]
        return verify_greedy(logits[:, None], Draft.empty(len(logits), logits.device))

    def verify(self, logits: Tensor, draft: Draft, state: GenerationState) -> list[Verdict]:
        """Asks the rule about every row."""
        choices = greedy_choices(logits)
        extra = self._evidence(logits, draft, state)
        verdicts = []
        for row, count in enumerate(draft.counts):
            known = {name: values[row][:count] for name, values in extra.items()}
            rule_state, prompt = self._rows[row]
            recent = state.texts[row][prompt:][-_LOOKS_BACK:]
            judged = Judged(draft.ids[row][:count], choices[row][: count + 1], recent=recent, **known)
            ruling = self.rule.judge(judged, rule_state)
            path = list(range(ruling.accepted + 1))
            verdicts.append(Verdict(path, choices[row][ruling.accepted], ruling.log))
        return verdicts

    def keep(self, rows: Sequence[int]) -> None:
        """Drops the rule's state of finished rows."""
        self._rows = [self._rows[row] for row in rows]

    def _evidence(self, logits: Tensor, draft: Draft, state: GenerationState) -> dict[str, Any]:
        """What the rule asks for, ``[batch][drafted]`` each."""
        found: dict[str, Any] = {}
        if self.rule.needs_relevance:
            found["relevance"] = self._relevance(state, draft.tokens.shape[1]).tolist()
        if self.rule.needs_entropies:
            found["entropies"] = top_entropy(logits[:, :-1]).tolist()
        if self.rule.needs_standing:
            ranks, ratios = standing(logits[:, :-1], draft.tokens)
            found["ranks"], found["ratios"] = ranks.tolist(), ratios.tolist()
        return found

    def _relevance(self, state: GenerationState, drafted: int) -> Tensor:
        """``[batch, drafted]``: how visual every drafted place is."""
        states, visual = state.session.recorded.states, state.session.recorded.visual_states
        if states is None:
            raise RuntimeError("the session has recorded no states: LVSpec.recording asks for them.")
        rows = []
        for row, seen in enumerate(visual):
            scores = visual_relevance(states[row], seen, self.neighbours, unit=True)
            judge, own = scores[:drafted], scores[1 : drafted + 1]
            rows.append({"judge": judge, "draft": own}.get(self.score_at, torch.maximum(judge, own)))
        return torch.stack(rows)
