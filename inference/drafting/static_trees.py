"""Draft trees of fixed shape.

A node is given by its rank path: ``(0, 1)`` is the second most likely token after the most likely first token. SpecVLM
(arXiv 2508.16201) drafts such a tree of 25 nodes; the shape comes from the first version of EAGLE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from saccade.inference.trees import MAX_NODES, TokenTree

RankPath = tuple[int, ...]

DEFAULT_TREE: tuple[RankPath, ...] = (
    *((0,), (1,), (2,), (3,)),
    *((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0)),
    *((0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 2, 0), (0, 2, 1), (1, 0, 0)),
    *((0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 2)),
    *((0, 0, 0, 0, 0), (0, 0, 0, 0, 1)),
)
"""SpecVLM's tree: 25 nodes, of which 4, 8, 8, 3 and 2 are at depths 1 to 5; 15 leaves."""


@dataclass(frozen=True)
class StaticTree:
    """A tree of rank paths. Nodes are numbered by depth, then by rank path; node 0 is the root and has an empty path.

    A drafter builds the tree level by level, in ``depth`` forwards. Forward ``d`` (from 0) reads ``partial(d)``: the
    root and all nodes down to depth ``d`` that have children, with that partial tree as its mask. The logits of its
    last ``len(inner[d])`` nodes give the tokens of depth ``d + 1`` (:meth:`expand`). The drafter never reads leaves.

    Args:
        paths: The rank paths of the drafted nodes, in any order.

    Raises:
        ValueError: No node, more than 63 nodes, a node twice, a rank below 0, a node whose parent is missing, or
            siblings whose ranks are not 0, 1, 2 and so on.
    """

    paths: tuple[RankPath, ...] = DEFAULT_TREE

    def __post_init__(self) -> None:
        ordered = tuple(sorted((tuple(path) for path in self.paths), key=lambda path: (len(path), path)))
        if not 1 <= len(ordered) < MAX_NODES:
            raise ValueError(
                f"tree must have 1 to {MAX_NODES - 1} drafted nodes, got {len(ordered)}: list another number of paths."
            )
        known = {(), *ordered}
        for path in ordered:
            if not path or any(rank < 0 for rank in path):
                raise ValueError(f"tree must list paths of ranks from 0, got {list(path)}: the root is not listed.")
            if path[:-1] not in known:
                raise ValueError(
                    f"tree must hold the parent of every node, got {list(path)} without it: add {list(path[:-1])}."
                )
            if path[-1] > 0 and (*path[:-1], path[-1] - 1) not in known:
                before = [*path[:-1], path[-1] - 1]
                raise ValueError(
                    f"tree must rank siblings 0, 1, 2, ..., got {list(path)} without the rank before: add {before}."
                )
        if len(known) <= len(ordered):
            twice = next(list(path) for path, after in pairwise(ordered) if path == after)
            raise ValueError(f"tree must list every node once, got {twice} twice: remove it.")
        object.__setattr__(self, "paths", ordered)

    @classmethod
    def of(cls, nodes: Sequence[Sequence[int]]) -> StaticTree:
        """Builds a tree from lists, as they come from a configuration.

        Args:
            nodes: For every drafted node the child ranks that lead to it from the root.

        Raises:
            ValueError: ``nodes`` is not a list of lists of integers, or not a valid tree.
        """
        if not isinstance(nodes, Sequence) or not all(
            isinstance(path, Sequence) and all(type(rank) is int for rank in path) for path in nodes
        ):
            raise ValueError(
                f"tree must be default, chain or a list of paths of child ranks, got {nodes!r}: list for example "
                "[[0], [1], [0, 0]]."
            )
        return cls(tuple(tuple(path) for path in nodes))

    @classmethod
    def chain(cls, depth: int) -> StaticTree:
        """A chain of ``depth`` most likely tokens; ``depth`` is 1 to 63."""
        return cls(tuple((0,) * length for length in range(1, depth + 1)))

    @cached_property
    def tree(self) -> TokenTree:
        """The shape for verification; column ``i`` of a draft's tokens is node ``i + 1``."""
        index = {path: node for node, path in enumerate(((), *self.paths))}
        return TokenTree((-1, *(index[path[:-1]] for path in self.paths)))

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """The rank of every node among the tokens that follow its parent; -1 for the root."""
        return (-1, *(path[-1] for path in self.paths))

    @property
    def depth(self) -> int:
        """Distance from the root to the deepest node, and the number of forwards that draft the tree."""
        return len(self.paths[-1])

    @cached_property
    def width(self) -> int:
        """Largest number of children of a node, the k of the drafter's top-k."""
        return max(self.ranks) + 1

    @cached_property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """The nodes of every depth; ``levels[0]`` holds the root only."""
        depths = self.tree.depths
        return tuple(
            tuple(node for node, depth in enumerate(depths) if depth == level) for level in range(self.depth + 1)
        )

    @cached_property
    def inner(self) -> tuple[tuple[int, ...], ...]:
        """The nodes with children of every depth except the deepest: those that the drafter reads."""
        children = self.tree.children
        return tuple(tuple(node for node in level if children[node]) for level in self.levels[:-1])

    def partial_nodes(self, level: int) -> tuple[int, ...]:
        """The numbers in the whole tree of the nodes of ``partial(level)``.

        Args:
            level: 0 to ``depth - 1``.

        Raises:
            ValueError: A level outside this range.
        """
        if not 0 <= level < self.depth:
            raise ValueError(f"level must be between 0 and {self.depth - 1}, got {level}: deeper nodes are leaves.")
        return tuple(node for nodes in self.inner[: level + 1] for node in nodes)

    def inner_tokens(self, level: int, drafted: Tensor) -> Tensor:
        """The tokens of ``partial(level)`` without its root.

        Args:
            level: 0 to ``depth - 1``.
            drafted: ``[batch, columns]`` tokens drafted so far, at least the levels down to this one.

        Returns:
            ``[batch, len(partial_nodes(level)) - 1]``.
        """
        return drafted.index_select(1, _columns(self, level, drafted.device))

    def partial(self, level: int) -> TokenTree:
        """The tree that the drafter reads to draft the tokens of depth ``level + 1``.

        Args:
            level: 0 to ``depth - 1``; 0 is the root only.

        Returns:
            The nodes down to depth ``level`` that have children. Node 0 is the root; the last ``len(inner[level])``
            nodes are those of depth ``level``.
        """
        return _partial(self, level)

    def cut(self, depth: int) -> StaticTree:
        """The tree down to the given depth, at least 1; the same object on every call."""
        return self if depth >= self.depth else _cut(self, depth)

    def drafted_within(self, depth: int) -> int:
        """Number of drafted nodes down to the given depth.

        Args:
            depth: At least 0; may exceed the depth of the tree.
        """
        return sum(len(path) <= depth for path in self.paths)

    def expand(self, level: int, top: Tensor) -> Tensor:
        """The tokens of the next level, taken from the most likely tokens after the nodes of this level.

        Args:
            level: Depth of the nodes that were read, 0 to ``depth - 1``.
            top: ``[batch, len(inner[level]), at least width]`` token ids, most likely first, as from ``logits.topk``.

        Returns:
            ``[batch, len(levels[level + 1])]`` token ids in the order of the nodes. All levels, concatenated, are the
            tokens of the draft.

        Raises:
            ValueError: A level outside its range, or a shape that does not fit it.
        """
        rows = len(self.inner[level]) if 0 <= level < self.depth else -1
        if rows < 0 or top.ndim != 3 or top.shape[1] != rows or top.shape[2] < self.width:
            raise ValueError(
                f"top must be [batch, nodes run, choices] with {max(rows, 0)} nodes at level {level} and at least "
                f"{self.width} choices, got {tuple(top.shape)}: run the nodes of inner[level] and take their top-k."
            )
        return top.flatten(1).index_select(1, _choices(self, level, top.shape[2], top.device))


@lru_cache(maxsize=256)
def _cut(shape: StaticTree, depth: int) -> StaticTree:
    return StaticTree(tuple(path for path in shape.paths if len(path) <= depth))


@lru_cache(maxsize=256)
def _partial(shape: StaticTree, level: int) -> TokenTree:
    nodes = shape.partial_nodes(level)
    place = {node: i for i, node in enumerate(nodes)}
    return TokenTree((-1, *(place[shape.tree.parents[node]] for node in nodes[1:])))


@lru_cache(maxsize=256)
def _columns(shape: StaticTree, level: int, device: torch.device) -> Tensor:
    """Columns of a draft's tokens that the drafter reads after the root; cached on the device."""
    return torch.tensor([node - 1 for node in shape.partial_nodes(level)[1:]], dtype=torch.long, device=device)


@lru_cache(maxsize=256)
def _choices(shape: StaticTree, level: int, width: int, device: torch.device) -> Tensor:
    """Index of every node of the next level among the choices ``[nodes read * width]``; cached on the device."""
    place = {node: i for i, node in enumerate(shape.inner[level])}
    tree = shape.tree
    return torch.tensor(
        [place[tree.parents[node]] * width + shape.ranks[node] for node in shape.levels[level + 1]], device=device
    )
