"""The contract of a relaxed rule: what it sees of a drafted chain, what it answers, and what it remembers of a row."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

Reason = Literal["match", "loose", "pst", "guard", "reject"]
"""Why a drafted token stands or falls: it is the target's choice; the rule lets it stand; the target's choice occurs
nearby (position shift tolerance); a guarded token is involved, so it falls; the rule lets it fall."""

STANDING: frozenset[Reason] = frozenset({"match", "loose", "pst"})


@dataclass
class AuditEntry:
    """What became of one drafted token.

    Args:
        position: Place in the draft, from 1.
        drafted: The drafted token.
        choice: The target's own choice at this place.
        relevance: Visual relevance of the place, where it was scored.
        reason: Why the token stands or falls.
    """

    position: int
    drafted: int
    choice: int
    relevance: float | None
    reason: Reason


@dataclass
class Ruling:
    """The outcome of a round for one row.

    The row's text grows by ``drafted[:accepted]`` and then by the target's own ``choices[accepted]``.

    Args:
        accepted: How many drafted tokens stand, from the first on.
        log: One entry for every judged token: those that stand, and the one that fell if one did.
    """

    accepted: int
    log: list[AuditEntry]

    @property
    def loosened(self) -> int:
        """Emitted tokens that are not the target's own choice in their context."""
        return sum(entry.reason in ("loose", "pst") for entry in self.log)


@dataclass
class Judged:
    """A drafted chain of K tokens of one row, and what the target says about it.

    Args:
        drafted: K drafted tokens.
        choices: K + 1 choices of the target (argmax of its logits): at every drafted place, and behind the last.
        relevance: K scores of visual relevance; for rules with ``needs_relevance``.
        entropies: K entropies of the target at the drafted places
            (:func:`saccade.inference.verification.relaxed.top_entropy`); for rules with ``needs_entropies``.
        ranks: K ranks of the drafted tokens in the target's distribution, 0 the best (:func:`standing`); for rules
            with ``needs_standing``.
        ratios: K probabilities of the drafted tokens, each divided by the target's largest; likewise.
        recent: The last emitted tokens of the row, newest last, without those of this draft. May be shorter than a
            rule looks back, at the start of a text.

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
                "target's choice behind the draft."
            )
        for name in ("relevance", "entropies", "ranks", "ratios"):
            values = getattr(self, name)
            if values is not None and len(values) != count:
                raise ValueError(f"{name} must hold {count} values, one for each drafted token, got {len(values)}.")


@dataclass
class RowState:
    """What a rule remembers of one row from round to round.

    Args:
        stream: Random numbers of the row, for rules that draw.
        guarded: Tokens that no rule lets stand in place of another, nor another in place of them.
        position: Place of the last emitted token in the row's text, counted from where the state began; it gives
            occurrences of tokens a lasting name.
        scores: Recent scores of judged places.
        used: Occurrences that have already excused a shift, by place in the text.
    """

    stream: random.Random
    guarded: frozenset[int]
    position: int = 0
    scores: deque[float] = field(default_factory=deque)
    used: set[tuple[str, int]] = field(default_factory=set)


class RelaxedRule(ABC):
    """Decides how much of a drafted chain stands; a subclass is a dataclass of settings and writes ``judge``.

    ``lossless`` says whether greedy output is that of greedy decoding. ``needs_relevance``, ``needs_entropies`` and
    ``needs_standing`` say what :class:`Judged` must hold. Rules are for greedy decoding.

    A rule only changes its state in ``judge``; settings stay as they are, so that one rule serves all rows.
    """

    lossless: ClassVar[bool] = False
    needs_relevance: ClassVar[bool] = False
    needs_entropies: ClassVar[bool] = False

    @property
    def needs_standing(self) -> bool:
        """Whether :class:`Judged` must hold ``ranks`` and ``ratios``."""
        return False

    def begin(self, row: int = 0, guarded: Collection[int] = ()) -> RowState:
        """The state of a row at the start of its text.

        Args:
            row: Row of the batch, which sets its random numbers apart.
            guarded: Tokens where the draft must match whatever the rule says: end of text and the model's other
                special tokens. A loosened end of text would cut the answer off, or run past its end.
        """
        return RowState(random.Random(f"relaxation/{row}"), frozenset(guarded))

    @abstractmethod
    def judge(self, judged: Judged, state: RowState) -> Ruling:
        """Rules on one round and updates the row's state.

        Args:
            judged: The draft and what the target says about it.
            state: The row's state, from :meth:`begin`.

        Raises:
            ValueError: What the rule needs is not there.
        """


def ruling(judged: Judged, reasons: Iterator[Reason]) -> Ruling:
    """Reads reasons place by place until a token falls.

    Args:
        judged: The draft.
        reasons: One reason for each drafted token; asked for only while every token before stands.
    """
    log = []
    for place, reason in zip(range(len(judged.drafted)), reasons, strict=False):
        score = None if judged.relevance is None else judged.relevance[place]
        log.append(AuditEntry(place + 1, judged.drafted[place], judged.choices[place], score, reason))
        if reason not in STANDING:
            return Ruling(place, log)
    return Ruling(len(log), log)


def guards(judged: Judged, place: int, guarded: Collection[int]) -> bool:
    """Whether a guarded token is drafted or chosen at this place (from 0)."""
    return judged.drafted[place] in guarded or judged.choices[place] in guarded


def required(judged: Judged, name: str) -> list[float]:
    """A list of the draft that a rule cannot do without.

    Raises:
        ValueError: It is ``None``.
    """
    values: list[float] | None = getattr(judged, name)
    if values is None:
        raise ValueError(f"the rule needs {name} of every drafted token, got None: pass them in Judged.")
    return values


def standing(logits: Tensor, drafted: Tensor) -> tuple[Tensor, Tensor]:
    """How well the target thinks of the drafted tokens.

    Args:
        logits: ``[..., vocabulary]`` of the target, those that judge each token.
        drafted: ``[...]`` token ids.

    Returns:
        ``[...]`` int64, how many tokens have a larger logit (0 for the choice and what ties with it); and ``[...]``
        float32, the token's probability divided by the largest (1 for the choice).
    """
    own = logits.gather(-1, drafted.to(logits.device)[..., None])
    ranks = (logits > own).sum(-1)
    return ranks, (own[..., 0].float() - logits.amax(-1).float()).exp()
