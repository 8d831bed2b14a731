"""What rounds of parallel speculation have done, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, cast


@dataclass
class ParallelCounts:
    """Sums over rounds and rows; the derived numbers are those by which the methods are described.

    Args:
        rounds: Rounds of rows.
        tokens: Tokens that they gave, those behind the end of a text included.
        pending_rounds: Rounds that had pending tokens to verify.
        pending_rejected: Rounds in which one of these was rejected.
        block_rejected: Rounds in which the draft's new block did not begin with what the target said.
        draft_forwards: Forwards of the draft model, for each row.
        draft_hits: Those for which something was looked up.
        draft_looked_up: Looked-up tokens that the draft model was asked about.
        draft_kept: Those that it would have written itself.
        target_hits: Rounds for which something was looked up behind the pending tokens.
        target_looked_up: Looked-up tokens that the target was asked about.
        target_kept: Those that it confirmed.
        draft_seconds: Host time in which the draft model worked and the target's forward was under way.
        judge_seconds: Host time from there until the target's verdict.
    """

    rounds: int = 0
    tokens: int = 0
    pending_rounds: int = 0
    pending_rejected: int = 0
    block_rejected: int = 0
    draft_forwards: int = 0
    draft_hits: int = 0
    draft_looked_up: int = 0
    draft_kept: int = 0
    target_hits: int = 0
    target_looked_up: int = 0
    target_kept: int = 0
    draft_seconds: float = 0.0
    judge_seconds: float = 0.0

    @classmethod
    def sums(cls, found: Mapping[str, float]) -> ParallelCounts:
        """The record of the sums in :meth:`to_dict`.

        Args:
            found: Sums and derived numbers by name.
        """
        return cls(**{item.name: cast("Any", found[item.name]) for item in fields(cls)})

    def __add__(self, other: ParallelCounts) -> ParallelCounts:
        values = {item.name: getattr(self, item.name) + getattr(other, item.name) for item in fields(ParallelCounts)}
        return ParallelCounts(**values)

    @property
    def run_length(self) -> float:
        """Tokens between two rejections, over as many rounds as that takes (M in the paper)."""
        return self.tokens / max(1, self.pending_rejected + self.block_rejected)

    @property
    def kept_by_draft(self) -> float:
        """Looked-up tokens that a forward of the draft model keeps, on average."""
        return self.draft_kept / self.draft_forwards if self.draft_forwards else 0.0

    @property
    def kept_by_target(self) -> float:
        """Looked-up tokens that a round of the target confirms, on average."""
        return self.target_kept / self.rounds if self.rounds else 0.0

    @property
    def draft_hit_rate(self) -> float:
        """Share of the draft model's forwards for which something was looked up."""
        return self.draft_hits / self.draft_forwards if self.draft_forwards else 0.0

    @property
    def target_hit_rate(self) -> float:
        """Share of the rounds for which something was looked up behind the pending tokens."""
        return self.target_hits / self.rounds if self.rounds else 0.0

    @property
    def pending_rejection_rate(self) -> float:
        """Share of the rounds with pending tokens in which one of these was rejected."""
        return self.pending_rejected / self.pending_rounds if self.pending_rounds else 0.0

    def to_dict(self) -> dict[str, float]:
        """Sums and derived numbers by name."""
        derived = [name for name, item in vars(ParallelCounts).items() if isinstance(item, property)]
        return asdict(self) | {name: getattr(self, name) for name in derived}
