"""Rules, requests and events of the search of Trait: what goes into it and what comes out.

Weights have ids: 0 is the base model, ``n`` that of trial ``n``, ``-1 - k`` that of the warm-up on source ``k``. An
event names in ``drop`` the ids that nobody needs any more; the root's and the best's are never among them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from saccade.callbacks.trait.selectors import State


@dataclass(frozen=True)
class Preset:
    """The rules of a search.

    Args:
        root: ``measured`` asks for the base model's score; ``zero`` takes 0, so that the first trial is accepted
            whatever it does (the predecessor).
        warmup: Measure one model for each source, trained on its first chunk, before the first trial.
        reuse_warmup: The first chunk of a source, tried from the root, is answered by the warm-up.
        initial_pruning: Share of the sources, worst in the warm-up, that are left out from the start.
        prune: Leave out the sources of the worst quarter of a parent's children when it is exhausted.
        strict_floor: Never fewer live sources than a quarter, or one. ``False`` looks only before a batch is pruned.
        prune_scope: Pruned for good, or while the parent of the exhausted node is on the path (ours).
        margin: What a child must exceed its parent by, in units of the score.
        accept: ``better`` accepts a child above its parent and margin, ``always`` every one (training without choice).
        backtrack: ``False`` ends the search at the first exhausted parent.

    Raises:
        ValueError: An impossible setting.
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
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}.")
        if not 0 <= self.margin < math.inf:
            raise ValueError(f"margin must be at least 0 and finite, got {self.margin}.")
        if not 0 <= self.initial_pruning < 1:
            raise ValueError(f"initial_pruning must be at least 0 and below 1, got {self.initial_pruning}.")
        if self.initial_pruning and not self.warmup:
            raise ValueError(f"initial_pruning={self.initial_pruning} needs the warm-up's scores: set warmup to true.")


PRESETS = {"corrected": Preset(), "released": Preset(root="zero", reuse_warmup=False, strict_floor=False)}


@dataclass(frozen=True)
class Request:
    """A model that is to be made and measured; for the root nothing is trained.

    Args:
        node: Id that its weights get.
        parent: Id of the weights to go on from; ``None`` for the root.
        parent_state: Chunks of each source that the parent was trained on.
        source: The source to train on; ``None`` for the root.
        chunk: Index of the chunk in that source; ``None`` for the root.
        parent_node: The parent's node; another id than ``parent`` where its weights are those of a warm-up.
    """

    node: int
    parent: int | None
    parent_state: State
    source: int | None = None
    chunk: int | None = None
    parent_node: int | None = None


@dataclass(frozen=True)
class Event:
    """Something that happened in a search; one line of its journal.

    Args:
        drop: Ids of weights that are needed no more.
    """

    kind: ClassVar[str] = ""
    drop: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """The event as JSON knows it, with its kind."""
        entry = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"kind": self.kind, **entry}

    @staticmethod
    def from_dict(entry: dict[str, Any]) -> Event:
        """The event that :meth:`to_dict` wrote.

        Raises:
            ValueError: The entry is none of a search.
        """
        kind = _KINDS.get(str(entry.get("kind")))
        fields = {name: tuple(v) if isinstance(v, list) else v for name, v in entry.items() if name != "kind"}
        try:
            return kind(**fields)  # type: ignore[misc]
        except TypeError:
            raise ValueError(f"not an event of a Trait search: {entry!r}; start with an empty journal.") from None


@dataclass(frozen=True)
class Warmup(Event):
    """One model trained on the first chunk of one source; its weights have the id ``node``, below 0."""

    kind: ClassVar[str] = "warmup"
    node: int
    source: int
    score: float


@dataclass(frozen=True)
class Trial(Event):
    """One chunk spent. ``weights`` is ``node``, or the id of the warm-up that answered when it was ``reused``."""

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
    """A parent without admissible successors was left for the one before it; ``to`` is ``None`` behind the root."""

    kind: ClassVar[str] = "backtrack"
    node: int
    to: int | None


@dataclass(frozen=True)
class Prune(Event):
    """Sources of an exhausted parent's worst children, worst first, some perhaps pruned before.

    ``node`` is that parent, or ``None`` when the warm-up decided.
    """

    kind: ClassVar[str] = "prune"
    node: int | None
    sources: tuple[int, ...]


@dataclass(frozen=True)
class Best(Event):
    """The best node so far; the first event of every search names the root."""

    kind: ClassVar[str] = "best"
    node: int
    state: State
    score: float
    weights: int


_KINDS: dict[str, type[Event]] = {kind.kind: kind for kind in (Warmup, Trial, Backtrack, Prune, Best)}


def needed(events: Iterable[Event]) -> set[int]:
    """Ids of the weights that must exist after these events, so that the search can go on and its best be returned."""
    kept = {0}
    for event in events:
        if isinstance(event, Warmup):
            kept.add(event.node)
        elif isinstance(event, Trial):
            kept.add(event.weights)
        kept.difference_update(event.drop)
    return kept
