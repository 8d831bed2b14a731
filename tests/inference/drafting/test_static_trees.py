"""Trees of a fixed shape: the default's numbers, partial trees against the whole, and drafting level by level."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saccade.inference import TokenTree
from saccade.inference.drafting.static_trees import DEFAULT_TREE, StaticTree

FLAT = [0, 1, 2, 3, 4, 11, 12, 13, 21, 22, 31, 32, 41, 51, 52, 53, 61, 62, 71, 72, 81, 91, 92, 93, 101, 102]
"""The released code's list of candidates: 0 is the root, rank k behind the parent of row r is 10 r + k + 1."""


@st.composite
def shapes(draw: st.DrawFn) -> StaticTree:
    paths: list[tuple[int, ...]] = []
    for _ in range(draw(st.integers(1, 20))):
        parent = draw(st.sampled_from([(), *paths]))
        rank = sum(len(path) == len(parent) + 1 and path[:-1] == parent for path in paths)
        paths.append((*parent, rank))
    return StaticTree(tuple(draw(st.permutations(paths))))


def test_the_default_has_the_published_shape() -> None:
    shape = StaticTree()
    assert [len(level) for level in shape.levels] == [1, 4, 8, 8, 3, 2]
    assert len(shape.tree) == 26
    assert len(shape.tree.paths) == 15
    assert shape.depth == 5
    assert shape.width == 4
    assert max(shape.tree.depths) == 5
    run = [[shape.paths[node - 1] for node in nodes] for nodes in shape.inner[1:]]
    assert run == [[(0,), (1,), (2,), (3,)], [(0, 0), (0, 1), (0, 2), (1, 0)], [(0, 0, 0)], [(0, 0, 0, 0)]]
    assert sum(len(nodes) for nodes in shape.inner) == 11


def test_the_default_gives_the_released_list_of_candidates() -> None:
    shape = StaticTree()
    rows = {node: row for row, node in enumerate(node for nodes in shape.inner for node in nodes)}
    flat = [0] + [10 * rows[shape.tree.parents[node]] + shape.ranks[node] + 1 for node in range(1, 26)]
    assert flat == FLAT


@pytest.mark.parametrize("depth", [1, 5, 63])
def test_chains(depth: int) -> None:
    shape = StaticTree.chain(depth)
    assert shape.tree == TokenTree.chain(depth)
    assert shape.width == 1
    assert shape.inner == tuple((node,) for node in range(depth))
    assert [shape.partial(level) for level in range(depth)] == [TokenTree.chain(level) for level in range(depth)]


@given(shapes())
def test_nodes_are_numbered_by_depth_and_rank_path(shape: StaticTree) -> None:
    assert list(shape.paths) == sorted(shape.paths, key=lambda path: (len(path), path))
    for node, path in enumerate(((), *shape.paths)):
        assert tuple(shape.ranks[n] for n in shape.tree.path(node)[1:]) == path
    # children are verified in the order of their ranks
    for children in shape.tree.children:
        assert [shape.ranks[child] for child in children] == list(range(len(children)))
    assert StaticTree.of([list(path) for path in shape.paths]) == shape
    assert [node for level in shape.levels for node in level] == list(range(len(shape.tree)))


@given(shapes())
def test_partial_trees_are_what_has_children_in_the_whole(shape: StaticTree) -> None:
    whole = shape.tree
    for level in range(shape.depth):
        partial, nodes = shape.partial(level), shape.partial_nodes(level)
        assert nodes[0] == 0
        assert list(nodes) == [n for n in range(len(whole)) if whole.children[n] and whole.depths[n] <= level]
        assert len(partial) == len(nodes)
        for i in range(len(nodes)):
            # every node sees in the partial tree exactly the nodes that it sees in the whole: its own path
            assert tuple(nodes[j] for j in partial.path(i)) == whole.path(nodes[i])
        last = nodes[len(nodes) - len(shape.inner[level]) :]
        assert last == shape.inner[level]
        assert all(whole.depths[node] == level for node in last)


@given(shapes(), st.integers(0, 2**32))
def test_levels_of_top_tokens_are_the_whole_draft(shape: StaticTree, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tops = [torch.randint(0, 1000, (3, len(nodes), shape.width + 2), generator=generator) for nodes in shape.inner]
    levels = [shape.expand(level, top) for level, top in enumerate(tops)]
    assert [tokens.shape[1] for tokens in levels] == [len(nodes) for nodes in shape.levels[1:]]
    tokens = torch.cat(levels, 1)
    assert tokens.shape == (3, len(shape.tree) - 1)
    for node in range(1, len(shape.tree)):
        parent = shape.tree.parents[node]
        level = shape.tree.depths[parent]
        expected = tops[level][:, shape.inner[level].index(parent), shape.ranks[node]]
        assert torch.equal(tokens[:, node - 1], expected)


def test_a_model_of_two_tokens_back_drafts_its_best_paths() -> None:
    # the next token's logits depend on the last token: the drafted nodes must be the ranks along their paths
    logits = torch.randn(50, 50, generator=torch.Generator().manual_seed(3))
    shape, root = StaticTree(), 7
    tokens = [root]
    for level in range(shape.depth):
        seen = torch.tensor([tokens[node] for node in shape.partial_nodes(level)])
        top = logits[seen].topk(shape.width).indices[-len(shape.inner[level]) :]
        tokens += shape.expand(level, top[None])[0].tolist()
    for node in range(1, len(shape.tree)):
        token = root
        for rank in shape.paths[node - 1]:
            token = int(logits[token].argsort(descending=True)[rank])
        assert tokens[node] == token


def test_whole_levels_fit_a_limit() -> None:
    assert [StaticTree().drafted_within(depth) for depth in range(7)] == [0, 4, 12, 20, 23, 25, 25]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([], "1 to 63 drafted nodes, got 0"),
        ([[0] * length for length in range(1, 65)], "1 to 63 drafted nodes, got 64"),
        ([[0], [0, 0, 0]], "parent of every node"),
        ([[0], [2]], r"rank siblings 0, 1, 2, \.\.\., got \[2\] without the rank before: add \[1\]"),
        ([[1]], r"add \[0\]"),
        ([[0], [0]], "every node once"),
        ([[]], "paths of ranks"),
        ([[0], [-1]], "paths of ranks"),
    ],
)
def test_impossible_trees(nodes: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StaticTree.of(nodes)


def test_wrong_levels_and_shapes() -> None:
    shape = StaticTree()
    for level in (-1, 5):
        with pytest.raises(ValueError, match="level must be between 0 and 4"):
            shape.partial(level)
        with pytest.raises(ValueError, match="top must be"):
            shape.expand(level, torch.zeros(1, 1, 4, dtype=torch.long))
    for size in ((1, 4, 3), (1, 3, 4), (4, 4)):
        with pytest.raises(ValueError, match="4 nodes at level 1 and at least 4 choices"):
            shape.expand(1, torch.zeros(size, dtype=torch.long))


def test_the_default_is_a_set_of_settings() -> None:
    assert StaticTree.of([list(path) for path in reversed(DEFAULT_TREE)]) == StaticTree()
