"""Layers that see a part of the prefix: their masks, prompts in pieces, graph steps, trees, drawn texts."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from transformers.masking_utils import chunked_causal_mask_function, sliding_window_causal_mask_function

from benchmarks.decoding.classes import tiny_model
from saccade.inference import Autoregressive, Decoder, EngineConfig, PromptLookup, Sampling, SelfSpeculative
from saccade.inference.engine.fused.parts import why_not_fused
from saccade.inference.engine.masks import DeviceMasks, SlotMasks, session_mask
from saccade.inference.trees import TokenTree
from tests.inference.engine.test_graphs import stepwise
from tests.support.decoders import ProposingTrees
from tests.support.errors import one_line
from tests.support.models import prompts

CPU = torch.device("cpu")
LENGTHS = [3, 20, 11]
TREE = TokenTree((-1, 0, 0, 1, 1, 2, 5, 6))
KINDS = ["mistral", "gemma2", "gpt_oss", "mixtral"]
"""A window everywhere, caps with a window, sinks with a window, a mixture."""
UNFUSED = {"gemma2", "gpt_oss"}


def sees(place: int, other: int, *, window: int = 0, chunk: int = 0) -> bool:
    return other <= place and (place - other < window if window else place // chunk == other // chunk)


@pytest.mark.parametrize("starts", [[9, 9], [2, 13]])
@pytest.mark.parametrize("tree", [TREE, TokenTree.chain(4), TokenTree.chain(0)], ids=["tree", "chain", "token"])
@pytest.mark.parametrize("span", [{"window": 3}, {"window": 40}, {"chunk": 4}], ids=str)
def test_a_node_sees_what_its_path_as_a_text_would_see(
    starts: list[int], tree: TokenTree, span: dict[str, int]
) -> None:
    size = next(iter(span.values()))
    function = (
        sliding_window_causal_mask_function(size)
        if "window" in span
        else chunked_causal_mask_function(size, torch.zeros(2, dtype=torch.long))
    )
    found = SlotMasks(starts, len(tree), CPU, tree).local(function, size)
    if found is None:
        assert (len(tree), size) == (1, 40)
        return
    found = found.expand(2, 1, len(tree), max(starts) + len(tree))
    for row, start in enumerate(starts):
        for node in range(len(tree)):
            path = tree.path(node)
            place = start + len(path) - 1
            right = {slot for slot in range(start) if sees(place, slot, **span)}
            right |= {start + other for depth, other in enumerate(path) if sees(place, start + depth, **span)}
            assert set(found[row, 0, node].nonzero()[:, 0].tolist()) == right


def test_a_piece_of_a_prompt() -> None:
    masks = SlotMasks([5], 4, CPU)
    assert masks.full() is None, "causal"
    found = masks.local(sliding_window_causal_mask_function(3), 3)
    assert found is not None
    assert [row.nonzero()[:, 0].tolist() for row in found[0, 0]] == [[3, 4, 5], [4, 5, 6], [5, 6, 7], [6, 7, 8]]
    assert masks.local(sliding_window_causal_mask_function(9), 9) is None


def test_masks_of_a_models_own_are_refused() -> None:
    masks = SlotMasks([0], 3, CPU)
    ask = partial(session_mask, 1, 3, 3, lambda *_: torch.ones(1, dtype=torch.bool))
    assert ask(use_vmap=True) is None, "without a session"
    with masks.active():
        assert ask(allow_is_causal_skip=True) is None
        one_line(lambda: ask(use_vmap=True), "mask of its own", "model.generate")


def test_masks_on_the_device_are_known_by_themselves() -> None:
    masks = DeviceMasks(torch.tensor([3]), torch.tensor([1]), torch.tensor([0]))
    given = masks.local(sliding_window_causal_mask_function(3), 3)
    assert (masks.window(masks.full()), masks.window(None), masks.window(given)) == (None, None, 3)
    with pytest.raises(RuntimeError, match="changes its masks"):
        masks.window(given.clone())


@pytest.mark.parametrize("chunk", [1, 3, 8, 9])
@pytest.mark.parametrize("kind", ["mistral", "gemma2", "llama4_text"])
def test_prompts_read_in_pieces_are_the_same_prompts(kind: str, chunk: int) -> None:
    model = tiny_model(kind)
    batch = prompts(model, LENGTHS)
    right = Autoregressive().generate(model, **batch, max_new_tokens=12).tokens
    pieces = Autoregressive(engine=EngineConfig(prefill_chunk=chunk))
    assert pieces.generate(model, **batch, max_new_tokens=12).tokens == right


@pytest.mark.parametrize("decoder", [Autoregressive, SelfSpeculative])
@pytest.mark.parametrize("kind", [*KINDS, "gemma3_text", "phi3", "qwen3"])
def test_graph_steps_write_what_eager_forwards_write(kind: str, decoder: type[Decoder]) -> None:
    model = tiny_model(kind)
    batch = prompts(model, LENGTHS)
    right = Autoregressive().generate(model, **batch, max_new_tokens=20).tokens
    settings = {"skip": {"attention": [1], "mlp": [0]}, "control": "fixed"} if decoder is SelfSpeculative else {}
    stepped = stepwise(decoder(**settings))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*own modules run in the graphs")
        assert stepped.generate(model, **batch, max_new_tokens=20).tokens == right
    (engine,) = stepped.pool._idle
    assert (engine._fused is not None) == (kind not in UNFUSED) == (why_not_fused(model) == "")


def test_chunks_are_not_captured_and_it_is_said() -> None:
    model = tiny_model("llama4_text")
    batch = prompts(model, LENGTHS)
    right = Autoregressive().generate(model, **batch, max_new_tokens=8).tokens
    with pytest.warns(UserWarning, match="attends in chunks, so steps run eagerly"):
        assert stepwise(Autoregressive()).generate(model, **batch, max_new_tokens=8).tokens == right


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("kind", ["mistral", "gpt_oss"])
def test_trees_are_verified(kind: str, stepped: bool) -> None:
    model = tiny_model(kind)
    batch = prompts(model, LENGTHS)
    right = Autoregressive().generate(model, **batch, max_new_tokens=20).tokens
    texts = [row[mask.bool()].tolist() + new for row, mask, new in zip(*batch.values(), right, strict=True)]

    def propose(text: list[int]) -> list[int]:
        """The right path 0, 2, 5, 6, 7 (nodes from 0), cut now and then."""
        whole = next(item for item in texts if item[: len(text)] == text)
        ahead = [*whole[len(text) :], 0, 0, 0, 0][:4]
        return [(ahead[0] + 1) % 40, ahead[0], 3, 4, ahead[1], ahead[2] if len(text) % 2 else 5, ahead[3]]

    decoder = ProposingTrees(TREE, propose)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = (stepwise(decoder) if stepped else decoder).generate(model, **batch, max_new_tokens=20)
    assert out.tokens == right
    assert out.stats.mean_acceptance_length > 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_draws_one_text(kind: str) -> None:
    model = tiny_model(kind)
    batch = prompts(model, LENGTHS)
    sampling = Sampling(temperature=0.8, top_p=0.95, seed=3)
    draft = SelfSpeculative({"attention": [1], "mlp": [0]}, draft_length=3, control="fixed")
    first, *others = (
        decoder.generate(model, **batch, max_new_tokens=16, sampling=sampling).tokens
        for decoder in (Autoregressive(), PromptLookup(draft_length=3), draft)
    )
    assert others == [first, first]
