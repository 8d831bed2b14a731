"""Decode attention: the reference against a plain softmax, the Triton kernel against the reference."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from saccade.inference.engine.attention import decode_attention, prompt_attention, reference_decode_attention
from saccade.inference.trees import TokenTree
from tests.support.triton_mode import DEVICE, triton_decode_attention


def random_tree(nodes: int, draw: torch.Generator) -> TokenTree:
    return TokenTree((-1, *(int(torch.randint(0, node, (), generator=draw)) for node in range(1, nodes))))


def inputs(
    seed: int, *, batch: int, kv_heads: int, groups: int, nodes: int, head_dim: int, slots: int, ragged: bool, dtype
):
    draw = torch.Generator().manual_seed(seed)
    tree = random_tree(nodes, draw)
    shape = (batch, kv_heads) if ragged else (batch,)
    lengths = torch.randint(0, slots - nodes + 1, shape, generator=draw)
    starts = (lengths * torch.rand(shape, generator=draw)).long() if seed % 2 else None
    query = torch.randn(batch, kv_heads * groups, nodes, head_dim, generator=draw)
    keys, values = (torch.randn(batch, kv_heads, slots, head_dim, generator=draw) for _ in range(2))
    made = [query.to(dtype), keys.to(dtype), values.to(dtype), lengths, torch.tensor(tree.ancestor_bits), starts]
    return [item if item is None else item.to(DEVICE) for item in made], tree


PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # shrinking takes minutes in the interpreter
shapes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10_000),
        "batch": st.integers(1, 2),
        "kv_heads": st.integers(1, 2),
        "groups": st.integers(1, 7),
        "nodes": st.integers(1, 26),
        "head_dim": st.sampled_from([16, 24, 64]),
        "slots": st.integers(30, 150),
        "ragged": st.booleans(),
    }
)


@settings(max_examples=15, deadline=None, phases=PHASES)
@given(shapes)
def test_the_definition_is_softmax_over_what_a_node_may_see(shape):
    (query, keys, values, lengths, bits, starts), tree = inputs(dtype=torch.float64, **shape)
    found = reference_decode_attention(query, keys, values, lengths, bits, starts)
    batch, heads, nodes, head_dim = query.shape
    for b in range(batch):
        for head in range(heads):
            kv = head // shape["groups"]
            length = int(lengths[b, kv] if shape["ragged"] else lengths[b])
            start = 0 if starts is None else int(starts[b, kv] if shape["ragged"] else starts[b])
            for node in range(nodes):
                slots = [*range(start, length), *(length + other for other in tree.path(node))]
                scores = keys[b, kv, slots] @ query[b, head, node] / head_dim**0.5
                assert torch.allclose(scores.softmax(0) @ values[b, kv, slots], found[b, node, head], atol=1e-12)


@settings(max_examples=8, deadline=None, phases=PHASES)
@given(shapes)
def test_the_kernel_is_the_definition_in_float32(shape):
    given_, _ = inputs(dtype=torch.float32, **shape)
    assert torch.allclose(triton_decode_attention(*given_), reference_decode_attention(*given_), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@settings(max_examples=4, deadline=None, phases=PHASES)
@given(shapes)
def test_the_kernel_is_within_the_rounding_of_half_precision(dtype, shape):
    given_, _ = inputs(dtype=dtype, **shape)
    exact = reference_decode_attention(
        *(item.double() if item.is_floating_point() else item for item in given_[:5]), given_[5]
    )
    error = (triton_decode_attention(*given_).double() - exact).norm() / exact.norm()
    assert float(error) < torch.finfo(dtype).eps


def test_64_nodes_fill_the_bits():
    given_, _ = inputs(
        3, batch=1, kv_heads=1, groups=2, nodes=64, head_dim=16, slots=100, ragged=True, dtype=torch.float32
    )
    assert torch.allclose(triton_decode_attention(*given_), reference_decode_attention(*given_), atol=1e-5)
    with pytest.raises(ValueError, match="tree must have at most 64 nodes, got 65"):
        TokenTree.chain(64).ancestor_bits  # noqa: B018


def test_an_empty_cache_leaves_the_step_itself():
    (query, keys, values, lengths, bits, _), _ = inputs(
        2, batch=2, kv_heads=1, groups=2, nodes=3, head_dim=16, slots=40, ragged=False, dtype=torch.float32
    )
    lengths = lengths * 0
    found = triton_decode_attention(query, keys, values, lengths, bits)
    assert torch.allclose(found, reference_decode_attention(query, keys, values, lengths, bits), atol=1e-6)
    assert torch.allclose(found[:, 0, 0], values[:, 0, 0], atol=1e-6)  # the root sees itself alone


@pytest.mark.parametrize(
    ("length", "head_dim"), [(31, 16), (32, 24), (33, 16), (96, 16), (127, 24), (128, 16), (129, 24), (160, 24)]
)
def test_whole_tiles_and_the_edge_behind_them(length, head_dim):
    # 4 parts on a processor, of tiles of 32 slots: the tree begins inside a tile, at its end, in a part of its own
    (query, keys, values, lengths, bits, _), _ = inputs(
        length, batch=2, kv_heads=1, groups=2, nodes=7, head_dim=head_dim, slots=170, ragged=False, dtype=torch.float32
    )
    lengths = torch.tensor([length, 5], device=query.device)
    starts = torch.tensor([length // 2, 0], device=query.device)
    for first in (None, starts):
        found = triton_decode_attention(query, keys, values, lengths, bits, first)
        assert torch.allclose(
            found, reference_decode_attention(query, keys, values, lengths, bits, first), atol=1e-5, rtol=1e-5
        )


def test_what_is_not_seen_is_not_read():
    """The comparison can fail: a neighbour's bit, a length off by one and a start off by one all show."""
    given_, _ = inputs(
        5, batch=2, kv_heads=2, groups=2, nodes=9, head_dim=16, slots=60, ragged=True, dtype=torch.float32
    )
    query, keys, values, lengths, bits, starts = given_
    right = reference_decode_attention(*given_)
    for wrong in (
        (query, keys, values, lengths, bits.roll(1), starts),
        (query, keys, values, (lengths + 1).clamp(max=51), bits, starts),
        (query, keys, values, lengths, bits, starts + 1),
    ):
        assert float((triton_decode_attention(*wrong) - right).abs().max()) > 1e-2
    hidden = keys.clone()
    hidden[:, :, 55:] = 1e4
    same = [query, hidden, values, lengths.clamp(max=40), bits, starts.clamp(max=30)]
    assert torch.allclose(triton_decode_attention(*same), reference_decode_attention(*same), atol=1e-5)


def test_a_strided_cache_is_read_in_place():
    given_, _ = inputs(
        7, batch=2, kv_heads=2, groups=3, nodes=4, head_dim=16, slots=50, ragged=False, dtype=torch.float32
    )
    query, keys, values, lengths, bits, starts = given_
    turned = [item.transpose(1, 2).contiguous().transpose(1, 2) for item in (keys, values)]
    fused = query.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.allclose(
        triton_decode_attention(fused, *turned, lengths, bits, starts),
        triton_decode_attention(*given_),
        atol=1e-6,
    )


def test_the_door_takes_the_definition_on_a_processor():
    given_, _ = inputs(
        8, batch=1, kv_heads=1, groups=1, nodes=2, head_dim=16, slots=30, ragged=False, dtype=torch.float32
    )
    cpu = [None if item is None else item.cpu() for item in given_]
    assert torch.equal(decode_attention(*cpu), reference_decode_attention(*cpu))


def more(seed: int, tree: TokenTree, heads: int, window: int | None, cap: float | None, sinks: bool) -> dict:
    """A window with the depths of the tree, a cap, and a sink for each head."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "window": window,
        "depths": torch.tensor(tree.depths, device=DEVICE),
        "cap": cap,
        "sinks": torch.randn(heads, generator=draw).to(DEVICE) if sinks else None,
    }


@settings(max_examples=6, deadline=None, phases=PHASES)
@given(shapes, st.one_of(st.none(), st.integers(1, 60)), st.sampled_from([None, 0.5]), st.booleans())
def test_the_definition_of_windows_caps_and_sinks(shape, window, cap, sinks):
    (query, keys, values, lengths, bits, starts), tree = inputs(dtype=torch.float64, **shape)
    batch, heads, nodes, head_dim = query.shape
    given_ = more(shape["seed"], tree, heads, window, cap, sinks)
    found = reference_decode_attention(query, keys, values, lengths, bits, starts, **given_)
    for b in range(batch):
        for head in range(heads):
            kv = head // shape["groups"]
            length = int(lengths[b, kv] if shape["ragged"] else lengths[b])
            start = 0 if starts is None else int(starts[b, kv] if shape["ragged"] else starts[b])
            for node in range(nodes):
                path = tree.path(node)
                slots = [*range(start, length), *(length + other for other in path)]
                places = [*range(start, length), *(length + depth for depth in range(len(path)))]
                if window is not None:
                    kept = [place > places[-1] - window for place in places]
                    slots = [slot for slot, keep in zip(slots, kept, strict=True) if keep]
                scores = keys[b, kv, slots] @ query[b, head, node] / head_dim**0.5
                scores = scores if cap is None else cap * (scores / cap).tanh()
                if sinks:
                    scores = torch.cat([scores, given_["sinks"][head : head + 1].to(scores)])
                weights = scores.softmax(0)[: len(slots)]
                assert torch.allclose(weights @ values[b, kv, slots], found[b, node, head], atol=1e-12)


@pytest.mark.parametrize(
    ("window", "cap", "sinks"), [(64, None, False), (97, 0.7, True), (None, 3.0, False), (None, None, True)]
)
@settings(max_examples=2, deadline=None, phases=PHASES)
@given(shapes.map(lambda shape: shape | {"slots": shape["slots"] + 110, "groups": min(shape["groups"], 3)}))
def test_the_kernel_of_windows_caps_and_sinks_is_the_definition(window, cap, sinks, shape):
    given_, tree = inputs(dtype=torch.float32, **shape)
    others = more(shape["seed"], tree, given_[0].shape[1], window, cap, sinks)
    right = reference_decode_attention(*given_, **others)
    assert torch.allclose(triton_decode_attention(*given_, **others), right, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [0, 64, 95, 96, 161])
def test_windows_begin_inside_and_between_tiles(length):
    (query, keys, values, lengths, bits, _), tree = inputs(
        length, batch=2, kv_heads=1, groups=2, nodes=7, head_dim=16, slots=260, ragged=False, dtype=torch.float32
    )
    lengths = torch.tensor([length, 5], device=query.device)
    others = more(0, tree, 2, 64, None, False)
    right = reference_decode_attention(query, keys, values, lengths, bits, **others)
    hidden = keys.clone()
    hidden[0, :, : max(0, length - 63)] = float("nan")  # the kernel does not read what lies before the window
    found = triton_decode_attention(query, hidden, values, lengths, bits, **others)
    assert torch.allclose(found, right, atol=1e-5, rtol=1e-5)
    wider = reference_decode_attention(query, keys, values, lengths, bits, **(others | {"window": 65}))
    assert length < 64 or float((wider - right).abs().max()) > 1e-4, "a window off by one shows"


@pytest.mark.parametrize("masked", [False, True])
def test_prompts_in_pieces_of_their_queries(monkeypatch, masked):
    torch.manual_seed(0)
    query, keys, values = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 13, 8), torch.randn(2, 2, 13, 6)
    mask = torch.ones(9, 13, dtype=torch.bool).tril(4)[None, None]
    sinks = torch.randn(4)
    whole = prompt_attention(query, keys, values, mask, None, 2.0, sinks)
    monkeypatch.setattr("saccade.inference.engine.attention._SCORES_AT_A_TIME", 2 * 4 * 13 * 2)  # two queries
    pieces = prompt_attention(query, keys, values, mask if masked else None, None, 2.0, sinks)
    assert whole.shape == (2, 4, 9, 6)
    assert torch.allclose(pieces, whole, atol=1e-6)
