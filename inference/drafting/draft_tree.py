"""Drafting a tree of fixed shape with a model of its own session (SpecVLM, arXiv 2508.16201, after EAGLE's trees)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from saccade.inference.drafting.draft_session import DraftSession, SessionDrafter
from saccade.inference.drafting.drafter import NoDraft
from saccade.inference.drafting.static_trees import StaticTree
from saccade.inference.state import GenerationState
from saccade.inference.verification.draft import Draft


class DraftTreeDrafter(SessionDrafter):
    """Tries the best tokens of the draft model behind each other in a tree.

    Tokens are picked, not drawn, so that strict sampling takes each for a certain proposal. A forward for each level
    reads the root and all inner nodes so far with the tree as their mask: a few rows cost little more than one, and no
    key of a node that was left behind is ever seen.

    Args:
        draft_session: The draft model's session.
        tree: The shape.
    """

    def __init__(self, draft_session: DraftSession, tree: StaticTree) -> None:
        self.draft_session, self.tree = draft_session, tree

    def draft(self, state: GenerationState, limits: Sequence[int]) -> Draft:
        """Proposes the tree, cut where no row can use deeper nodes."""
        depth = min(self.tree.depth, max(limits))
        if depth == 0:
            return NoDraft().draft(state, limits)
        tree = self.tree.cut(depth)
        top = self.draft_session.catch_up(state).topk(tree.width).indices[:, None]
        drafted = tree.expand(0, top)
        session = self.draft_session.session
        root = session.token_column([text[-1] for text in state.texts])
        for level in range(1, depth):
            session.truncate([length - (level == 1) for length in session.lengths])  # the root is read again
            logits = session.forward(torch.cat([root, tree.inner_tokens(level, drafted)], 1), tree.partial(level))
            top = logits[:, -len(tree.inner[level]) :].topk(tree.width).indices
            drafted = torch.cat([drafted, tree.expand(level, top)], 1)
        counts = [tree.drafted_within(min(limit, depth)) for limit in limits]
        return Draft(drafted.to(state.session.device), counts, None, tree.tree)
