"""Trees of one fixed shape: which ranks of a drafter's choices are tried behind which node.

The drafter takes the best tokens of every node that has children; a node is the path of ranks that leads to it, so
``(0, 1)`` is the second choice behind the first choice. SpecVLM (arXiv 2508.16201) drafts such a tree of 25 nodes, a
shape that comes from the first version of EAGLE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

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
"""SpecVLM's 25 nodes: 4, 8, 8, 3 and 2 of them at depths 1 to 5, 15 leaves."""


@dataclass(frozen=True)
class StaticTree:
    """A tree of rank paths. Nodes are numbered by depth, then by rank path; node 0 is the root and no path.

    A drafter builds it level by level, in ``depth`` forwards. Forward ``d`` (from 0) reads ``partial(d)``: the root and
    all nodes down to depth ``d`` that have children, with that partial tree as its mask. The logits of its last
    ``len(inner[d])`` nodes choose the tokens of depth ``d + 1`` (:meth:`expand`). Leaves are never run by the drafter.

    Args:
        paths: The drafted nodes, in any order.

    Raises:
        ValueError: No node, more than 63, a node twice, a rank below 0, a node whose parent is missing, or ranks of
            siblings that are not 0, 1, 2 and so on.
    """

    paths: tuple[RankPath, ...] = DEFAULT_TREE

    def __post_init__(self) -> None:
        ordered = tuple(sorted((tuple(path) for path in self.paths), key=lambda path: (len(path), path)))
        if not 1 <= len(ordered) < MAX_NODES:
            raise ValueError(f"tree must have 1 to {MAX_NODES - 1} drafted nodes, got {len(ordered)}: leave some away.")
        known = {(), *ordered}
        for path in ordered:
            if not path or any(rank < 0 for rank in path):
                raise ValueError(f"tree must list paths of ranks from 0, got {list(path)}: the root is not listed.")
            if path[:-1] not in known:
                raise ValueError(
                    f"tree must hold the parent of every node, {list(path)} has none: add {list(path[:-1])}."
                )
            if path[-1] > 0 and (*path[:-1], path[-1] - 1) not in known:
                before = [*path[:-1], path[-1] - 1]
                raise ValueError(f"tree must rank siblings 0, 1, 2, ..., {list(path)} follows none: add {before}.")
        if len(known) <= len(ordered):
            raise ValueError("tree must list every node once, got one twice: remove it.")
        object.__setattr__(self, "paths", ordered)

    @classmethod
    def of(cls, nodes: Sequence[Sequence[int]]) -> StaticTree:
        """A tree from settings.

        Args:
            nodes: For every drafted node the child ranks that lead to it from the root.

        Raises:
            ValueError: They are no lists of whole numbers.
        """
        if not isinstance(nodes, Sequence) or not all(
            isinstance(path, Sequence) and all(type(rank) is int for rank in path) for path in nodes
        ):
            raise ValueError(f"tree must be default, chain or a list of paths of child ranks, got {nodes!r}.")
        return cls(tuple(tuple(path) for path in nodes))

    @classmethod
    def chain(cls, depth: int) -> StaticTree:
        """The best token behind the best token, ``depth`` times; ``depth`` is 1 to 63."""
        return cls(tuple((0,) * length for length in range(1, depth + 1)))

    @cached_property
    def tree(self) -> TokenTree:
        """The shape that is verified; column ``i`` of a draft's tokens is node ``i + 1``."""
        index = {path: node for node, path in enumerate(((), *self.paths))}
        return TokenTree((-1, *(index[path[:-1]] for path in self.paths)))

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """For every node its rank among its parent's choices; -1 for the root."""
        return (-1, *(path[-1] for path in self.paths))

    @property
    def depth(self) -> int:
        """Distance from the root to the deepest node, and the number of forwards that draft the tree."""
        return len(self.paths[-1])

    @cached_property
    def width(self) -> int:
        """How many choices of a node are used at most: the k of the top-k."""
        return max(self.ranks) + 1

    @cached_property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """The nodes of every depth; ``levels[0]`` is the root alone."""
        depths = self.tree.depths
        return tuple(
            tuple(node for node, depth in enumerate(depths) if depth == level) for level in range(self.depth + 1)
        )

    @cached_property
    def inner(self) -> tuple[tuple[int, ...], ...]:
        """For every depth below the deepest, the nodes that have children: those that the drafter must run."""
        children = self.tree.children
        return tuple(tuple(node for node in level if children[node]) for level in self.levels[:-1])

    def partial_nodes(self, level: int) -> tuple[int, ...]:
        """For every node of ``partial(level)`` its number in the whole tree.

        Args:
            level: 0 to ``depth - 1``.

        Raises:
            ValueError: Another level.
        """
        if not 0 <= level < self.depth:
            raise ValueError(f"level must be between 0 and {self.depth - 1}, got {level}: deeper nodes are leaves.")
        return tuple(node for nodes in self.inner[: level + 1] for node in nodes)

    def inner_tokens(self, level: int, drafted: Tensor) -> Tensor:
        """The tokens of ``partial(level)`` behind its root.

        Args:
            level: 0 to ``depth - 1``.
            drafted: ``[batch, columns]`` tokens of the draft so far, at least the levels down to this one.

        Returns:
            ``[batch, len(partial_nodes(level)) - 1]``.
        """
        return drafted.index_select(1, _columns(self, level, drafted.device))

    def partial(self, level: int) -> TokenTree:
        """What the drafter reads to choose the tokens of depth ``level + 1``.

        Args:
            level: 0 to ``depth - 1``; 0 is the root alone.

        Returns:
            The nodes down to depth ``level`` that have children. Node 0 is the root; the last ``len(inner[level])``
            nodes are those of depth ``level``.
        """
        return _partial(self, level)

    def cut(self, depth: int) -> StaticTree:
        """The nodes down to a depth, 1 or more; the same object on every call."""
        return self if depth >= self.depth else _cut(self, depth)

    def drafted_within(self, depth: int) -> int:
        """How many drafted nodes, from the first, lie at this depth or above it: a count that keeps whole levels.

        Args:
            depth: 0 or more; from the tree's depth on all nodes count.
        """
        return sum(len(path) <= depth for path in self.paths)

    def expand(self, level: int, top: Tensor) -> Tensor:
        """The tokens of the next level, from the best tokens of the nodes that were run.

        Args:
            level: Depth of the nodes that were run, 0 to ``depth - 1``.
            top: ``[batch, len(inner[level]), at least width]`` token ids, best first, as ``logits.topk`` gives them.

        Returns:
            ``[batch, len(levels[level + 1])]`` token ids in the order of the nodes. The levels side by side are the
            tokens of the whole draft.

        Raises:
            ValueError: Another level, or a shape that does not fit it.
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
    """Columns of a draft's tokens that the drafter reads behind the root, kept on the device."""
    return torch.tensor([node - 1 for node in shape.partial_nodes(level)[1:]], dtype=torch.long, device=device)


@lru_cache(maxsize=256)
def _choices(shape: StaticTree, level: int, width: int, device: torch.device) -> Tensor:
    """For every node of the next level its place among the choices ``[nodes run * width]``, kept on the device."""
    place = {node: i for i, node in enumerate(shape.inner[level])}
    tree = shape.tree
    return torch.tensor(
        [place[tree.parents[node]] * width + shape.ranks[node] for node in shape.levels[level + 1]], device=device
    )
