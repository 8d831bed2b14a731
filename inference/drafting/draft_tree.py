"""Drafting trees of fixed shape with a draft session (SpecVLM, arXiv 2508.16201, after EAGLE)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from saccade.inference.choice import best_tokens
from saccade.inference.drafting.draft_session import DraftSession, SessionDrafter
from saccade.inference.drafting.drafter import NoDraft
from saccade.inference.drafting.loading import known_tokens
from saccade.inference.drafting.static_trees import StaticTree
from saccade.inference.state import GenerationState
from saccade.inference.verification.draft import Draft


class DraftTreeDrafter(SessionDrafter):
    """Drafts a tree of the draft model's best tokens: the most likely, or the best by the noise that the target shares.

    Tokens are picked and not drawn, so rejection sampling treats each as proposed with probability 1. One
    forward per level reads the root and all inner nodes drafted so far, with the tree as its mask. Reading a few nodes
    again costs little, and no node can attend to keys of another branch.

    Args:
        draft_session: The draft model's session.
        tree: The shape of the tree.
    """

    def __init__(self, draft_session: DraftSession, tree: StaticTree) -> None:
        self.draft_session, self.tree = draft_session, tree

    def draft(self, state: GenerationState, limits: Sequence[int]) -> Draft:
        """Proposes the tree, cut at the depth that at least one row can use."""
        depth = min(self.tree.depth, max(limits))
        if depth == 0:
            return NoDraft().draft(state, limits)
        tree = self.tree.cut(depth)
        top = best_tokens(self.draft_session.catch_up(state)[:, None], state, [0], tree.width)
        drafted = tree.expand(0, top)
        session = self.draft_session.session
        root = session.token_column(known_tokens(self.draft_session.model, [text[-1] for text in state.texts]))
        for level in range(1, depth):
            session.truncate([length - (level == 1) for length in session.lengths])  # the root is read again
            logits = session.forward(torch.cat([root, tree.inner_tokens(level, drafted)], 1), tree.partial(level))
            inner = len(tree.inner[level])
            logits = self.draft_session.fitted(logits[:, -inner:], state)
            top = best_tokens(logits, state, [level] * inner, tree.width)
            drafted = torch.cat([drafted, tree.expand(level, top)], 1)
        counts = [tree.drafted_within(min(limit, depth)) for limit in limits]
        return Draft(drafted.to(state.session.device), counts, None, tree.tree)
