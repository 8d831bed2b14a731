"""Token trees: shapes that can be, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.inference import TokenTree
from saccade.inference.verification.draft import Draft
from saccade.inference.verification.own_choice import verify_choices


@st.composite
def trees(draw: st.DrawFn) -> TokenTree:
    size = draw(st.integers(0, 14))
    return TokenTree((-1, *(draw(st.integers(0, node)) for node in range(size))))


@given(trees())
def test_depths_children_and_paths_agree(tree: TokenTree) -> None:
    assert tree.depths[0] == 0
    for node in range(1, len(tree)):
        assert tree.depths[node] == tree.depths[tree.parents[node]] + 1
        assert node in tree.children[tree.parents[node]]
    assert sum(len(nodes) for nodes in tree.children) == len(tree) - 1
    leaves = [path[-1] for path in tree.paths]
    assert leaves == [node for node, nodes in enumerate(tree.children) if not nodes]
    for node in range(len(tree)):
        path = tree.path(node)
        assert path[0] == 0
        assert path[-1] == node
        assert len(path) == tree.depths[node] + 1
        assert list(path) == sorted(path)


@given(trees())
def test_a_node_sees_itself_and_its_ancestors(tree: TokenTree) -> None:
    mask = tree.attention_mask
    assert mask.shape == (len(tree), len(tree))
    for node in range(len(tree)):
        assert mask[node].nonzero()[:, 0].tolist() == list(tree.path(node))


@given(st.integers(0, 20))
def test_a_chain_is_a_tree(drafted: int) -> None:
    tree = TokenTree.chain(drafted)
    assert tree.is_chain
    assert tree.depths == tuple(range(drafted + 1))
    assert torch.equal(tree.attention_mask, torch.ones(drafted + 1, drafted + 1, dtype=torch.bool).tril())
    assert tree.paths == (tuple(range(drafted + 1)),)
    assert tree == TokenTree(tuple(range(-1, drafted)))


@given(trees())
def test_only_chains_are_chains(tree: TokenTree) -> None:
    assert tree.is_chain == (len(tree.paths) == 1)


@settings(max_examples=200)
@given(trees(), st.integers(0, 2**32))
def test_verification_follows_the_targets_choices(tree: TokenTree, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    nodes = len(tree) - 1
    tokens = torch.randint(0, 3, (2, nodes), generator=generator)
    logits = torch.randn(2, nodes + 1, 3, generator=generator)
    counts = [nodes, int(torch.randint(0, nodes + 1, (), generator=generator))]
    draft = Draft(tokens, counts, None, tree)
    table = logits.argmax(-1).tolist()

    def choose(rows: Sequence[int], nodes: Sequence[int]) -> list[int]:
        return [table[row][node] for row, node in zip(rows, nodes, strict=True)]

    verdicts = verify_choices(draft, choose)
    for row, verdict in enumerate(verdicts):
        choices = table[row]
        assert tree.path(verdict.path[-1]) == tuple(verdict.path)
        for parent, node in zip(verdict.path, verdict.path[1:], strict=False):
            assert int(tokens[row, node - 1]) == choices[parent]
            assert node <= counts[row]  # padding is never accepted
        end = verdict.path[-1]
        assert verdict.token == choices[end]
        # it ended because no child holds the target's choice
        assert all(tokens[row, child - 1] != choices[end] for child in tree.children[end] if child <= counts[row])


@pytest.mark.parametrize("parents", [(), (0,), (-1, -1), (-1, 1), (-1, 0, 3), (-1, 2, 0), (-2,)])
def test_impossible_shapes(parents: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="parents"):
        TokenTree(parents)
