"""Prompts with videos and settings that cannot be: each ends with one line that names what, why and the mend."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saccade.inference import Autoregressive, GenerationOutput, LVSpec, Sampling, SpecVLM
from saccade.inference.verification.relaxed import Strict
from tests.inference.huggingface.test_visual_prompts import texts_of
from tests.support.decoders import VIDEO_DECODERS
from tests.support.errors import one_line
from tests.support.models import tiny_model
from tests.support.video_checks import asked, video_draft_model, video_model
from tests.support.video_models import END, FAMILIES, START, VIDEO, VOCABULARY, video_prompts


@pytest.mark.parametrize(
    ("make", "needles"),
    [
        (lambda: SpecVLM(prune_ratio=1.5), ("prune_ratio", "1.5")),
        (lambda: SpecVLM(prune_ratio=-0.1), ("prune_ratio", "-0.1")),
        (lambda: SpecVLM(prune_ratio=float("nan")), ("prune_ratio", "nan")),
        (lambda: SpecVLM(selector="two_stages"), ("selector", "two_stages", "two_stage,")),
        (lambda: SpecVLM(tree="bushy"), ("tree", "bushy", "chain")),
        (lambda: SpecVLM(tree=5), ("tree", "chain", "5")),  # type: ignore[arg-type]
        (lambda: SpecVLM(tree=[[0], [0, "a"]]), ("tree", "ranks", "'a'")),  # type: ignore[list-item]
        (lambda: SpecVLM(prune_ratio="0.9"), ("prune_ratio", "a number", "'0.9'")),  # type: ignore[arg-type]
        (lambda: SpecVLM(draft_model=3), ("draft_model", "a path", "3")),  # type: ignore[arg-type]
        (lambda: LVSpec(rule=3), ("rule", "saccade.inference.verification.relaxed", "3")),  # type: ignore[arg-type]
        (lambda: SpecVLM(tree=[]), ("tree", "0")),
        (lambda: SpecVLM(tree=[[0], [1, 0]]), ("tree", "[1, 0]", "parent")),
        (lambda: SpecVLM(tree=[[0], [2]]), ("tree", "[2]")),
        (lambda: SpecVLM(positions="shifted"), ("positions", "shifted", "original")),  # type: ignore[arg-type]
        (lambda: SpecVLM(engine="fast"), ("engine.kind", "fast")),  # type: ignore[arg-type]
        (lambda: LVSpec(prune_ratio=2), ("prune_ratio", "2")),
        (lambda: LVSpec(selector="x"), ("selector", "x")),
        (lambda: LVSpec(draft_length=0), ("draft_length", "0")),
        (lambda: LVSpec(neighbours=0), ("neighbours", "0")),
        (lambda: LVSpec(layer="last"), ("layer", "last", "norm")),
        (lambda: LVSpec(score_at="root"), ("score_at", "root", "judge")),  # type: ignore[arg-type]
        (lambda: LVSpec(positions="shifted"), ("positions", "shifted")),  # type: ignore[arg-type]
    ],
)
def test_impossible_settings(make: Callable[[], Any], needles: tuple[str, ...]) -> None:
    one_line(make, *needles)


@pytest.mark.parametrize("name", ["autoregressive", *VIDEO_DECODERS])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_and_videos_that_do_not_fit(family: str, name: str) -> None:
    model, prompts = video_model(family), video_prompts(family, rows=2, seed=1)
    draft = video_draft_model(family)
    decoder = Autoregressive() if name == "autoregressive" else VIDEO_DECODERS[name].build(draft)
    ids, mask = prompts.input_ids, prompts.attention_mask

    def generate(tokens: Tensor, **visual: Tensor) -> Callable[[], GenerationOutput]:
        return lambda: decoder.generate(model, tokens, mask if tokens.shape == mask.shape else None, **visual)

    one_line(generate(ids), "row 0", "placeholder", "pixel_values_videos")
    words = torch.tensor([[9, 10, 11]])
    one_line(generate(words, **prompts.visual), "pixel_values_videos", "no prompt has a placeholder")
    # one placeholder more beside the others, one more that stands alone, and one less
    first, start = int((ids[0] == VIDEO).nonzero()[0]), int((ids[0] == START).nonzero()[0])
    for place, token in ((start, VIDEO), (start - 2, VIDEO), (first, 9)):
        wrong = ids.clone()
        wrong[0, place] = token
        one_line(generate(wrong, **prompts.visual), "do not fit")
    if family == "qwen2_5_vl":
        half = prompts.visual | {"pixel_values_videos": prompts.visual["pixel_values_videos"][:8]}
        one_line(generate(ids, **half), "pixel_values_videos has 8 patches", "video_grid_thw")
        seconds = prompts.visual | {"second_per_grid_ts": torch.ones(1)}
        one_line(generate(ids, **seconds), "second_per_grid_ts has 1 entries for 2 videos", "leave it out")
    one_line(generate(ids, pixel_value_videos=prompts.visual["pixel_values_videos"]), "pixel_value_videos")
    one_line(lambda: decoder(model, ids, labels=ids), "labels")
    language_model = tiny_model(vocabulary=VOCABULARY)
    one_line(lambda: decoder.generate(language_model, words, **prompts.visual), "LlamaForCausalLM", "language model")
    if name == "autoregressive":
        assert decoder.generate(model, words, max_new_tokens=2).stats.new_tokens == 2
        return
    one_line(generate(words), "row 0", "has no video")
    one_line(lambda: decoder.generate(language_model, words), "LlamaForCausalLM", "language model", "vision-language")
    if family == "qwen2_5_vl":
        both = torch.cat([ids[:1], torch.full_like(ids[:1], 9)])
        visual = prompts.row(0, family).visual
        one_line(lambda: decoder.generate(model, both, **visual), "row 1", "has no video")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_question_before_the_video(family: str) -> None:
    model, prompts = video_model(family), video_prompts(family, seed=1)
    text = texts_of(prompts)[0]
    end = max(place for place, token in enumerate(text) if token == VIDEO) + 1
    turned = [*text[end + 1 :], *text[:end]]
    for tail, eos in (([], None), ([END], None if family == "qwen2_5_vl" else END), ([30, 31], 30)):
        # nothing, the mark of the video's end, or the end of the turn stands behind it
        ids = torch.tensor([[*turned, *tail]])
        given: dict[str, Any] = {"input_ids": ids, **prompts.visual, "max_new_tokens": 8, "eos_token_id": eos}
        for selector in ("two_stage", "attention"):
            one_line(
                lambda chosen=selector, given=given: SpecVLM(selector=chosen).generate(model, **given),
                "row 0",
                "question",
                "uniform",
            )
        right = Autoregressive().generate(model, **given).tokens
        assert SpecVLM(selector="uniform", prune_ratio=0.5).generate(model, **given).tokens == right
        assert LVSpec(rule=Strict()).generate(model, **given).tokens == right


@pytest.mark.parametrize("kind", [SpecVLM, LVSpec])
@pytest.mark.parametrize("family", FAMILIES)
def test_drafts_of_another_kind(family: str, kind: type[SpecVLM] | type[LVSpec], tmp_path: Path) -> None:
    model, given = video_model(family), asked(video_prompts(family, seed=1))
    other = video_draft_model(next(name for name in FAMILIES if name != family))
    names = (str(model.config.model_type), str(other.config.model_type))
    one_line(lambda: kind(draft_model=other).generate(model, **given), *names, "family")
    words = copy.deepcopy(video_draft_model(family))
    words.resize_token_embeddings(VOCABULARY + 1)
    one_line(lambda: kind(draft_model=words).generate(model, **given), "61", "60", "tokenizer")
    one_line(lambda: kind(draft_model=tiny_model(vocabulary=VOCABULARY)).generate(model, **given), "llama", "family")
    missing = str(tmp_path / "no-model")
    one_line(lambda: kind(draft_model=missing).generate(model, **given), "draft_model", "no-model")
    short = copy.deepcopy(video_draft_model(family))
    short.config.text_config.max_position_embeddings = 16
    one_line(lambda: kind(draft_model=short).generate(model, **given), "positions", "16")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", VIDEO_DECODERS)
def test_a_video_whose_pixels_are_missing(name: str, family: str) -> None:
    """Without them the placeholders would be read as words, and nobody would know."""
    model, decoder = video_model(family), VIDEO_DECODERS[name].build(video_draft_model(family))
    given = asked(video_prompts(family, seed=1)) | {"pixel_values_videos": None}
    one_line(lambda: decoder.generate(model, **given), "row 0", "a video", "pixel_values_videos is missing")


def test_pixels_without_their_grid() -> None:
    given = asked(video_prompts("qwen2_5_vl", seed=1)) | {"video_grid_thw": None}
    one_line(lambda: Autoregressive().generate(video_model("qwen2_5_vl"), **given), "without video_grid_thw")


def test_layers_grids_and_temperatures_that_cannot_be() -> None:
    qwen, llava = (video_model(family) for family in FAMILIES)
    given, other = (asked(video_prompts(family, seed=1)) for family in FAMILIES)
    for layer in (3, -4):
        one_line(lambda at=layer: LVSpec(layer=at).generate(qwen, **given), "layer", str(layer), "3 layers")
    one_line(lambda: LVSpec().generate(qwen, **given, sampling=Sampling()), "LVSpec", "greedily")
    for selector in ("whole_frames", "frame_similarity", "temporal"):
        one_line(lambda name=selector: SpecVLM(selector=name).generate(llava, **other), "grid", "uniform")


@pytest.mark.parametrize("name", VIDEO_DECODERS)
def test_nan_logits(name: str) -> None:
    model = copy.deepcopy(video_model("qwen2_5_vl"))
    with torch.no_grad():
        model.lm_head.weight[7, 3] = torch.nan
    decoder = VIDEO_DECODERS[name].build(video_draft_model("qwen2_5_vl"))
    one_line(lambda: decoder.generate(model, **asked(video_prompts("qwen2_5_vl", seed=1))), "NaN")
