"""Import and ``model.generate(custom_generate=...)``: every decoder, every kind of input, one and the same request."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from saccade.inference import (
    AssistedDecoding,
    Autoregressive,
    Decoder,
    GenerationOutput,
    LVSpec,
    PromptLookup,
    Sampling,
    SpecVLM,
)
from saccade.inference.huggingface.custom_generate import read_call
from saccade.inference.reduction.selectors import SELECTORS
from saccade.inference.request import Request
from tests.inference.huggingface.test_visual_prompts import image_of_one_row
from tests.support.decoders import DECODERS, VIDEO_DECODERS
from tests.support.errors import one_line
from tests.support.models import prompts, tiny_model
from tests.support.video_checks import asked_of_transformers, video_draft_model, video_model
from tests.support.video_models import FAMILIES, tiny_video_model, video_prompts


def agree(
    make: Callable[[], Decoder], model: PreTrainedModel, given: dict[str, Tensor], new: int = 8
) -> GenerationOutput:
    """Both doors give the same tokens and counts, and a lossless decoder those of ``model.generate``."""
    mine = {name: value for name, value in given.items() if name != "mm_token_type_ids"}
    settings: dict[str, Any] = {"max_new_tokens": new, "do_sample": False}
    first = make().generate(model, **mine, **settings)
    second = model.generate(**given, **settings, custom_generate=make(), return_dict_in_generate=True)
    assert torch.equal(first.sequences, second.sequences)
    assert first.tokens == second.tokens
    for name in ("drafted", "accepted", "target_forwards", "draft_forwards"):
        assert getattr(first.stats, name) == getattr(second.stats, name)
    if make().lossless:
        assert torch.equal(first.sequences, model.generate(**given, **settings))
    return first


@cache
def language_model() -> PreTrainedModel:
    return tiny_model(residual=0.3)


@pytest.mark.parametrize("lengths", [[7], [6, 11, 3]], ids=["text", "padded batch"])
@pytest.mark.parametrize("name", DECODERS)
def test_text(name: str, lengths: list[int]) -> None:
    model = language_model()
    agree(lambda: DECODERS[name](model), model, prompts(model, lengths))


TEXT_DECODERS: dict[str, Callable[[PreTrainedModel], Decoder]] = {
    "autoregressive": DECODERS["autoregressive"],
    "prompt_lookup": DECODERS["prompt_lookup"],
    "self_speculative": DECODERS["self_speculative"],
    "assisted": lambda draft: AssistedDecoding(draft, draft_length=3, confidence_threshold=0.0),
}


@pytest.mark.parametrize("rows", [1, 2], ids=["one", "padded batch"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [*TEXT_DECODERS, *VIDEO_DECODERS])
def test_vision_language_models(name: str, family: str, rows: int) -> None:
    """Videos, one or several rows; and text alone, which decoders that draft from videos refuse at both doors."""
    model, draft = video_model(family), video_draft_model(family)
    make = TEXT_DECODERS.get(name) or VIDEO_DECODERS[name]
    agree(lambda: make(draft), model, asked_of_transformers(video_prompts(family, rows=rows, seed=1)))
    words = {"input_ids": torch.tensor([[3, 20, 21, 22], [0, 30, 31, 32]])[:rows]}
    if rows == 2:
        words["attention_mask"] = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    if name in TEXT_DECODERS:
        agree(lambda: make(draft), model, words)
        return
    one_line(lambda: make(draft).generate(model, **words), "row 0", "has no video")
    one_line(lambda: model.generate(**words, custom_generate=make(draft)), "row 0", "has no video")


@pytest.mark.parametrize("name", [*TEXT_DECODERS, "specvlm", "specvlm_draft"])
def test_images(name: str) -> None:
    model, draft, given = video_model("qwen2_5_vl"), video_draft_model("qwen2_5_vl"), image_of_one_row()
    given["mm_token_type_ids"] = (given["input_ids"] == model.config.image_token_id).long()
    agree(lambda: (TEXT_DECODERS.get(name) or VIDEO_DECODERS[name])(draft), model, given)


@cache
def narrow(family: str) -> PreTrainedModel:
    """A draft model of a family whose language part is less wide than the targets."""
    if family != "qwen2_5_vl":
        return tiny_video_model(family, hidden=16, seed=3)
    config = copy.deepcopy(tiny_video_model(family).config)
    config.text_config.hidden_size = config.vision_config.out_hidden_size = 24
    config.text_config.rope_parameters["mrope_section"] = [1, 1, 1]
    torch.manual_seed(3)
    draft: PreTrainedModel = type(video_model(family))(config).double().eval()
    return draft


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [AssistedDecoding, SpecVLM, LVSpec])
def test_a_draft_of_another_width(kind: type, family: str) -> None:
    model, draft = video_model(family), narrow(family)
    if kind is AssistedDecoding:  # its draft reads text alone
        agree(lambda: kind(draft), model, {"input_ids": torch.tensor([[3, 20, 21, 22]])})
        return
    agree(lambda: kind(draft_model=draft), model, asked_of_transformers(video_prompts(family, rows=2, seed=1)))


@pytest.mark.parametrize("selector", SELECTORS)
def test_selectors(selector: str) -> None:
    model = video_model("qwen2_5_vl")
    given = asked_of_transformers(video_prompts("qwen2_5_vl", rows=2, seed=1))
    agree(lambda: SpecVLM(selector=selector, prune_ratio=0.5), model, given, 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_and_the_same_request(family: str) -> None:
    model, given = video_model(family), asked_of_transformers(video_prompts(family, rows=2, seed=1))
    found: list[Request] = []

    def keep(
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        pixel_values_videos: Any = None,
        video_grid_thw: Any = None,
        **more: Any,
    ) -> Tensor:
        visual = {"pixel_values_videos": pixel_values_videos, "video_grid_thw": video_grid_thw}
        found.append(read_call(model, input_ids, generation_config, logits_processor, stopping_criteria, visual | more))
        return input_ids

    model.generate(**given, max_new_tokens=9, do_sample=True, temperature=0.5, custom_generate=keep)
    own = {name: value for name, value in given.items() if name not in ("input_ids", "attention_mask")}
    ids, mask = given["input_ids"], given["attention_mask"]
    wanted = Request.read(model, ids, mask, 9, None, None, None, own, sampling=Sampling(0.5, 50))
    (second,) = found
    assert set(second.visual) == set(wanted.visual)
    assert all(torch.equal(second.visual[name], wanted.visual[name]) for name in wanted.visual)
    second.visual, wanted.visual = {}, {}
    assert second == wanted


def test_a_cache_that_holds_tokens_is_refused() -> None:
    model, ids = language_model(), torch.tensor([[3, 1, 4, 1, 5]])
    cache = model(ids[:, :3], use_cache=True).past_key_values
    needles = ("past_key_values holds 3 tokens", "input_ids", "leave past_key_values out")
    for decoder in (Autoregressive(), PromptLookup()):
        one_line(lambda d=decoder: model.generate(ids, past_key_values=cache, custom_generate=d), *needles)
    right = model.generate(ids, max_new_tokens=4, do_sample=False)
    for more in ({"past_key_values": DynamicCache()}, {"use_cache": False}, {"cache_implementation": "static"}):
        found = model.generate(ids, max_new_tokens=4, do_sample=False, custom_generate=Autoregressive(), **more)
        assert torch.equal(found, right)
    one_line(lambda: Autoregressive().generate(model, ids, past_key_values=cache), "past_key_values", "not an input")


def test_embeddings_are_refused() -> None:
    model, ids = language_model(), torch.tensor([[3, 1, 4, 1, 5]])
    embeddings = model.get_input_embeddings()(ids)
    one_line(lambda: Autoregressive().generate(model, ids, inputs_embeds=embeddings), "inputs_embeds", "input_ids")
    one_line(
        lambda: model.generate(ids, inputs_embeds=embeddings, custom_generate=Autoregressive()),
        "inputs_embeds",
        "give input_ids",
    )


def test_positions_of_the_users_own_beside_a_video() -> None:
    model, given = video_model("qwen2_5_vl"), asked_of_transformers(video_prompts("qwen2_5_vl", seed=1))
    counted = torch.arange(given["input_ids"].shape[1])[None]
    right = model.generate(**given, max_new_tokens=4, do_sample=False)
    call = lambda **more: model.generate(  # noqa: E731
        **given, **more, max_new_tokens=4, do_sample=False, custom_generate=Autoregressive()
    )
    assert torch.equal(call(), right)
    for positions in (counted + 5, counted[None].expand(3, -1, -1) * 2):
        one_line(lambda p=positions: call(position_ids=p), "position_ids", "leave position_ids out")


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_features_that_are_encoded_already(family: str) -> None:
    """Both doors take them for the target, those of deeper layers too; a draft of another width needs the pixels."""
    model = video_model(family)
    if "mm_encoder_outputs" not in inspect.signature(type(model.model).forward).parameters:
        pytest.skip("this transformers does not take encoded features")
    given = asked_of_transformers(video_prompts(family, seed=1))
    right = model.generate(**given, max_new_tokens=4, do_sample=False)
    pixels, grid = given.pop("pixel_values_videos"), given["video_grid_thw"]
    with torch.no_grad():
        features = model.model.get_video_features(pixels, grid, return_dict=True)
    own = {name: value for name, value in given.items() if name != "mm_token_type_ids"}
    out = Autoregressive().generate(model, **own, mm_encoder_outputs={"video": features}, max_new_tokens=4)
    assert torch.equal(out.sequences, right)
    if family != "qwen2_5_vl":
        return
    draft = narrow(family)
    one_line(
        lambda: SpecVLM(draft_model=draft).generate(model, **own, mm_encoder_outputs={"video": features}),
        "mm_encoder_outputs",
        "pixel_values_videos",
    )


def test_the_models_generation_config_counts_at_both_doors() -> None:
    model = copy.deepcopy(language_model())
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.7, top_p=0.9, max_new_tokens=6)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    outs = []
    for call in (
        lambda: Autoregressive().generate(model, ids).sequences,
        lambda: model.generate(ids, custom_generate=Autoregressive()),
        lambda: Autoregressive().generate(model, ids, sampling=Sampling(0.7, 50, 0.9)).sequences,
        lambda: torch.cat([ids, *(torch.tensor(new) for new in Autoregressive().stream(model, ids))], 1),
    ):
        torch.manual_seed(4)
        outs.append(call())
    assert all(torch.equal(out, outs[0]) for out in outs)
    greedy = model.generate(ids, do_sample=False)
    assert not torch.equal(outs[0], greedy)
    assert torch.equal(Autoregressive().generate(model, ids, do_sample=False).sequences, greedy)
