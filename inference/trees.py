"""Token trees: the shape of the tokens in one verification forward. A chain is a tree too."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

MAX_NODES = 64
"""Maximum number of nodes: the engine's attention reads the ancestors of a node as bits of one 64-bit number."""


@dataclass(frozen=True)
class TokenTree:
    """The shape of the tokens of a round; node 0 is the last committed token, the others are drafted.

    Args:
        parents: Index of the parent of every node; ``-1`` for node 0. Parents come before their children.

    Raises:
        ValueError: Node 0 is not the root, or a parent does not come before its child.
    """

    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.parents or self.parents[0] != -1:
            raise ValueError(
                f"parents must begin with -1, got {self.parents[:1]}: node 0 is the root, the last committed token."
            )
        for node, parent in enumerate(self.parents[1:], start=1):
            if not 0 <= parent < node:
                raise ValueError(
                    f"parents[{node}] must be between 0 and {node - 1}, got {parent}: list parents before children."
                )

    @staticmethod
    @lru_cache(maxsize=256)
    def chain(drafted: int) -> TokenTree:
        """The root followed by ``drafted`` tokens, each the child of the one before."""
        return TokenTree(tuple(range(-1, drafted)))

    def __len__(self) -> int:
        return len(self.parents)

    @cached_property
    def is_chain(self) -> bool:
        """Whether the parent of every node is the node before it."""
        return self.parents == tuple(range(-1, len(self.parents) - 1))

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Distance of every node from the root; the position of node ``n`` is that of the root plus ``depths[n]``."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return tuple(depths)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """The children of every node, in the order in which verification tries them."""
        children: list[list[int]] = [[] for _ in self.parents]
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                children[parent].append(node)
        return tuple(tuple(nodes) for nodes in children)

    @cached_property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """The nodes from the root to every leaf, both included."""
        leaves = [node for node, nodes in enumerate(self.children) if not nodes]
        return tuple(self.path(leaf) for leaf in leaves)

    def path(self, node: int) -> tuple[int, ...]:
        """The nodes from the root to ``node``, both included."""
        nodes = [node]
        while self.parents[nodes[-1]] >= 0:
            nodes.append(self.parents[nodes[-1]])
        return tuple(reversed(nodes))

    @cached_property
    def ancestor_bits(self) -> tuple[int, ...]:
        """For every node a signed 64-bit number; bit ``j`` is set where the node attends to node ``j``.

        Raises:
            ValueError: The tree has more than 64 nodes.
        """
        if len(self.parents) > MAX_NODES:
            raise ValueError(
                f"tree must have at most {MAX_NODES} nodes, got {len(self.parents)}: draft fewer tokens in a round."
            )
        bits: list[int] = []
        for node, parent in enumerate(self.parents):
            bits.append((bits[parent] if parent >= 0 else 0) | 1 << node)
        return tuple(value - (1 << 64) if value >> 63 else value for value in bits)

    @cached_property
    def attention_mask(self) -> Tensor:
        """``[nodes, nodes]`` bool: row ``i`` is true at node ``i`` and its ancestors."""
        mask = torch.eye(len(self.parents), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                mask[node] |= mask[parent]
        return mask
