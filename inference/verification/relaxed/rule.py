"""Base class of relaxed rules, with their input, their output and the state of a row."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

Reason = Literal["match", "loose", "pst", "guard", "reject"]
"""Why a drafted token was accepted or rejected.

``match``: accepted, it is the target's choice. ``loose``: accepted by the rule. ``pst``: accepted, the target's choice
occurs nearby (position shift tolerance). ``guard``: rejected, a mismatch that involves a guarded token. ``reject``:
rejected by the rule.
"""

ACCEPTED: frozenset[Reason] = frozenset({"match", "loose", "pst"})


@dataclass
class AuditEntry:
    """The decision on one drafted token.

    Args:
        position: Position in the draft, from 1.
        drafted: The drafted token.
        choice: The target's choice at this position.
        relevance: Visual relevance of the position, or ``None`` if the rule does not use it.
        reason: Why the token was accepted or rejected.
    """

    position: int
    drafted: int
    choice: int
    relevance: float | None
    reason: Reason

    @property
    def relaxed(self) -> bool:
        """Whether the token was accepted although it is not the target's choice."""
        return self.reason in ("loose", "pst")


@dataclass
class Ruling:
    """The outcome of a round for one row.

    The row's text grows by ``drafted[:accepted]`` and then by the target's ``choices[accepted]``.

    Args:
        accepted: Number of leading drafted tokens that are accepted.
        log: One entry for every judged token: the accepted ones, and the rejected one if there is one.
    """

    accepted: int
    log: list[AuditEntry]


@dataclass
class Judged:
    """The input of a rule: a drafted chain of K tokens of one row, and what the target predicts for it.

    Args:
        drafted: K drafted tokens.
        choices: K + 1 choices of the target (argmax of its logits): at every drafted position, and after the last.
        relevance: K scores of visual relevance; for rules with ``needs_relevance``.
        entropies: K entropies of the target at the drafted positions
            (:func:`saccade.inference.verification.relaxed.top_entropy`); for rules with ``needs_entropies``.
        ranks: K ranks of the drafted tokens in the target's distribution, 0 for the most likely token
            (:func:`ranks_and_ratios`); for rules with ``needs_ranks_and_ratios``.
        ratios: K probabilities of the drafted tokens, each divided by the target's largest; for the same rules.
        recent: The last emitted tokens of the row before this draft, newest last. Shorter than the window of a rule at
            the start of a text.

    Raises:
        ValueError: Lists whose lengths do not fit.
    """

    drafted: list[int]
    choices: list[int]
    relevance: list[float] | None = None
    entropies: list[float] | None = None
    ranks: list[int] | None = None
    ratios: list[float] | None = None
    recent: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = len(self.drafted)
        if len(self.choices) != count + 1:
            raise ValueError(
                f"choices must hold {count + 1} tokens, one more than drafted, got {len(self.choices)}: add the "
                "target's choice after the draft."
            )
        for name in ("relevance", "entropies", "ranks", "ratios"):
            values = getattr(self, name)
            if values is not None and len(values) != count:
                raise ValueError(
                    f"{name} must hold {count} values, one for each drafted token, got {len(values)}: pass those of "
                    "this draft."
                )


@dataclass
class RowState:
    """The state that a rule keeps of one row between rounds.

    Args:
        stream: Random number generator of the row, for rules that use random numbers.
        guarded: Guarded tokens: a mismatch whose drafted token or choice is one of them is rejected.
        position: Position of the last emitted token in the row's text, counted from the start of the state.
        scores: Recent scores of judged positions.
        used: Occurrences that the position shift tolerance has used, as positions in the text.
    """

    stream: random.Random
    guarded: frozenset[int]
    position: int = 0
    scores: deque[float] = field(default_factory=deque)
    used: set[tuple[str, int]] = field(default_factory=set)


class RelaxedRule(ABC):
    """Decides how many tokens of a drafted chain are accepted, in greedy decoding.

    A subclass is a dataclass of settings and defines :meth:`judge`. ``lossless`` tells whether the output equals that
    of greedy decoding. ``needs_relevance``, ``needs_entropies`` and ``needs_ranks_and_ratios`` tell which fields of
    :class:`Judged` the rule reads. One rule is used for all rows: :meth:`judge` changes the row's state and never the
    rule.
    """

    lossless: ClassVar[bool] = False
    needs_relevance: ClassVar[bool] = False
    needs_entropies: ClassVar[bool] = False

    @property
    def needs_ranks_and_ratios(self) -> bool:
        """Whether :class:`Judged` must hold ``ranks`` and ``ratios``."""
        return False

    def begin(self, row: int = 0, guarded: Collection[int] = ()) -> RowState:
        """The state of a row at the start of its text.

        Args:
            row: Index of the row in the batch; rows have different random numbers.
            guarded: Tokens that are never part of an accepted mismatch: end of text and the model's other special
                tokens. Without this a mismatch could cut a text off or miss its end.
        """
        return RowState(random.Random(f"relaxation/{row}"), frozenset(guarded))

    @abstractmethod
    def judge(self, judged: Judged, state: RowState) -> Ruling:
        """Decides on the draft of a round and updates the row's state.

        Args:
            judged: The draft and what the target predicts for it.
            state: The row's state, from :meth:`begin`.

        Raises:
            ValueError: A field that the rule needs is ``None``.
        """


def ruling(judged: Judged, reasons: Iterator[Reason]) -> Ruling:
    """Collects reasons up to the first rejected token.

    Args:
        judged: The draft.
        reasons: One reason for each drafted token; not read beyond the first rejection.
    """
    log = []
    for place, reason in zip(range(len(judged.drafted)), reasons, strict=False):
        score = None if judged.relevance is None else judged.relevance[place]
        log.append(AuditEntry(place + 1, judged.drafted[place], judged.choices[place], score, reason))
        if reason not in ACCEPTED:
            return Ruling(place, log)
    return Ruling(len(log), log)


def guards(judged: Judged, place: int, guarded: Collection[int]) -> bool:
    """Whether the drafted token or the target's choice at a position (from 0) is guarded."""
    return judged.drafted[place] in guarded or judged.choices[place] in guarded


def required(judged: Judged, name: str) -> list[float]:
    """A field of :class:`Judged` that the rule needs.

    Raises:
        ValueError: It is ``None``.
    """
    values: list[float] | None = getattr(judged, name)
    if values is None:
        raise ValueError(f"{name} must hold one value for every drafted token, got None: pass {name} in Judged.")
    return values


def ranks_and_ratios(logits: Tensor, drafted: Tensor) -> tuple[Tensor, Tensor]:
    """Ranks and relative probabilities of drafted tokens in the target's distribution.

    Args:
        logits: ``[..., vocabulary]`` of the target, with which each token is verified.
        drafted: ``[...]`` token ids.

    Returns:
        Ranks ``[...]`` int64, the number of tokens with a larger logit (0 for the target's choice and ties with it);
        and ratios ``[...]`` float32, the token's probability divided by the largest (1 for the target's choice).
    """
    own = logits.gather(-1, drafted.to(logits.device)[..., None])
    ranks = (logits > own).sum(-1)
    return ranks, (own[..., 0].float() - logits.amax(-1).float()).exp()
