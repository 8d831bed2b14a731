"""Prompt lookup decoding: drafts are copied from the text so far; needs no model and no training."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from saccade.common.checks import check_count
from saccade.inference.decoder import EngineDecoder
from saccade.inference.drafting.drafter import Drafter
from saccade.inference.drafting.ngram import NgramDrafter
from saccade.inference.request import Request


@dataclass
class PromptLookup(EngineDecoder):
    """Drafts what followed the most recent earlier occurrence of the text's last n-gram (A. Saxena, 2023).

    Good where the output repeats its input: code editing, summaries, extraction.

    Args:
        max_ngram: Longest n-gram that is looked up; shorter ones follow when it does not occur.
        draft_length: Most drafted tokens in a round.
        engine: How forwards run: the name of a kind, or all settings (:class:`saccade.inference.EngineConfig`).

    Raises:
        ValueError: A setting below 1.
    """

    max_ngram: int = 3
    draft_length: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_ngram", "draft_length"):
            check_count(name, getattr(self, name))

    @property
    def width(self) -> int:
        """The draft length."""
        return self.draft_length

    def drafter(self, model: nn.Module, request: Request) -> Drafter:
        """Looks up n-grams of the rows' own texts."""
        return NgramDrafter(self.max_ngram, self.draft_length)
