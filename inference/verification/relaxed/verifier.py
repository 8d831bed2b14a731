"""The verifier that applies a relaxed rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from saccade.inference.choice import own_choices
from saccade.inference.huggingface.vision import special_token_ids
from saccade.inference.verification.draft import Draft, Verdict
from saccade.inference.verification.own_choice import verify_choices
from saccade.inference.verification.relaxed.fly import top_entropy
from saccade.inference.verification.relaxed.relevance import directions, visual_relevance
from saccade.inference.verification.relaxed.rule import Judged, RelaxedRule, RowState, ranks_and_ratios
from saccade.inference.verification.verifier import Verifier

if TYPE_CHECKING:
    from saccade.inference.state import GenerationState

ScoredAt = Literal["judge", "draft", "max"]
_RECENT_TOKENS = 64  # maximum length of Judged.recent


class RelaxedVerifier(Verifier):
    """Accepts the tokens that a relaxed rule accepts; the first token after the prompt is the target's choice.

    Args:
        rule: Decides on the drafted chain of every row.
        neighbours: Number of most similar video tokens whose cosines are averaged into the relevance.
        score_at: Which state gives the relevance of a token (:class:`saccade.inference.LVSpec`).
    """

    def __init__(self, rule: RelaxedRule, neighbours: int, score_at: ScoredAt) -> None:
        self.rule, self.neighbours, self.score_at = rule, neighbours, score_at
        self._rows: list[tuple[RowState, int]] = []  # the rule's state and the prompt length of every row

    def begin(self, logits: Tensor, state: GenerationState) -> list[Verdict]:
        """Creates the rule's state of every row and gives the first tokens."""
        guarded = state.eos | special_token_ids(state.session.model)
        recorded = state.session.recorded
        recorded.visual_states = [directions(states) for states in recorded.visual_states]  # normalized once
        self._rows = [(self.rule.begin(row, guarded), len(text)) for row, text in enumerate(state.texts)]
        return verify_choices(Draft.empty(len(logits), logits.device), own_choices(logits[:, None], state, [0]))

    def verify(self, logits: Tensor, draft: Draft, state: GenerationState) -> list[Verdict]:
        """Applies the rule to the draft of every row."""
        choose = own_choices(logits, state, draft.shape().depths)
        needed = self._needed_fields(logits, draft, state)
        verdicts = []
        for row, count in enumerate(draft.counts):
            fields = {name: values[row][:count] for name, values in needed.items()}
            rule_state, prompt = self._rows[row]
            recent = state.texts[row][prompt:][-_RECENT_TOKENS:]
            choices = choose([row] * (count + 1), range(count + 1))
            judged = Judged(draft.ids[row][:count], choices, recent=recent, **fields)
            ruling = self.rule.judge(judged, rule_state)
            path = list(range(ruling.accepted + 1))
            verdicts.append(Verdict(path, choices[ruling.accepted], ruling.log))
        return verdicts

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps the rule's state of the given rows and drops that of the others."""
        self._rows = [self._rows[row] for row in rows]

    def _needed_fields(self, logits: Tensor, draft: Draft, state: GenerationState) -> dict[str, Any]:
        """The fields of :class:`Judged` that the rule needs, ``[batch][drafted]`` each."""
        found: dict[str, Any] = {}
        if self.rule.needs_relevance:
            found["relevance"] = self._relevance(state, draft.tokens.shape[1]).tolist()
        if self.rule.needs_entropies:
            found["entropies"] = top_entropy(logits[:, :-1]).tolist()
        if self.rule.needs_ranks_and_ratios:
            ranks, ratios = ranks_and_ratios(logits[:, :-1], draft.tokens)
            found["ranks"], found["ratios"] = ranks.tolist(), ratios.tolist()
        return found

    def _relevance(self, state: GenerationState, drafted: int) -> Tensor:
        """Visual relevance ``[batch, drafted]`` of every drafted token."""
        states, visual = state.session.recorded.states, state.session.recorded.visual_states
        if states is None:
            raise RuntimeError("the session recorded no hidden states: open it with a Recording that has a layer.")
        rows = []
        for row, seen in enumerate(visual):
            scores = visual_relevance(states[row], seen, self.neighbours, unit=True)
            judge, own = scores[:drafted], scores[1 : drafted + 1]
            rows.append({"judge": judge, "draft": own}.get(self.score_at, torch.maximum(judge, own)))
        return torch.stack(rows)
