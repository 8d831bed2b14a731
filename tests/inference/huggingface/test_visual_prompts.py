"""Prompts with videos: every decoder reads them as the model itself does, through three doors, and leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from transformers import PreTrainedModel

from saccade.inference import (
    AssistedDecoding,
    Autoregressive,
    Decoder,
    EngineConfig,
    GenerationOutput,
    LVSpec,
    PromptLookup,
    Sampling,
    SelfSpeculative,
    Session,
    SpecVLM,
)
from saccade.inference.huggingface.models import language_part
from saccade.inference.huggingface.visual_prompts import VisualPrompt, read_visual_prompts
from saccade.inference.reduction.selectors import TwoStage
from saccade.inference.verification.relaxed import FLy, Strict, VisualRelaxation
from tests.inference.doors.test_clean import portrait, same
from tests.inference.doors.test_doors import parse
from tests.support.decoders import VIDEO_DECODERS
from tests.support.video_checks import (
    Stock,
    asked,
    asked_of_transformers,
    padded_on_the_right,
    stock_tokens,
    video_draft_model,
    video_model,
)
from tests.support.video_models import END, FAMILIES, IMAGE, START, VIDEO, VideoPrompts, video_prompts

LOSSLESS: dict[str, Callable[[PreTrainedModel], Decoder]] = {
    "autoregressive": lambda draft: Autoregressive(),
    "pieces": lambda draft: Autoregressive(engine=EngineConfig(prefill_chunk=5)),
    "prompt_lookup": lambda draft: PromptLookup(),
    "assisted": lambda draft: AssistedDecoding(draft, draft_length=3, confidence_threshold=0.0),
    "self_speculative": lambda draft: SelfSpeculative(skip={"attention": [1], "mlp": [0]}, draft_length=3, gamma=0.0),
    "specvlm": lambda draft: SpecVLM(prune_ratio=0.5),
    "specvlm_pieces": lambda draft: SpecVLM(draft, prune_ratio=0.5, engine=EngineConfig("eager", prefill_chunk=3)),
    "lvspec": lambda draft: LVSpec(rule=Strict(), draft_length=4),
}


def texts_of(prompts: VideoPrompts) -> list[list[int]]:
    return [ids[mask.bool()].tolist() for ids, mask in zip(prompts.input_ids, prompts.attention_mask, strict=True)]


def read(model: PreTrainedModel, prompts: VideoPrompts) -> list[VisualPrompt]:
    return read_visual_prompts(model, texts_of(prompts), prompts.visual)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_hold_no_graph(family: str) -> None:
    """A vision tower's activations would be kept as long as its prompts are."""
    model = video_model(family)
    assert any(weight.requires_grad for weight in model.parameters())
    assert not any(prompt.embeddings.requires_grad for prompt in read(model, video_prompts(family, rows=2)))


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_model_generate_writes_is_written(family: str, name: str) -> None:
    model, prompts = video_model(family), video_prompts(family, rows=3, seed=1)
    assert len(set(prompts.attention_mask.sum(1).tolist())) > 1  # rows are padded
    right = stock_tokens(model, prompts, family, 10)
    assert right[0] != right[1]
    together = model.generate(**asked_of_transformers(prompts), max_new_tokens=10, do_sample=False)
    decoder = LOSSLESS[name](video_draft_model(family))
    for each in (prompts, padded_on_the_right(prompts)):
        out = decoder.generate(model, **asked(each), max_new_tokens=10)
        assert out.tokens == right
        assert torch.equal(out.sequences, together)
    streamed: list[list[int]] = [[], [], []]
    for new in decoder.stream(model, **asked(prompts), max_new_tokens=10):
        streamed = [row + added for row, added in zip(streamed, new, strict=True)]
    assert streamed == right


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_is_about_the_video(family: str) -> None:
    model, prompts = video_model(family), video_prompts(family, seed=1)
    other = dict(prompts.visual)
    other["pixel_values_videos"] = other["pixel_values_videos"].flip(0) + 1
    outs = [
        Autoregressive().generate(model, prompts.input_ids, max_new_tokens=10, **visual).tokens
        for visual in (prompts.visual, other)
    ]
    assert outs[0] != outs[1]


def image_of_one_row() -> dict[str, Tensor]:
    """A prompt with an image instead of a video."""
    draw = torch.Generator().manual_seed(5)
    ids = torch.tensor([[3, START, *[IMAGE] * 6, END, 20, 21]])
    pixels = torch.randn(24, 3 * 2 * 16, generator=draw, dtype=torch.float64)
    return {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 4, 6]])}


def test_images_are_read_too() -> None:
    model, given = video_model("qwen2_5_vl"), image_of_one_row()
    kinds = (given["input_ids"] == IMAGE).long()
    right = model.generate(**given, mm_token_type_ids=kinds, max_new_tokens=12, do_sample=False)
    for decoder in (Autoregressive(), SpecVLM(prune_ratio=0.5)):
        assert torch.equal(decoder.generate(model, **given, max_new_tokens=12).sequences, right)


def test_a_row_may_have_two_videos_and_another_none() -> None:
    family = "qwen2_5_vl"
    model, prompts = video_model(family), video_prompts(family, rows=2, seed=1)
    first, second = texts_of(prompts)
    plain = [9, 10, 11]
    rows = [[*first, *second], plain]
    longest = len(rows[0])
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = (torch.arange(longest) >= torch.tensor([[longest - len(row)] for row in rows])).long()
    out = Autoregressive().generate(model, ids, mask, max_new_tokens=12, **prompts.visual)
    both = VideoPrompts(ids[:1], mask[:1], prompts.visual)
    right = model.generate(**asked_of_transformers(both), max_new_tokens=12, do_sample=False)
    assert out.tokens[0] == right[0, longest:].tolist()
    right = model.generate(torch.tensor([plain]), max_new_tokens=12, do_sample=False)
    assert out.tokens[1] == right[0, 3:].tolist()
    # a draft reads both videos of a row
    out = SpecVLM(prune_ratio=0.5).generate(model, ids[:1], max_new_tokens=12, **prompts.visual)
    assert out.tokens == [Autoregressive().generate(model, ids[:1], max_new_tokens=12, **prompts.visual).tokens[0]]
    assert read_visual_prompts(model, rows[:1], prompts.visual)[0].grid is None


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_and_embeddings_are_those_of_the_models_own_forward(family: str) -> None:
    model, prompts = video_model(family), video_prompts(family, rows=3, seed=2)
    for index, prompt in enumerate(read(model, prompts)):
        stock = Stock(model, prompts.row(index, family))
        assert torch.equal(prompt.positions, stock.positions[:, 0])
        assert torch.allclose(prompt.embeddings, stock.embeddings[0], atol=1e-12)
        assert prompt.visual.tolist() == stock.visual
        assert torch.equal(prompt.features, prompt.embeddings[stock.visual])
        assert len(prompt) + prompt.offset == stock.next
        if prompt.grid is not None:
            assert prompt.grid[0] * prompt.grid[1] * prompt.grid[2] == len(prompt.visual)
        assert (prompt.grid is None) == (family == "llava_onevision")
        # text behind the prompt stands where it would stand as a part of it
        row = prompts.row(index, family)
        ids = torch.cat([row.input_ids, torch.tensor([[20, 21, 22]])], 1)
        longer = Stock(model, VideoPrompts(ids, torch.ones_like(ids), row.visual))
        behind = longer.positions[:, 0, -3:]
        assert torch.equal(behind, (torch.arange(3) + len(prompt) + prompt.offset).expand(len(behind), -1))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_kept_keeps_its_position_or_is_counted_anew(family: str) -> None:
    model, prompts = video_model(family), video_prompts(family, rows=2, seed=2)
    for prompt in read(model, prompts):
        count = len(prompt.visual)
        for keep in ([], [0], sorted({1, 2, count - 1}), list(range(count))):
            places = [
                place
                for place in range(len(prompt))
                if place not in prompt.visual.tolist() or place in prompt.visual[keep].tolist()
            ]
            original, compact = (prompt.kept(torch.tensor(keep, dtype=torch.long), rule) for rule in RULES)
            for kept in (original, compact):
                assert kept.tokens == [prompt.tokens[place] for place in places]
                assert torch.equal(kept.embeddings, prompt.embeddings[places])
                assert torch.equal(kept.features, prompt.features[keep])
                assert len(kept) == len(prompt) - count + len(keep)
            assert torch.equal(original.positions, prompt.positions[:, places])
            # what is generated stands where the target's stands
            assert len(original) + original.offset == len(prompt) + prompt.offset
            assert compact.positions.tolist() == [list(range(len(places)))] * len(prompt.positions)
            assert compact.offset == 0


RULES = ("original", "compact")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_draft_that_keeps_all_reads_what_the_model_itself_reads(family: str) -> None:
    model, prompts = video_draft_model(family), video_prompts(family, rows=3, seed=3)
    whole = [prompt.kept(torch.arange(len(prompt.visual))) for prompt in read(model, prompts)]
    with Session(model, 64) as session:
        logits = session.prefill([prompt.tokens for prompt in whole], whole)
    for index in range(3):
        with torch.no_grad():
            right = model(**asked_of_transformers(prompts.row(index, family))).logits[0, -1]
        assert (logits[index] - right).abs().max() < 1e-6


@pytest.mark.parametrize("name", VIDEO_DECODERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_through_model_generate(family: str, name: str) -> None:
    model, prompts = video_model(family), video_prompts(family, rows=3, seed=1)
    decoder = VIDEO_DECODERS[name].build(video_draft_model(family))
    ours = decoder.generate(model, **asked(prompts), max_new_tokens=10)
    given = asked_of_transformers(prompts)
    theirs = model.generate(**given, max_new_tokens=10, do_sample=False)
    # what is not lossless is still the same through every door
    right = theirs if decoder.lossless else ours.sequences
    assert torch.equal(ours.sequences, right)
    assert torch.equal(model.generate(**given, max_new_tokens=10, do_sample=False, custom_generate=decoder), right)
    full = model.generate(**given, max_new_tokens=10, custom_generate=decoder, return_dict_in_generate=True)
    assert isinstance(full, GenerationOutput)
    assert torch.equal(full.sequences, ours.sequences)
    assert full.audit == ours.audit
    given = asked_of_transformers(padded_on_the_right(prompts))
    padded = model.generate(**given, max_new_tokens=10, custom_generate=decoder, return_dict_in_generate=True)
    assert padded.tokens == ours.tokens


def test_sampling_through_model_generate() -> None:
    model, prompts = video_model("qwen2_5_vl"), video_prompts("qwen2_5_vl", rows=2, seed=1)
    given = asked_of_transformers(prompts) | {"max_new_tokens": 10, "do_sample": True, "temperature": 1.2, "top_k": 20}
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(model.generate(**given, custom_generate=SpecVLM(prune_ratio=0.5)))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    torch.manual_seed(1)
    sampling = Sampling(1.2, 20, seed=int(torch.randint(2**62, ())))
    ours = SpecVLM(prune_ratio=0.5).generate(model, **asked(prompts), max_new_tokens=10, sampling=sampling)
    assert torch.equal(ours.sequences, outs[0])


YAML = """
decoders:
  named:
    class_path: saccade.inference.SpecVLM
    init_args: {draft_model: DRAFT, prune_ratio: 0.5, tree: chain, positions: compact}
  composed:
    class_path: saccade.inference.SpecVLM
    init_args:
      tree: [[0], [1], [0, 0]]
      selector:
        class_path: saccade.inference.reduction.selectors.TwoStage
        init_args: {prune_ratio: 0.4, mass: 0.3}
  relaxed:
    class_path: saccade.inference.LVSpec
    init_args:
      draft_length: 4
      layer: norm
      score_at: max
      rule:
        class_path: saccade.inference.verification.relaxed.VisualRelaxation
        init_args: {relaxation: 0.4, pst_window: 0}
  fly:
    class_path: saccade.inference.LVSpec
    init_args: {draft_model: DRAFT, layer: -2, rule: {class_path: saccade.inference.verification.relaxed.FLy}}
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_yaml_builds_them(family: str, tmp_path: Path) -> None:
    model, prompts = video_model(family), video_prompts(family, rows=2, seed=1)
    draft = str(tmp_path / "draft")
    copy.deepcopy(video_draft_model(family)).float().save_pretrained(draft)
    decoders = parse(YAML.replace("DRAFT", draft))
    rule = VisualRelaxation(relaxation=0.4, pst_window=0)
    assert decoders == {
        "named": SpecVLM(draft, prune_ratio=0.5, tree="chain", positions="compact"),
        "composed": SpecVLM(tree=[[0], [1], [0, 0]], selector=TwoStage(0.4, 0.3)),
        "relaxed": LVSpec(draft_length=4, rule=rule, layer="norm", score_at="max"),
        "fly": LVSpec(draft, rule=FLy(), layer=-2),
    }
    right = stock_tokens(model, prompts, family, 10)
    for decoder in decoders.values():
        first = decoder.generate(model, **asked(prompts), max_new_tokens=10)
        assert first.tokens == right or not decoder.lossless
        assert decoder.generate(model, **asked(prompts), max_new_tokens=10).tokens == first.tokens
    loaded = decoders["named"]._loaded  # type: ignore[attr-defined]
    assert [part.dtype for part in loaded.values()] == [torch.float64]


@pytest.mark.parametrize(
    ("kind", "setting", "needle"),
    [
        ("SpecVLM", "prune_rato: 0.3", "prune_rato"),
        ("SpecVLM", "prune_ratio: many", "prune_ratio"),
        ("SpecVLM", "prune_ratio: 1.3", "prune_ratio must be between 0 and 1"),
        ("SpecVLM", "tree: [[0, x]]", "tree"),
        ("SpecVLM", "positions: shifted", "positions"),
        ("SpecVLM", "selector: {class_path: saccade.inference.EngineConfig}", "selector"),
        ("LVSpec", "draft_lenght: 3", "draft_lenght"),
        ("LVSpec", "score_at: root", "score_at"),
        ("LVSpec", "rule: {class_path: saccade.inference.reduction.selectors.Uniform}", "rule"),
    ],
)
def test_yaml_refuses_a_wrong_setting_by_name(kind: str, setting: str, needle: str) -> None:
    with pytest.raises(Exception, match=needle):
        parse(f"decoders:\n  one:\n    class_path: saccade.inference.{kind}\n    init_args: {{{setting}}}\n")


@pytest.mark.parametrize("kind", [Autoregressive, AssistedDecoding, PromptLookup, SelfSpeculative, SpecVLM, LVSpec])
def test_yaml_knows_the_type_of_every_setting(kind: type[Decoder]) -> None:
    """What jsonargparse cannot resolve it takes unchecked: a word for a number, a mapping for an object."""
    parser = ArgumentParser()
    parser.add_class_arguments(kind, "decoder")
    types = {action.dest: str(getattr(action, "_typehint", None)) for action in parser._actions}
    assert "decoder.engine" in types
    assert [name for name, hint in types.items() if "Unvalidated" in hint or "Any" in hint] == []


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["autoregressive", *VIDEO_DECODERS])
@pytest.mark.parametrize("family", FAMILIES)
def test_models_are_as_they_were(family: str, name: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, draft = copy.deepcopy(video_model(family)), copy.deepcopy(video_draft_model(family))
    prompts = video_prompts(family, rows=2, seed=1)
    for part in (model, draft):
        part(**asked_of_transformers(prompts))  # transformers puts hooks of its own on a tower at its first forward
    if training:
        model.train()
        draft.model.visual.train() if family == "qwen2_5_vl" else draft.model.vision_tower.train()
    marker = torch.tensor([[7], [7]])
    for part in (model, draft):
        if family == "qwen2_5_vl":
            part.model.rope_deltas = marker
    decoder = Autoregressive() if name == "autoregressive" else VIDEO_DECODERS[name].build(draft)
    before = portrait(model), portrait(draft)

    def unchanged() -> bool:
        kept = all(getattr(part.model, "rope_deltas", marker) is marker for part in (model, draft))
        return kept and all(
            same(copy.copy(was), portrait(part)) for was, part in zip(before, (model, draft), strict=True)
        )

    decoder.generate(model, **asked(prompts), max_new_tokens=12)
    assert unchanged()

    # in the vision tower, in the prompt, and in a round: the draft's or the target's
    vision = type(next(part for part in model.modules() if isinstance(part, nn.LayerNorm | nn.Conv3d | nn.Conv2d)))
    places: list[tuple[type, int]] = [(vision, 1), (type(model.lm_head), 9), (type(language_part(model)), 1)]
    for kind, at in [*places, (type(language_part(model)), 3)]:
        forward, calls = kind.forward, [0]

        def failing(*arguments: Any, **named: Any) -> Any:
            calls[0] += 1  # noqa: B023
            if calls[0] == at:  # noqa: B023
                raise KeyError("planted")
            return forward(*arguments, **named)  # noqa: B023

        monkeypatch.setattr(kind, "forward", failing)
        with pytest.raises(KeyError, match="planted"):
            decoder.generate(model, **asked(prompts), max_new_tokens=12)
        monkeypatch.undo()
        assert unchanged()
    wrong = prompts.input_ids.clone()
    wrong[wrong == START] = VIDEO
    with pytest.raises(ValueError, match="do not fit"):
        decoder.generate(model, **(asked(prompts) | {"input_ids": wrong}), max_new_tokens=12)
    assert unchanged()


def test_a_stream_that_is_given_up_leaves_nothing_behind() -> None:
    family = "qwen2_5_vl"
    model, prompts = copy.deepcopy(video_model(family)), video_prompts(family, rows=2, seed=1)
    before = portrait(model)
    stream = SpecVLM(prune_ratio=0.5).stream(model, **asked(prompts), max_new_tokens=12)
    next(stream), next(stream)
    assert same(copy.copy(before), portrait(model))  # between rounds it is the user's own
    stream.close()
    assert same(before, portrait(model))
