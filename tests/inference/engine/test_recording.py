"""What sessions record besides logits equals what the model computes: attention on video tokens, states of a layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from saccade.inference import EngineConfig, Session, TokenTree
from saccade.inference.engine import recording
from saccade.inference.engine.fused.parts import why_not_fused
from saccade.inference.engine.pool import EnginePool
from saccade.inference.engine.recording import Recording
from saccade.inference.huggingface.models import language_part
from saccade.inference.huggingface.visual_prompts import VisualPrompt, read_visual_prompts
from tests.support.video_checks import Stock, asked_of_transformers, video_model
from tests.support.video_models import FAMILIES, VIDEO, VideoPrompts, video_prompts

LAYERS: tuple[int | str, ...] = (0, 1, 2, -1, -3, "norm")


def read(model: PreTrainedModel, prompts: VideoPrompts) -> tuple[list[list[int]], list[VisualPrompt]]:
    texts = [ids[mask.bool()].tolist() for ids, mask in zip(prompts.input_ids, prompts.attention_mask, strict=True)]
    return texts, read_visual_prompts(model, texts, prompts.visual)


def noted_scores(model: PreTrainedModel, prompts: VideoPrompts, chunk: int = 8192) -> list[Tensor]:
    texts, visual = read(model, prompts)
    pool = EnginePool(EngineConfig("eager", prefill_chunk=chunk))
    with Session(model, 64, pool=pool, recording=Recording(attention=True)) as session:
        session.prefill(texts, visual)
        return session.recorded.scores


def brute_force(model: PreTrainedModel, prompt: VideoPrompts) -> Tensor:
    """Mean over layers, heads and queries behind the video of the maps that eager attention returns."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        maps = eager(**asked_of_transformers(prompt), output_attentions=True).attentions
    places = (prompt.input_ids[0] == VIDEO).nonzero()[:, 0]
    tail = torch.stack([part[0, :, int(places[-1]) + 1 :] for part in maps])  # [layers, heads, queries, keys]
    return tail[..., places].mean((0, 1, 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_mean_of_the_maps(family: str) -> None:
    model, prompts = video_model(family), video_prompts(family, rows=3, seed=1)
    scores = noted_scores(model, prompts)
    for index, found in enumerate(scores):
        right = brute_force(model, prompts.row(index, family))
        assert found.shape == right.shape
        assert ((found - right) / right).abs().max() < 1e-5
        assert 0 < found.sum() <= 1
        assert found.dtype == torch.float32
    assert not torch.allclose(scores[0][:8], scores[1][:8], rtol=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_do_not_depend_on_pieces(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = video_model(family), video_prompts(family, rows=3, seed=1)
    whole = noted_scores(model, prompts)
    cases = [(8192, 1), (8192, 2), (1, 64), (3, 64), (7, 2), (17, 1)]  # of the prompt, and of its queries
    for chunk, queries in cases:
        monkeypatch.setattr(recording, "QUERIES_AT_A_TIME", queries)
        for found, right in zip(noted_scores(model, prompts, chunk), whole, strict=True):
            assert torch.allclose(found, right, rtol=1e-5, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_of_half_precision_are_summed_in_float32(family: str) -> None:
    prompts = video_prompts(family, rows=2, seed=1)
    half = copy.deepcopy(video_model(family)).to(torch.bfloat16)
    visual = {name: item.bfloat16() if item.is_floating_point() else item for name, item in prompts.visual.items()}
    scores = noted_scores(half, VideoPrompts(prompts.input_ids, prompts.attention_mask, visual))
    for found, right in zip(scores, noted_scores(video_model(family), prompts), strict=True):
        assert found.dtype == torch.float32
        assert torch.allclose(found, right, rtol=0.3)
        # a sum that had been rounded to bfloat16 on its way would have 8 bits of it left
        assert (found.bfloat16().float() != found).any()
    long = recording.AttentionRecorder([torch.arange(3)], [12_545])
    long.tails = [0]
    keys = torch.zeros(1, 1, 12_545, 4, dtype=torch.bfloat16)
    long.start = 12_544
    long.add(torch.zeros(1, 2, 1, 4, dtype=torch.bfloat16), keys, None)
    assert torch.allclose(long.scores()[0], torch.full((3,), 1 / 12_545), rtol=1e-6)  # flat weights stay distinct


def test_scores_without_a_question_are_zero() -> None:
    """The last video token's own query is no question."""
    model, prompts = video_model("llava_onevision"), video_prompts("llava_onevision", seed=1)
    texts, _ = read(model, prompts)
    last = max(place for place, token in enumerate(texts[0]) if token == VIDEO)
    cut = VideoPrompts(prompts.input_ids[:, : last + 1], prompts.attention_mask[:, : last + 1], prompts.visual)
    assert noted_scores(model, cut)[0].tolist() == [0] * 13


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_the_layer_before_the_final_norm_or_behind_it(family: str, layer: int | str) -> None:
    model, prompts = video_model(family), video_prompts(family, rows=3, seed=2)
    texts, visual = read(model, prompts)
    tokens = torch.tensor([[11, 12, 13, 14, 15]] * 3)
    tree = TokenTree((-1, 0, 0, 1, 3))
    states = {}
    assert why_not_fused(model) == ""
    for kind in ("eager", "graph"):
        pool = EnginePool(EngineConfig(kind, prefill_chunk=8192 if kind == "eager" else 5))
        pool.uncaptured = True
        with Session(model, 64, pool=pool, recording=Recording(layer=layer)) as session:
            session.prefill(texts, visual)
            assert session.recorded.states is None
            assert (session._engine is not None) == (kind == "graph")
            session.forward(tokens, tree)
            assert session.recorded.states is not None
            states[kind] = session.recorded.states.clone()
            for row in range(3):
                stock = Stock(model, prompts.row(row, family))
                _, _, seen = stock.observe([], layer)
                assert (session.recorded.visual_states[row] - seen[stock.visual]).abs().max() < 1e-6
                for path in tree.paths:
                    _, _, seen = stock.observe(tokens[row, list(path)].tolist(), layer)
                    assert (states[kind][row, list(path)] - seen[-len(path) :]).abs().max() < 1e-6
    assert torch.allclose(states["eager"], states["graph"], atol=1e-6)


def test_behind_the_norm_is_the_norm_of_what_is_before_it() -> None:
    model, prompts = video_model("qwen2_5_vl"), video_prompts("qwen2_5_vl", rows=2, seed=2)
    texts, visual = read(model, prompts)
    found = {}
    for layer in (-1, "norm"):
        with Session(model, 64, recording=Recording(layer=layer)) as session:
            session.prefill(texts, visual)
            found[layer] = session.recorded.visual_states
    for before, behind in zip(found[-1], found["norm"], strict=True):
        with torch.no_grad():
            assert torch.allclose(language_part(model).norm(before), behind, atol=1e-6)  # type: ignore[operator]
        assert not torch.allclose(before, behind, atol=0.1)


def test_rows_that_end_leave_what_was_noted_of_the_others() -> None:
    model, prompts = video_model("qwen2_5_vl"), video_prompts("qwen2_5_vl", rows=3, seed=1)
    texts, visual = read(model, prompts)
    with Session(model, 64, recording=Recording(attention=True, layer=-1)) as session:
        session.prefill(texts, visual)
        scores, states = list(session.recorded.scores), list(session.recorded.visual_states)
        session.forward(torch.tensor([[9], [10], [11]]))
        session.keep([2, 0])
        assert session.recorded.states is None
        for place, row in enumerate((2, 0)):
            assert session.recorded.scores[place] is scores[row]
            assert session.recorded.visual_states[place] is states[row]
        assert session.offsets == [visual[2].offset, visual[0].offset]


def test_a_session_that_shall_note_nothing_notes_nothing() -> None:
    model, prompts = video_model("llava_onevision"), video_prompts("llava_onevision", rows=2, seed=1)
    texts, visual = read(model, prompts)
    with Session(model, 64) as session:
        session.prefill(texts, visual)
        session.forward(torch.tensor([[9], [10]]))
        assert (session.recorded.scores, session.recorded.visual_states, session.recorded.states) == ([], [], None)
    with Session(model, 64, recording=Recording(attention=True, layer=-1)) as session:
        session.prefill([[9, 10], [11]])  # text alone has no video to look at
        assert (session.recorded.scores, session.recorded.visual_states) == ([], [])
