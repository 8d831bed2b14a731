"""Prompt lookup decoding: drafts are copied from earlier text, without a draft model and without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from saccade.common.checks import check_count
from saccade.inference.decoder import EngineDecoder
from saccade.inference.drafting.drafter import Drafter
from saccade.inference.drafting.ngram import NgramDrafter
from saccade.inference.drafting.retrieval_store.retrieval_store import RetrievalRules
from saccade.inference.request import Request


@dataclass
class PromptLookup(EngineDecoder):
    """Drafts the tokens that followed the most recent earlier occurrence of the last n-gram (A. Saxena, 2023).

    Useful where the output repeats its input: code editing, summaries, extraction.

    Args:
        max_ngram: Size of the longest n-gram that is looked up; if it does not occur, shorter ones are tried.
        draft_length: Maximum number of drafted tokens in a round.
        control: ``auto`` drafts as many tokens as pay, up to the decoder's limit and down to none; ``fixed`` always the
            limit (:class:`saccade.inference.drafting.control.DraftControl`).
        engine: How forwards run: the name of a kind, or all settings (:class:`saccade.inference.EngineConfig`).

    Raises:
        ValueError: A setting below 1.
    """

    advice: ClassVar[str] = "use it for answers that repeat parts of their prompt"

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
        """Looks up n-grams in the text of each row."""
        return NgramDrafter(RetrievalRules("ngram", self.max_ngram), self.draft_length)
