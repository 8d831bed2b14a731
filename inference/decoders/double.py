"""Double: parallel speculation in which both the draft model and the target look up continuations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import nn

from saccade.common.checks import check_choice, check_count
from saccade.inference.drafting.drafter import Drafter
from saccade.inference.drafting.retrieval_store.retrieval_store import IndexKind, RetrievalRules
from saccade.inference.drafting.retrieval_store.text_store import TextStore
from saccade.inference.parallel.burst import MOST_LOOKED_UP
from saccade.inference.parallel.decoder import ParallelDecoder
from saccade.inference.parallel.rounds import LookUp
from saccade.inference.request import Request

Sides = Literal["both", "draft", "target", "none"]
"""Which models look continuations up."""


@dataclass
class Double(ParallelDecoder):
    """Double-retrieval speculative parallelism (Y. Shen et al., ACL 2026, arXiv 2601.05524), exact also for sampling.

    The draft model writes on while the target verifies, as in :class:`Pearl`. In each of its forwards the draft model
    reads a continuation that was looked up in the text, and keeps what it would write itself; so a round may give more
    than ``gamma`` tokens. The target reads one behind the pending tokens, so a round that rejects the draft's block
    still gives what the target confirms of it. The rule by which both are combined is ours: it is exact for greedy and
    sampled text, which the published code is not.

    Args:
        draft_model: The draft model: a path or hub id, loaded at first use in the target's precision, or a loaded
            model.
        gamma: Forwards of the draft model in a round: about as many as take as long as one forward of the target.
        retrieval: Who looks up: ``both``, ``draft``, ``target`` or ``none``, which is :class:`Pearl`.
        candidate_length: Most looked-up tokens of a forward.
        index: How texts are looked up: ``automaton`` for matches of any length, ``ngram``, or ``released`` for the
            rules of the published code.
        max_ngram: Size of the longest n-gram that is looked up; the automaton has no such limit in the text itself.
        target_min_ngram: Size of the shortest match that the target is asked about.
        store: A file of texts to look up besides, see :class:`saccade.inference.TextStore`; ``None`` for none.
        devices: Where the draft model runs: the name of a device, or ``auto``, which is another GPU if there is one
            that the target does not use and no other process decides about, else the target's device. On one GPU both
            share it on two streams; on a processor one works after the other.
        control: ``auto`` chooses by what was measured between rounds without draft, with look-up alone, and with up to
            ``gamma`` forwards of the draft model (:class:`saccade.inference.parallel.control.RoundControl`); ``fixed``
            has ``gamma`` of them in every round.
        engine: How forwards of both models run: the name of a kind, or all settings
            (:class:`saccade.inference.EngineConfig`).

    Raises:
        ValueError: A setting outside its range, a draft model that cannot be loaded or has another vocabulary, or a
            store that cannot be read or was made with another tokenizer.
    """

    retrieval: Sides = "both"
    candidate_length: int = 10
    index: IndexKind = "automaton"
    max_ngram: int = 3
    target_min_ngram: int = 1
    store: str | None = None
    _read: dict[str, TextStore] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("retrieval", self.retrieval, get_args(Sides))
        check_count("candidate_length", self.candidate_length)
        if self.candidate_length > MOST_LOOKED_UP:
            raise ValueError(
                f"candidate_length must be at most {MOST_LOOKED_UP}, got {self.candidate_length}: lower it."
            )
        check_count("target_min_ngram", self.target_min_ngram)
        self._rules()

    def _rules(self) -> tuple[RetrievalRules, RetrievalRules]:
        broad = RetrievalRules(self.index, self.max_ngram)
        return broad, RetrievalRules(self.index, self.max_ngram, min(self.target_min_ngram, self.max_ngram))

    def look_up(self) -> LookUp:
        """What both sides look up."""
        broad, strict = self._rules()
        draft, target = (
            self.candidate_length if self.retrieval in ("both", side) else 0 for side in ("draft", "target")
        )
        return LookUp(draft, target, broad, strict, None if self.store is None else self._read.get(self.store))

    def drafter(self, model: nn.Module, request: Request) -> Drafter:
        """Proposes what the draft model has written and both sides have looked up."""
        self._check_store(model)
        return super().drafter(model, request)

    def check(self, model: nn.Module | None = None) -> None:
        """Checks the settings, reads the store, and checks that it fits the model.

        Args:
            model: The target; ``None`` checks only what does not depend on it.

        Raises:
            ValueError: A setting cannot work; the message names it.
        """
        super().check(model)
        self._check_store(model)

    def check_unseen(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], tokenizer: Any) -> None:
        """Refuses a store that knows the answers, or was made with another tokenizer.

        Args:
            prompts: Token ids of the prompts.
            answers: Token ids of their answers, as far as they are known.
            tokenizer: The tokenizer that made them; ``None`` if it is not known.

        Raises:
            ValueError: The store does not fit.
        """
        self._check_store(None)
        if self.store is not None:
            store = self._read[self.store]
            if tokenizer is not None:
                store.check_tokenizer(tokenizer)
            store.check_unseen(prompts, answers)

    def _check_store(self, model: nn.Module | None) -> None:
        if self.store is not None:
            if self.store not in self._read:
                self._read[self.store] = TextStore.load(self.store)
            if model is not None:
                self._read[self.store].check_model(model)
