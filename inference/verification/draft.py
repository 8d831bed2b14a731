"""The draft of one round and the verdict on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from saccade.inference.trees import TokenTree
from saccade.inference.verification.relaxed.rule import AuditEntry


@dataclass
class Draft:
    """Tokens proposed for one round.

    Args:
        tokens: ``[batch, drafted]`` token ids; column ``i`` is node ``i + 1`` of the tree. May have no columns.
        counts: Number of leading columns of every row that are proposals; the others are padding.
        probabilities: ``[batch, drafted, vocabulary]``, the distribution from which each token was sampled; ``None`` if
            the tokens were picked without sampling, which counts as probability 1.
        tree: Shape of the root and the drafted tokens, the same for all rows; ``None`` is a chain.
    """

    tokens: Tensor
    counts: list[int]
    probabilities: Tensor | None = None
    tree: TokenTree | None = None

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> Draft:
        """A draft without proposals."""
        return cls(torch.empty(rows, 0, dtype=torch.long, device=device), [0] * rows)

    def shape(self) -> TokenTree:
        """The shape as a tree, also for a chain."""
        return self.tree if self.tree is not None else TokenTree.chain(self.tokens.shape[1])

    def depths(self) -> list[int]:
        """The most drafted tokens of every row that can be accepted: all of a chain, the depth of a tree."""
        if self.tree is None:
            return list(self.counts)
        nodes = self.tree.depths
        return [max(nodes[: count + 1]) for count in self.counts]

    @cached_property
    def ids(self) -> list[list[int]]:
        """The tokens as lists; transferred once, because every transfer waits for the device."""
        listed: list[list[int]] = self.tokens.tolist()
        return listed

    def verified(self, row: int, verdict: Verdict) -> list[int]:
        """The tokens that a verdict adds to the text of a row: the accepted ones, then the target's token."""
        return [self.ids[row][node - 1] for node in verdict.path[1:]] + [verdict.token]


@dataclass
class Verdict:
    """The outcome of a round for one row.

    Args:
        path: The root (node 0) and the accepted nodes, from the root downwards.
        token: The token that the target adds after them: the bonus token if the whole path was accepted, otherwise the
            recovered token in place of a rejected one.
        log: The decisions of a relaxed rule on the judged tokens; empty for strict rules.
    """

    path: list[int] = field(default_factory=lambda: [0])
    token: int = -1
    log: list[AuditEntry] = field(default_factory=list)
