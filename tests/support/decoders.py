"""The registry of decoders under test, and decoders whose drafts a test chooses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from saccade.inference import (
    AssistedDecoding,
    Autoregressive,
    Decoder,
    Double,
    LVSpec,
    Pearl,
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


@dataclass(frozen=True)
class DecoderCase:
    """A decoder and its settings, as the shared tests build it.

    Args:
        kind: The decoder's class.
        settings: Its arguments as a YAML file would give them, except the draft model.
        draft_layers: Number of the target's first layers that its draft model consists of; 0 if it takes none.
        video: Whether it drafts from videos.
    """

    kind: type[Decoder]
    settings: dict[str, Any] = field(default_factory=dict)
    draft_layers: int = 0
    video: bool = False

    def build(self, draft_model: PreTrainedModel | str | None = None) -> Decoder:
        """A new decoder, with this draft model if it takes one."""
        drafts = {"draft_model": draft_model} if self.draft_layers else {}
        return self.kind(**drafts, **copy.deepcopy(self.settings))

    def __call__(self, model: PreTrainedModel) -> Decoder:
        """A new decoder for a language model, with a draft model made of that model's first layers."""
        return self.build(copy_layers(model, self.draft_layers) if self.draft_layers else None)

    def entry(self, draft_model: str) -> dict[str, Any]:
        """The decoder as a YAML file names it."""
        drafts = {"draft_model": draft_model} if self.draft_layers else {}
        return {"class_path": f"saccade.inference.{self.kind.__name__}", "init_args": drafts | self.settings}


HALF = {"attention": [1, 2], "mlp": [1]}

CASES: dict[str, DecoderCase] = {
    "autoregressive": DecoderCase(Autoregressive),
    "prompt_lookup": DecoderCase(PromptLookup),
    "assisted": DecoderCase(AssistedDecoding, {"draft_length": 4, "confidence_threshold": 0.0}, draft_layers=1),
    "assisted_sure": DecoderCase(AssistedDecoding, {"draft_length": 7, "confidence_threshold": 0.3}, draft_layers=2),
    "self_speculative": DecoderCase(SelfSpeculative, {"skip": HALF, "draft_length": 12, "gamma": 0.2, "beta2": 0.5}),
    "self_speculative_static": DecoderCase(
        SelfSpeculative, {"skip": HALF, "draft_length": 3, "gamma": 0.0, "adaptive": False}
    ),
    "pearl": DecoderCase(Pearl, {"gamma": 3}, draft_layers=2),
    "double": DecoderCase(Double, {"gamma": 2, "candidate_length": 4}, draft_layers=2),
    "double_released": DecoderCase(Double, {"gamma": 1, "candidate_length": 3, "index": "released"}, draft_layers=1),
    "specvlm": DecoderCase(SpecVLM, {"prune_ratio": 0.5}, video=True),
    "specvlm_draft": DecoderCase(SpecVLM, {"selector": "uniform", "tree": "chain"}, draft_layers=2, video=True),
    "lvspec": DecoderCase(LVSpec, {"draft_length": 5}, video=True),
    "lvspec_draft": DecoderCase(LVSpec, {"draft_length": 5}, draft_layers=2, video=True),
}
"""The only list of decoders under test: an entry here is all that the shared tests need to know of a new one."""

DECODERS = {name: case for name, case in CASES.items() if not case.video}
VIDEO_DECODERS = {name: case for name, case in CASES.items() if case.video}
LOSSLESS = {name: case for name, case in DECODERS.items() if case.kind.lossless}
METHODS = list(dict.fromkeys(case.kind for case in CASES.values()))
"""The decoders' classes, each once."""


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
