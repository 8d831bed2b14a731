"""Qwen2-VL and Qwen3-VL beside the families of the other tests: images and videos, DeepStack, M-RoPE, both doors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from saccade.inference import (
    AssistedDecoding,
    Autoregressive,
    Decoder,
    EngineConfig,
    LVSpec,
    PromptLookup,
    SelfSpeculative,
    SpecVLM,
)
from saccade.inference.huggingface import visual_prompts
from saccade.inference.huggingface.visual_prompts import VisualPrompt, read_visual_prompts
from saccade.inference.verification.relaxed import Strict
from tests.support.errors import one_line
from tests.support.models import tiny_model
from tests.support.video_checks import (
    VideoAudit,
    asked,
    asked_of_transformers,
    padded_on_the_right,
    stock_tokens,
    video_draft_model,
    video_model,
)
from tests.support.video_models import END, IMAGE, START, VIDEO, VideoPrompts, video_prompts

FAMILIES = ("qwen2_vl", "qwen3_vl")
NEW = 8
LOSSLESS: dict[str, Callable[[PreTrainedModel], Decoder]] = {
    "autoregressive": lambda draft: Autoregressive(engine=EngineConfig(prefill_chunk=5)),
    "prompt_lookup": lambda draft: PromptLookup(),
    "assisted": lambda draft: AssistedDecoding(draft, draft_length=3, confidence_threshold=0.0),
    "self_speculative": lambda draft: SelfSpeculative(skip={"attention": [1], "mlp": [0]}, draft_length=3, gamma=0.0),
    "specvlm": lambda draft: SpecVLM(prune_ratio=0.5),
    "specvlm_draft": lambda draft: SpecVLM(draft, prune_ratio=0.5, engine=EngineConfig("eager", prefill_chunk=7)),
    "lvspec": lambda draft: LVSpec(rule=Strict(), draft_length=4),
}


def uncaptured(decoder: Any) -> Any:
    """A decoder on graph steps, which run fused and uncaptured on a processor."""
    decoder.engine = EngineConfig("graph")
    decoder.pool.uncaptured = True
    return decoder


@cache
def right_texts(family: str) -> list[list[int]]:
    return stock_tokens(video_model(family), video_prompts(family, rows=3, seed=1), family, NEW)


def texts_of(prompts: VideoPrompts) -> list[list[int]]:
    return [ids[mask.bool()].tolist() for ids, mask in zip(prompts.input_ids, prompts.attention_mask, strict=True)]


def read(model: PreTrainedModel, prompts: VideoPrompts) -> list[VisualPrompt]:
    return read_visual_prompts(model, texts_of(prompts), prompts.visual)


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("family", FAMILIES)
def test_videos_in_a_padded_batch_at_both_doors(family: str, name: str) -> None:
    model, prompts, right = video_model(family), video_prompts(family, rows=3, seed=1), right_texts(family)
    assert len(set(prompts.attention_mask.sum(1).tolist())) > 1
    decoder = LOSSLESS[name](video_draft_model(family))
    given = asked(padded_on_the_right(prompts) if name == "specvlm_draft" else prompts)
    assert decoder.generate(model, **given, max_new_tokens=NEW).tokens == right
    given = asked_of_transformers(prompts)
    other = model.generate(**given, max_new_tokens=NEW, do_sample=False, custom_generate=decoder)
    assert other[:, -NEW:].tolist() == right
    if name == "prompt_lookup":
        assert uncaptured(decoder).generate(model, **asked(prompts), max_new_tokens=NEW).tokens == right


@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_both_caches_and_every_tree_are_those_of_the_model_itself(family: str, draft: bool) -> None:
    """Keys and values of the whole prompt, and of the shorter one with the features of its tokens, in every layer."""
    model, prompts = video_model(family), video_prompts(family, rows=2, seed=2)
    decoder = SpecVLM(
        video_draft_model(family) if draft else None, prune_ratio=0.5, positions="compact" if draft else "original",
        control="fixed",
    )  # fmt: skip
    audit = VideoAudit(uncaptured(decoder), model, prompts, family, trees=True)
    decoder.generate(model, **asked(prompts), max_new_tokens=4)
    assert min(audit.rounds, audit.catch_ups, audit.nodes, audit.draft_nodes) > 0
    assert all(0 < len(kept) < len(prompt.visual) for kept, prompt in
               zip(audit.selector.kept.values(), read(model, prompts), strict=True))  # fmt: skip


def images() -> dict[str, Tensor]:
    """Two rows, the first with two images of different sizes and the second with text alone."""
    draw = torch.Generator().manual_seed(5)
    grids = torch.tensor([[1, 4, 6], [1, 2, 4]])
    first = [3, START, *[IMAGE] * 6, END, 20, 21, START, *[IMAGE] * 2, END, 22, 23]
    ids = torch.tensor([first, [0] * (len(first) - 4) + [30, 31, 32, 33]])
    mask = (ids > 0).long()
    pixels = torch.randn(int(grids.prod(-1).sum()), 3 * 2 * 16, generator=draw, dtype=torch.float64)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "image_grid_thw": grids}


@pytest.mark.parametrize("family", FAMILIES)
def test_images_and_text_alone(family: str) -> None:
    model, given = video_model(family), images()
    kinds = {"mm_token_type_ids": (given["input_ids"] == IMAGE).long()}
    right = model.generate(**given, **kinds, max_new_tokens=NEW, do_sample=False)
    for decoder in (PromptLookup(), AssistedDecoding(video_draft_model(family), draft_length=3)):
        assert torch.equal(decoder.generate(model, **given, max_new_tokens=NEW).sequences, right)
    row = {name: part[:1] if name in ("input_ids", "attention_mask") else part for name, part in given.items()}
    for decoder in (SpecVLM(prune_ratio=0.5), SpecVLM(video_draft_model(family), prune_ratio=0.5)):
        assert torch.equal(decoder.generate(model, **row, max_new_tokens=NEW).sequences, right[:1])


def test_an_image_beside_a_video() -> None:
    """Qwen3-VL joins the features of both in the order of the text."""
    model, video = video_model("qwen3_vl"), video_prompts("qwen3_vl", seed=1)
    image = images()
    ids = torch.cat([video.input_ids, image["input_ids"][:1]], 1)
    visual = {**video.visual, **{name: image[name] for name in ("pixel_values", "image_grid_thw")}}
    kinds = (ids == IMAGE).long() + 2 * (ids == VIDEO).long()
    right = model.generate(
        ids, attention_mask=torch.ones_like(ids), **visual, mm_token_type_ids=kinds, max_new_tokens=NEW, do_sample=False
    )
    for decoder in (PromptLookup(), SpecVLM(prune_ratio=0.5)):
        assert torch.equal(decoder.generate(model, ids, max_new_tokens=NEW, **visual).sequences, right)


@pytest.mark.parametrize("family", [*FAMILIES, "qwen2_5_vl"])
def test_positions_are_those_of_the_models_own_index(family: str) -> None:
    """``get_rope_index``, called by itself; what follows a prompt goes on behind its last token."""
    model, prompts = video_model(family), padded_on_the_right(video_prompts(family, rows=3, seed=2))
    index: Any = model.model
    right, _ = index.get_rope_index(
        prompts.input_ids, mm_token_type_ids=prompts.kinds, video_grid_thw=prompts.visual["video_grid_thw"],
        attention_mask=prompts.attention_mask,
    )  # fmt: skip
    for row, prompt in enumerate(read(model, prompts)):
        own = right[:, row, : len(prompt)]
        assert torch.equal(prompt.positions, own)
        assert len(prompt) + prompt.offset == int(own[:, -1].max()) + 1
        kept = prompt.kept(torch.arange(0, len(prompt.visual), 2))
        places = [place for place in range(len(prompt)) if place not in prompt.visual[1::2].tolist()]
        assert torch.equal(kept.positions, own[:, places])


def test_times_between_frames_are_text() -> None:
    """A shorter prompt keeps every frame's time and marks, and of a frame's features those of its kept tokens."""
    model, prompts = video_model("qwen3_vl"), video_prompts("qwen3_vl", rows=3, seed=2)
    assert max(int(grid[0]) for grid in prompts.visual["video_grid_thw"]) > 1
    for prompt in read(model, prompts):
        assert len(prompt.deep) == 2
        assert [features.shape for features in prompt.deep] == [prompt.features.shape] * 2
        keep = torch.arange(1, len(prompt.visual), 3)
        kept = prompt.kept(keep)
        assert [token for token in kept.tokens if token != VIDEO] == [t for t in prompt.tokens if t != VIDEO]
        assert all(torch.equal(a, b[keep]) for a, b in zip(kept.deep, prompt.deep, strict=True))
    assert all(prompt.deep == () for prompt in read(video_model("qwen2_vl"), video_prompts("qwen2_vl", rows=2)))


def test_the_answer_depends_on_features_of_deeper_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them, or with those of other tokens, the text is another: what the tests above compare is seen."""
    model, prompts = video_model("qwen3_vl"), video_prompts("qwen3_vl", rows=3, seed=1)
    plain = visual_prompts.language_inputs
    for change in (lambda deep: (), lambda deep: tuple(features.flip(0) for features in deep)):
        monkeypatch.setattr(
            visual_prompts, "language_inputs", lambda *given, c=change: replace(p := plain(*given), deep=c(p.deep))
        )
        assert Autoregressive().generate(model, **asked(prompts), max_new_tokens=NEW).tokens != right_texts("qwen3_vl")


def test_features_that_leave_the_draft_are_left_out_of_it() -> None:
    """One kept token's features at another's place change what the draft reads."""
    model, prompts = video_model("qwen3_vl"), video_prompts("qwen3_vl", seed=2)
    (prompt,) = read(model, prompts)
    kept = prompt.kept(torch.arange(1, len(prompt.visual), 2))
    wrong = replace(kept, deep=tuple(features[: len(kept.visual)] for features in prompt.deep))
    with Autoregressive().session(model, 64) as session:
        right, other = (session.prefill([each.tokens], [each]) for each in (kept, wrong))
    assert (right - other).abs().max() > 1e-3


def test_a_model_keeps_no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after an error in the forward that was handed features."""
    model, prompts = copy.deepcopy(video_model("qwen3_vl")), video_prompts("qwen3_vl", seed=1)
    part: Any = model.model.language_model
    kind = type(part.layers[1])
    monkeypatch.setattr(kind, "forward", lambda *_, **__: (_ for _ in ()).throw(KeyError("planted")))
    with pytest.raises(KeyError, match="planted"):
        Autoregressive().generate(model, **asked(prompts), max_new_tokens=2)
    assert not part._forward_pre_hooks
    monkeypatch.undo()
    words = torch.tensor([[3, 20, 21]])  # text alone is handed none
    right = model.generate(words, max_new_tokens=4, do_sample=False)
    assert torch.equal(PromptLookup().generate(model, words, max_new_tokens=4).sequences, right)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_an_adapter_reads_videos(family: str) -> None:
    """Also where the decoder is handed PEFT's wrapper, whose forward names no inputs."""
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(copy.deepcopy(video_model(family)), lora).double().eval()
    prompts = video_prompts(family, rows=2, seed=1)
    right = model.generate(**asked_of_transformers(prompts), max_new_tokens=NEW, do_sample=False)
    assert torch.equal(SpecVLM(prune_ratio=0.5).generate(model, **asked(prompts), max_new_tokens=NEW).sequences, right)


def test_what_a_family_does_not_read_is_refused() -> None:
    for family in FAMILIES:
        model, given = video_model(family), asked(video_prompts(family, seed=1))
        seconds = {"second_per_grid_ts": torch.ones(1)}
        one_line(
            lambda model=model, given=given, seconds=seconds: PromptLookup().generate(model, **given, **seconds),
            type(model).__name__, "does not read second_per_grid_ts", "leave it out",
        )  # fmt: skip
    other = video_draft_model("qwen2_vl")
    given = asked(video_prompts("qwen3_vl", seed=1))
    one_line(lambda: SpecVLM(other).generate(video_model("qwen3_vl"), **given), "qwen2_vl", "qwen3_vl", "family")
    one_line(lambda: PromptLookup().generate(tiny_model(vocabulary=60), **given), "language model")
