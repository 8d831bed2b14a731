"""Rules, training requests and events of the search of Trait.

Weights have ids: 0 is the base model, ``n`` the model of trial ``n``, ``-1 - k`` the model of the warm-up on source
``k``. The field ``drop`` of an event lists ids that are no longer needed; those of the root and of the best model are
never among them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from saccade.callbacks.trait.selectors import State
from saccade.common.checks import check_choice


@dataclass(frozen=True)
class Preset:
    """The rules of a search.

    Args:
        root: ``measured`` evaluates the base model; ``zero`` sets its score to 0, so that the first trial is always
            accepted (as in the predecessor).
        warmup: Evaluate one model for each source, trained on its first chunk, before the first trial.
        reuse_warmup: Use the warm-up's result if the first chunk of a source is tried from the root.
        initial_pruning: Share of the sources, the worst in the warm-up, that are pruned from the start.
        prune: When a parent is exhausted, prune the sources of the worst quarter of its children.
        strict_floor: Always keep a quarter of the sources, and at least one. ``False`` checks this only before several
            sources are pruned together.
        prune_scope: ``global`` prunes for the rest of the search, ``subtree`` while the parent of the exhausted node is
            on the path (ours).
        margin: Amount by which a child must exceed its parent, in units of the score.
        accept: ``better`` accepts a child that exceeds its parent by more than ``margin``, ``always`` every child
            (training without selection).
        backtrack: ``False`` ends the search at the first exhausted parent.

    Raises:
        ValueError: A setting is outside its range.
    """

    root: Literal["measured", "zero"] = "measured"
    warmup: bool = True
    reuse_warmup: bool = True
    initial_pruning: float = 0.0
    prune: bool = True
    strict_floor: bool = True
    prune_scope: Literal["global", "subtree"] = "global"
    margin: float = 0.0
    accept: Literal["better", "always"] = "better"
    backtrack: bool = True

    def __post_init__(self) -> None:
        for name, known in (
            ("root", ("measured", "zero")),
            ("prune_scope", ("global", "subtree")),
            ("accept", ("better", "always")),
        ):
            check_choice(name, getattr(self, name), known)
        if not 0 <= self.margin < math.inf:
            raise ValueError(f"margin must be at least 0 and finite, got {self.margin}: 0 accepts every improvement.")
        if not 0 <= self.initial_pruning < 1:
            raise ValueError(
                f"initial_pruning must be at least 0 and below 1, got {self.initial_pruning}: give a share."
            )
        if self.initial_pruning and not self.warmup:
            raise ValueError(
                f"initial_pruning must be 0 without a warm-up, got {self.initial_pruning}: set warmup to true."
            )


PRESETS = {"corrected": Preset(), "released": Preset(root="zero", reuse_warmup=False, strict_floor=False)}


@dataclass(frozen=True)
class TrainingRequest:
    """A model to train and evaluate; the root is only evaluated.

    Args:
        node: Id of the model's weights.
        parent: Id of the weights to start from; ``None`` for the root.
        parent_state: Number of chunks of each source that the parent was trained on.
        source: The source to train on; ``None`` for the root.
        chunk: Index of the chunk in that source; ``None`` for the root.
        parent_node: The parent's node; it differs from ``parent`` if the parent's weights are from the warm-up.
    """

    node: int
    parent: int | None
    parent_state: State
    source: int | None = None
    chunk: int | None = None
    parent_node: int | None = None


@dataclass(frozen=True)
class Event:
    """An event of a search; one line of its journal.

    Args:
        drop: Ids of weights that are no longer needed.
    """

    kind: ClassVar[str] = ""
    drop: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the event as a dictionary for JSON, with its kind."""
        entry = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"kind": self.kind, **entry}

    @staticmethod
    def from_dict(entry: dict[str, Any]) -> Event:
        """Restore an event from the result of :meth:`to_dict`.

        Raises:
            ValueError: The entry is not an event.
        """
        kind = _KINDS.get(str(entry.get("kind")))
        fields = {name: tuple(v) if isinstance(v, list) else v for name, v in entry.items() if name != "kind"}
        try:
            return kind(**fields)  # type: ignore[misc]
        except TypeError:
            raise ValueError(f"{entry!r} is not an event of a Trait search: start with an empty journal.") from None


@dataclass(frozen=True)
class Warmup(Event):
    """A model of the warm-up, trained on the first chunk of one source; its weights have the id ``node``, below 0."""

    kind: ClassVar[str] = "warmup"
    node: int
    source: int
    score: float


@dataclass(frozen=True)
class Trial(Event):
    """A trial of one chunk. ``weights`` is ``node``, or the id of the warm-up's model if its result was ``reused``."""

    kind: ClassVar[str] = "trial"
    node: int
    parent: int
    source: int
    chunk: int
    state: State
    score: float
    parent_score: float
    accepted: bool
    reused: bool
    weights: int


@dataclass(frozen=True)
class Backtrack(Event):
    """The search returned from a parent without candidates to the one before it; ``to`` is ``None`` after the root."""

    kind: ClassVar[str] = "backtrack"
    node: int
    to: int | None


@dataclass(frozen=True)
class Prune(Event):
    """Sources were pruned: those of an exhausted parent's worst children, worst first; some may be pruned already.

    ``node`` is that parent, or ``None`` if the warm-up decided.
    """

    kind: ClassVar[str] = "prune"
    node: int | None
    sources: tuple[int, ...]


@dataclass(frozen=True)
class Best(Event):
    """A new best node; the first event of every search is the root."""

    kind: ClassVar[str] = "best"
    node: int
    state: State
    score: float
    weights: int


_KINDS: dict[str, type[Event]] = {kind.kind: kind for kind in (Warmup, Trial, Backtrack, Prune, Best)}


def needed(events: Iterable[Event]) -> set[int]:
    """Return the ids of the weights that a search still needs after these events, those of the best model included."""
    kept = {0}
    for event in events:
        if isinstance(event, Warmup):
            kept.add(event.node)
        elif isinstance(event, Trial):
            kept.add(event.weights)
        kept.difference_update(event.drop)
    return kept
