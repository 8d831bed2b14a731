"""Every decoder under test, in one place: a new decoder joins the whole matrix with one line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from saccade.inference import (
    AssistedDecoding,
    Autoregressive,
    Decoder,
    LVSpec,
    PromptLookup,
    SelfSpeculative,
    SpecVLM,
)
from saccade.inference.drafting.drafter import Drafter
from saccade.inference.request import Request
from saccade.inference.state import GenerationState
from saccade.inference.trees import TokenTree
from saccade.inference.verification.draft import Draft
from tests.support.models import copy_layers

HALF = {"attention": [1, 2], "mlp": [1]}

DECODERS: dict[str, Callable[[PreTrainedModel], Decoder]] = {
    "autoregressive": lambda model: Autoregressive(),
    "prompt_lookup": lambda model: PromptLookup(),
    "assisted": lambda model: AssistedDecoding(copy_layers(model, 1), draft_length=4, confidence_threshold=0.0),
    "assisted_sure": lambda model: AssistedDecoding(copy_layers(model, 2), draft_length=7, confidence_threshold=0.3),
    "self_speculative": lambda model: SelfSpeculative(skip=HALF, draft_length=12, gamma=0.2, beta2=0.5),
    "self_speculative_static": lambda model: SelfSpeculative(skip=HALF, draft_length=3, gamma=0.0, adaptive=False),
}

VIDEO_DECODERS: dict[str, Callable[[PreTrainedModel], Decoder]] = {
    "specvlm": lambda draft: SpecVLM(prune_ratio=0.5),
    "specvlm_draft": lambda draft: SpecVLM(draft, selector="uniform", tree="chain"),
    "lvspec": lambda draft: LVSpec(draft_length=5),
    "lvspec_draft": lambda draft: LVSpec(draft, draft_length=5),
}
"""Decoders that draft from videos, each from a draft model of the target's family that it may use."""


class Proposals(Drafter):
    """Proposes whatever a function says: ``propose(text, limit) -> tokens`` for every row."""

    def __init__(self, propose: Callable[[list[int], int], list[int]]) -> None:
        self.propose = propose

    def draft(self, state: GenerationState, limits: Sequence[int]) -> Draft:
        rows = [self.propose(text, limit)[:limit] for text, limit in zip(state.texts, limits, strict=True)]
        width = max(len(row) for row in rows)
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.long)
        return Draft(tokens.reshape(len(rows), width), [len(row) for row in rows])


class Proposing(Decoder):
    """A decoder whose drafts come from a function of the text, at most 6 tokens a round."""

    def __init__(self, propose: Callable[[list[int], int], list[int]]) -> None:
        self.propose = propose

    @property
    def width(self) -> int:
        return 6

    def drafter(self, model: nn.Module, request: Request) -> Drafter:
        return Proposals(lambda text, limit: self.propose(text, limit)[:6])


class TreeProposals(Drafter):
    """Proposes a tree of fixed shape whose nodes' tokens come from a function of the text."""

    def __init__(self, tree: TokenTree, propose: Callable[[list[int]], list[int]]) -> None:
        self.tree, self.propose = tree, propose

    def draft(self, state: GenerationState, limits: Sequence[int]) -> Draft:
        depth = max(self.tree.depths)
        if min(limits) < depth:
            return Draft(torch.empty(len(limits), 0, dtype=torch.long), [0] * len(limits))
        tokens = torch.tensor([self.propose(text) for text in state.texts])
        return Draft(tokens, [len(self.tree) - 1] * len(limits), None, self.tree)


class ProposingTrees(Decoder):
    """A decoder that drafts token trees."""

    def __init__(self, tree: TokenTree, propose: Callable[[list[int]], list[int]]) -> None:
        self.tree, self.propose = tree, propose

    @property
    def width(self) -> int:
        return len(self.tree) - 1

    def drafter(self, model: nn.Module, request: Request) -> Drafter:
        return TreeProposals(self.tree, self.propose)
