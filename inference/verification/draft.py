"""A draft, the tokens proposed for one round, and the verdict on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saccade.inference.trees import TokenTree
from saccade.inference.verification.relaxed.rule import AuditEntry

if TYPE_CHECKING:
    pass


@dataclass
class Draft:
    """Tokens proposed for one round.

    Args:
        tokens: ``[batch, drafted]`` token ids; node ``i + 1`` of the tree is column ``i``. May have no columns.
        counts: How many leading columns of every row are proposals; the rest is padding.
        probabilities: ``[batch, drafted, vocabulary]``, the distribution each token was drawn from; ``None`` when the
            tokens were not drawn but picked (a point mass).
        tree: Shape of root and drafted tokens, the same for all rows; ``None`` is a chain.
    """

    tokens: Tensor
    counts: list[int]
    probabilities: Tensor | None = None
    tree: TokenTree | None = None

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> Draft:
        """No proposals for any of the rows."""
        return cls(torch.empty(rows, 0, dtype=torch.long, device=device), [0] * rows)

    def shape(self) -> TokenTree:
        """The tree, also for a chain."""
        return self.tree if self.tree is not None else TokenTree.chain(self.tokens.shape[1])

    @cached_property
    def ids(self) -> list[list[int]]:
        """The tokens on the host; read once, since every transfer waits for the device."""
        listed: list[list[int]] = self.tokens.tolist()
        return listed

    def verified(self, row: int, verdict: Verdict) -> list[int]:
        """The tokens that a verdict adds to a row's text: the accepted ones and the target's own behind them."""
        return [self.ids[row][node - 1] for node in verdict.path[1:]] + [verdict.token]


@dataclass
class Verdict:
    """The outcome of a round for one row.

    Args:
        path: Accepted nodes from the root (node 0, always there) downwards.
        token: The token that the target adds behind them.
        log: What a relaxed rule decided of every judged token; strict rules keep none.
    """

    path: list[int] = field(default_factory=lambda: [0])
    token: int = -1
    log: list[AuditEntry] = field(default_factory=list)
