"""The graphs' steps, run one by one on a processor: the same text as eager forwards, whatever the decoder."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from saccade.inference import Autoregressive, EngineConfig, Sampling, SelfSpeculative, Session
from saccade.inference.engine.fused.parts import why_not_fused
from saccade.inference.engine.graphs import GraphEngine, NotCapturedError
from saccade.inference.engine.pool import EnginePool
from saccade.inference.huggingface.sublayer_skip import SublayerSkip
from saccade.inference.trees import TokenTree
from tests.support.decoders import LOSSLESS, ProposingTrees
from tests.support.models import copy_layers, prompts, tiny_model

LENGTHS = [1, 5, 17, 9, 3]


def stepwise(decoder):
    """A decoder on graph steps, uncaptured."""
    vars(decoder).pop("_pool", None)
    decoder.engine = "graph"
    decoder.pool.uncaptured = True
    return decoder


@pytest.mark.parametrize(("architecture", "ties"), [("llama", True), ("qwen2", False), ("qwen3", True)])
@pytest.mark.parametrize("name", list(LOSSLESS))
def test_graph_steps_write_what_eager_forwards_write(architecture, ties, name):
    model = tiny_model(architecture, tied=architecture == "qwen2", near_ties=ties, residual=0.3, seed=3)
    batch = prompts(model, LENGTHS)
    # rows end at different times, so that the batch shrinks under the captured one
    ids = Autoregressive().generate(model, **batch, max_new_tokens=40).tokens
    eos = ids[1][7]
    right = Autoregressive().generate(model, **batch, max_new_tokens=40, eos_token_id=eos).tokens
    decoder = stepwise(LOSSLESS[name](model))
    assert decoder.generate(model, **batch, max_new_tokens=40, eos_token_id=eos).tokens == right
    # a second call reuses the buffers and graphs of the first
    again = prompts(model, [8, 2, 30, 4, 11], seed=7)
    engines = [engine for engine in decoder.pool._idle if engine.model is model]
    assert len(engines) == 1
    right = Autoregressive().generate(model, **again, max_new_tokens=30).tokens
    assert decoder.generate(model, **again, max_new_tokens=30).tokens == right
    assert [engine for engine in decoder.pool._idle if engine.model is model] == engines


def test_modules_as_they_are_run_on_device_lengths_too():
    """A model that is not fused, here for a hook, goes through the same steps with its own modules."""
    model = tiny_model("llama", residual=0.3)
    batch = prompts(model, LENGTHS)
    right = Autoregressive().generate(model, **batch, max_new_tokens=30).tokens
    handle = model.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    try:
        decoder = stepwise(SelfSpeculative(skip={"attention": [1], "mlp": []}, draft_length=4))
        with pytest.warns(UserWarning, match="without fused kernels: model.layers.0.mlp has a hook"):
            assert decoder.generate(model, **batch, max_new_tokens=30).tokens == right
    finally:
        handle.remove()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("skipped", [True, False])
def test_logits_are_those_of_the_modules(fused, skipped):
    """The draft of Draft & Verify is no matter of the text, so its logits are compared themselves."""
    model = tiny_model("qwen3", residual=0.5)
    skip = SublayerSkip(model, [1], [0, 2])
    pool = EnginePool(EngineConfig("graph"))
    pool.uncaptured = True
    tree = TokenTree((-1, 0, 0, 1, 3))
    tokens = torch.tensor([[5, 6, 7, 8, 9], [1, 2, 3, 4, 0]])
    handle = None if fused else model.model.norm.register_forward_hook(lambda *_: None)
    found = []
    for each in (None, pool):
        with warnings.catch_warnings(), Session(model, 40, skip=skip, pool=each) as session:
            warnings.simplefilter("ignore")
            session.prefill([[1, 2, 3], [4, 5, 6, 7, 8]])
            found.append(session.forward(tokens, tree, skipped=skipped))
    assert torch.allclose(*found, atol=1e-12)
    assert (handle is None) == (pool._idle[0]._fused is not None)


def test_bits_are_the_mask():
    for tree in (TokenTree((-1, 0, 0, 1, 3)), TokenTree.chain(63), TokenTree((-1, *[0] * 63))):
        bits = torch.tensor(tree.ancestor_bits)
        unpacked = (bits[:, None] >> torch.arange(len(tree))) & 1
        assert torch.equal(unpacked.bool(), tree.attention_mask)


def test_sampling_draws_the_same_tokens():
    model = tiny_model("qwen3", residual=0.3)
    batch = prompts(model, LENGTHS)
    sampling = Sampling(temperature=0.8, seed=5)
    eager = Autoregressive().generate(model, **batch, max_new_tokens=20, sampling=sampling).tokens
    assert stepwise(Autoregressive()).generate(model, **batch, max_new_tokens=20, sampling=sampling).tokens == eager


def test_trees_are_verified():
    model = tiny_model("llama", residual=0.3)
    batch, tree = prompts(model, LENGTHS), TokenTree((-1, 0, 0, 1, 1, 2, 5))
    right = Autoregressive().generate(model, **batch, max_new_tokens=30).tokens
    padded = batch["input_ids"].shape[1]
    texts = [row[mask.bool()].tolist() + new for row, mask, new in zip(*batch.values(), right, strict=True)]
    assert padded == max(LENGTHS)

    def propose(text: list[int]) -> list[int]:
        """The right path 0, 2, 5, 6 (nodes from 0) now and then, wrong tokens elsewhere."""
        whole = next(item for item in texts if item[: len(text)] == text)
        ahead = [*whole[len(text) :], 0, 0, 0][:3]
        return [(ahead[0] + 1) % 40, ahead[0], 3, 4, ahead[1], ahead[2] if len(text) % 2 else 5]

    out = stepwise(ProposingTrees(tree, propose)).generate(model, **batch, max_new_tokens=30)
    assert out.tokens == right
    assert out.stats.mean_acceptance_length > 2


def test_changed_weights_are_read_where_they_lie():
    model, decoder = tiny_model("llama"), stepwise(Autoregressive())
    batch = prompts(model, [4])
    before = decoder.generate(model, **batch, max_new_tokens=12).tokens
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight.roll(1, 0))
    after = decoder.generate(model, **batch, max_new_tokens=12).tokens
    assert after != before
    assert after == Autoregressive().generate(model, **batch, max_new_tokens=12).tokens
    model.lm_head = nn.Linear(32, 40, bias=False, dtype=torch.float64)  # elsewhere: the engine is made anew
    right = Autoregressive().generate(model, **batch, max_new_tokens=12).tokens
    assert decoder.generate(model, **batch, max_new_tokens=12).tokens == right


def test_a_step_that_cannot_be_captured_goes_on_eagerly_and_says_so_once(monkeypatch):
    model = tiny_model("llama", residual=0.3)
    batch = prompts(model, LENGTHS)
    right = Autoregressive().generate(model, **batch, max_new_tokens=20).tokens
    taken = GraphEngine.forward
    steps = []

    def third_fails(self, *arguments):
        steps.append(1)
        if len(steps) == 3:
            raise NotCapturedError("operation not permitted when stream is capturing")
        return taken(self, *arguments)

    monkeypatch.setattr(GraphEngine, "forward", third_fails)
    decoder = stepwise(Autoregressive())
    with pytest.warns(UserWarning, match="a step of LlamaForCausalLM cannot be captured .operation not permitted"):
        out = decoder.generate(model, **batch, max_new_tokens=20)
    assert out.tokens == right
    assert out.stats.target_forwards == 20
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decoder.generate(model, **batch, max_new_tokens=20).tokens == right
    assert len(steps) == 3  # the second call did not try again


@pytest.mark.parametrize(
    ("kind", "fused", "graphs"), [("auto", True, True), ("auto", False, False), ("graph", False, True)]
)
def test_what_each_kind_takes_where_graphs_can_be_captured(kind, fused, graphs):
    model = tiny_model("llama")
    if not fused:
        model.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    pool = EnginePool(EngineConfig(kind))
    pool.uncaptured = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (pool.lease(model, 1, 32, None, False) is not None) == graphs


def test_a_processor_runs_eagerly_and_says_so_once():
    model = tiny_model("llama")
    decoder, batch = Autoregressive(engine="graph"), prompts(model, [4])
    with pytest.warns(
        UserWarning, match="CUDA graphs need a CUDA device and the model is on cpu, so steps run eagerly"
    ):
        first = decoder.generate(model, **batch, max_new_tokens=3).tokens
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decoder.generate(model, **batch, max_new_tokens=3).tokens == first


@pytest.mark.parametrize("chunk", [1, 3, 8, 17, 1000])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_prompts_read_in_pieces_are_the_same_prompts(architecture, chunk):
    model = tiny_model(architecture, residual=0.3, near_ties=True)
    batch = prompts(model, LENGTHS)
    right = Autoregressive().generate(model, **batch, max_new_tokens=20)
    pieces = Autoregressive(engine=EngineConfig(prefill_chunk=chunk)).generate(model, **batch, max_new_tokens=20)
    assert pieces.tokens == right.tokens
    assert pieces.stats.target_forwards == right.stats.target_forwards + -(-max(LENGTHS) // chunk) - 1


def test_capacity():
    model = tiny_model("llama")
    batch = prompts(model, [10])
    out = Autoregressive(engine=EngineConfig(capacity=64)).generate(model, **batch, max_new_tokens=5)
    assert out.stats.kv_cache_bytes == 2 * 3 * 64 * model.config.num_key_value_heads * model.config.head_dim * 8
    with pytest.raises(
        ValueError,
        match=r"engine.capacity must be at least 15 tokens, the longest text and its widest step, got 12: raise it",
    ):
        Autoregressive(engine=EngineConfig(capacity=12)).generate(model, **batch, max_new_tokens=5)


def test_a_cache_that_does_not_fit_is_refused_with_its_bytes(monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr("saccade.inference.huggingface.models.free_bytes", lambda device: 1000)
    with pytest.raises(ValueError, match=r"the cache of 1 x \d+ tokens needs [\d,]+ bytes, but 1,000 are free on cpu"):
        Autoregressive().generate(model, **prompts(model, [10]), max_new_tokens=5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EngineConfig("fast"), "engine.kind must be one of auto, eager, graph, got 'fast'"),
        (lambda: Autoregressive(engine="fast"), "engine.kind must be one of"),
        (
            lambda: Autoregressive(engine={"knd": "graph"}),
            "engine must have only the settings capacity, check_model, kind, .*, got 'knd'",
        ),
        (lambda: EngineConfig(prefill_chunk=0), "engine.prefill_chunk must be at least 1"),
        (lambda: EngineConfig(capacity=0), "engine.capacity must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_step_of_more_than_64_nodes_is_refused():
    model = tiny_model("llama")
    pool = EnginePool(EngineConfig("graph"))
    pool.uncaptured = True
    with Session(model, 100, pool=pool) as session:
        session.prefill([[1, 2, 3]])
        with pytest.raises(ValueError, match="tree must have at most 64 nodes, got 65"):
            session.forward(torch.zeros(1, 65, dtype=torch.long))


def test_what_is_not_fused_is_named():
    model = tiny_model("qwen2")
    assert why_not_fused(model) == ""
    model.model.layers[1].mlp.up_proj = nn.Sequential(model.model.layers[1].mlp.up_proj)
    assert why_not_fused(model) == "model.layers.1.mlp.up_proj is a Sequential, not a plain Linear"
    assert "is not a supported model class" in why_not_fused(nn.Linear(2, 2))
    assert why_not_fused(copy_layers(tiny_model("llama"), 1)) == ""
