"""Configurations of vision-language models: completed from the data, exported plainly, and refused with one line."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from saccade.datamodules import VideoCaptions
from saccade.datamodules.text.tokenization import train_tokenizer
from saccade.inference import SpecVLM
from saccade.modules import LanguageModel, LoraSettings, VisionLanguageModel
from saccade.modules.language.vision_construction import FAMILIES, complete_vision_config
from saccade.modules.language.vision_prompts import prompt_inputs
from tests.modules.language.tiny import trainer
from tests.modules.language.tiny_video import CONFIGS, TEXT, TinyVideo, built, exported, video_data, video_model

QWEN, LLAVA = "qwen2_5_vl", "llava_onevision"


def changed(family: str, part: str | None = None, **settings: Any) -> dict[str, Any]:
    """A tiny configuration with other settings, in one of its parts or at its top."""
    config = copy.deepcopy(CONFIGS[family])
    (config if part is None else config[part]).update(settings)
    return config


@pytest.mark.parametrize("family", CONFIGS)
def test_a_configuration_is_completed_from_the_data(family: str) -> None:
    data = video_data(family)
    given = copy.deepcopy(CONFIGS[family])
    config = complete_vision_config(CONFIGS[family], data.tokenizer, data.visual)
    assert given == CONFIGS[family]
    assert config.text_config.vocab_size == len(data.tokenizer)
    assert config.text_config.eos_token_id == data.tokenizer.eos_token_id
    for name, token in FAMILIES[family].tokens.items():
        assert getattr(config, name) == data.tokenizer.convert_tokens_to_ids(token)
    assert config.vision_config.patch_size == 4
    if family == QWEN:
        assert config.text_config.rope_parameters["mrope_section"] == [2, 3, 3]
        assert config.vision_config.out_hidden_size == 32
        assert (config.vision_config.window_size, config.vision_config.fullatt_block_indexes) == (32, [1])
    else:
        assert config.vision_config.image_size == 8


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_further_families_are_trained_and_decoded(family: str) -> None:
    """Loss and gradients are those of transformers, every weight learns, and a decoder answers as `generate` does."""
    data = VideoCaptions(
        family=family,  # type: ignore[arg-type]
        vocab_size=400, frames=4, height=32, width=32, patch_size=8, max_digits=1, scenes=2, validation_scenes=1,
        test_scenes=0, batch_size=2, max_tokens=600,
    )  # fmt: skip
    data.setup("fit")
    vision = {"depth": 2, "num_heads": 2}
    vision |= {"embed_dim": 16} if family == "qwen2_vl" else {"hidden_size": 16, "intermediate_size": 32}
    module = VisionLanguageModel(
        config={"model_type": family, "text_config": TEXT | {"max_position_embeddings": 640}, "vision_config": vision},
        seed=0,
    )
    module.build_for(data)
    config = module.model.config
    assert config.text_config.rope_parameters["mrope_section"] == ([2, 3, 3] if family == "qwen2_vl" else [4, 2, 2])
    assert getattr(config.vision_config, "deepstack_visual_indexes", [0]) == [0]
    batch = next(iter(data.train_dataloader()))
    losses, weights = module.train().token_losses(batch)
    loss = (losses * weights).sum() / weights.sum()
    inputs = {name: value for name, value in batch.items() if name not in ("prompt_length", "item")}
    torch.testing.assert_close(loss, module.model(**inputs).loss, rtol=1e-5, atol=1e-6)
    loss.backward()
    still = [name for name, weight in module.model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not [name for name in still if not name.endswith(("k_proj.bias", "qkv.bias"))]
    model = module.double().eval().model
    given = prompt_inputs({**batch, "pixel_values_videos": batch["pixel_values_videos"].double()}, [0, 1], 0)
    right = model.generate(**given, max_new_tokens=8, do_sample=False)
    given.pop("mm_token_type_ids")
    found = SpecVLM(prune_ratio=0.5).generate(model, **given, max_new_tokens=8)  # type: ignore[arg-type]
    assert torch.equal(found.sequences, right)


@pytest.mark.parametrize(("heads", "sections"), [(1, [4, 6, 6]), (2, [2, 3, 3]), (4, [2, 1, 1])])
def test_sections_of_positions_fill_half_of_a_head(heads: int, sections: list[int]) -> None:
    data = video_data()
    config = complete_vision_config(
        changed(QWEN, "text_config", num_attention_heads=heads, rope_theta=5000.0), data.tokenizer, data.visual
    )
    rope = config.text_config.rope_parameters
    assert (rope["mrope_section"], rope["rope_theta"]) == (sections, 5000.0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", CONFIGS)
def test_export_loads_with_plain_transformers(tmp_path: Path, family: str, tied: bool) -> None:
    module = video_model(family, config=changed(family, tie_word_embeddings=tied), slot_scenes=0, max_answer_tokens=5)
    data = video_data(family)
    trainer(tmp_path, max_steps=2, limit_val_batches=0).fit(module, data)
    module.eval().save_pretrained(tmp_path / "model")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert type(loaded) is type(module.model)
    inputs = {name: value for name, value in data.batch([0, 5]).items() if name not in ("prompt_length", "item")}
    assert torch.equal(loaded(**inputs).logits, module.model(**inputs).logits)
    assert tokenizer.get_vocab() == data.tokenizer.get_vocab()
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    assert loaded.generation_config.pad_token_id == tokenizer.pad_token_id


def test_lora_is_merged_in_the_export(tmp_path: Path) -> None:
    module, data = built(lora=LoraSettings(rank=2, alpha=64.0), learning_rate=1e-2, slot_scenes=0)
    trainer(tmp_path, max_steps=3, limit_val_batches=0).fit(module, data)
    inputs = {name: value for name, value in data.batch([0, 5]).items() if name not in ("prompt_length", "item")}
    with_adapters = module.eval().model(**inputs).logits
    module.save_pretrained(tmp_path / "model")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert not [name for name, _ in loaded.named_parameters() if "lora" in name]
    assert torch.allclose(loaded(**inputs).logits, with_adapters, atol=1e-5)
    module.model.disable_adapters()
    assert not torch.allclose(module.model(**inputs).logits, with_adapters, atol=1e-3)


def test_an_exported_model_is_trained_further(tmp_path: Path) -> None:
    path = exported(tmp_path)
    data = video_data()
    module = video_model(path=path, slot_scenes=0)
    module.build_for(data)
    fresh, _ = built()
    for a, b in zip(module.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "path or config must be given, got neither"),
        ({"config": {"model_type": "llama"}}, "config.model_type must be qwen2_vl or .* llava_onevision, got 'llama'"),
        ({"config": {"text_config": {}}}, "config.model_type must be qwen2_vl or .* llava_onevision, got None"),
        ({"config": CONFIGS[QWEN], "slot_scenes": -1}, "slot_scenes must be at least 0, got -1"),
        ({"config": CONFIGS[QWEN], "max_answer_tokens": 0}, "max_answer_tokens must be at least 1, got 0"),
        ({"config": CONFIGS[QWEN], "learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        VisionLanguageModel(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(QWEN, depht=3), "config must have settings of qwen2_5_vl, got 'depht'"),
        (
            changed(QWEN, "text_config", hiden=3),
            "config.text_config must have settings of qwen2_5_vl_text, got 'hiden'",
        ),
        (
            changed(QWEN, "vision_config", hiden=3),
            "config.vision_config must have settings of qwen2_5_vl_vision, got 'hiden'",
        ),
        (changed(LLAVA, "vision_config", model_type="vit9"), "config.vision_config.model_type must be one that"),
        (changed(QWEN, "text_config", num_attention_heads=3), "config.text_config.hidden_size must be a multiple"),
        (
            changed(QWEN, "text_config", rope_parameters={"mrope_section": [8, 12, 12]}),
            "mrope_section must be three numbers with the sum 8",
        ),
        (changed(QWEN, "vision_config", window_size=4), "window_size must be at least 8, one merged patch, got 4"),
        (
            changed(QWEN, "vision_config", out_hidden_size=8),
            "out_hidden_size must be 32, the hidden_size of text_config, got 8",
        ),
        (
            changed(QWEN, "vision_config", patch_size=14),
            "data.patch_size must be 14, the patch_size of the model's vision_config, got 4",
        ),
        (
            changed(QWEN, "vision_config", spatial_merge_size=1),
            "data.merge_size must be 1, the spatial_merge_size of the",
        ),
        (changed(LLAVA, "vision_config", image_size=16), "data.height must be 16, the image_size of the"),
        (changed(QWEN, video_token_id=3), "tokenizer must have token id 3 for <|video_pad|>"),
        (changed(QWEN, "text_config", vocab_size=100), "vocab_size of the model must be at least"),
        (changed(QWEN, "text_config", max_position_embeddings=32), "max_tokens must be at most 32, the model's"),
        (changed(QWEN, "text_config", hidden_size="wide"), "hidden_size must be a multiple of four"),
        (changed(QWEN, "text_config", num_hidden_layers="many"), "config was refused by transformers as qwen2_5_vl ("),
    ],
)
def test_configurations_that_do_not_fit_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        video_model(config=config).build_for(video_data(config["model_type"]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_data_of_the_other_family_and_a_foreign_tokenizer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.family must be the model's family qwen2_5_vl, got llava_onevision"):
        _build(video_model(QWEN), video_data(QWEN), visual=video_data(LLAVA).visual)
    text_only = train_tokenizer(["some words"], 270)
    with pytest.raises(ValueError, match=r"tokenizer must have the token <\|image_pad\|> for qwen2_5_vl"):
        _build(video_model(QWEN), video_data(QWEN), tokenizer=text_only)
    with pytest.raises(ValueError, match=r"config\.text_config\.vocab_size must be given without a tokenizer"):
        video_model(QWEN).build()
    path = exported(tmp_path)
    data = video_data(QWEN)
    with pytest.raises(
        ValueError, match=r"data\.patch_size must be 4, the patch_size of the model's vision_config, got 2"
    ):
        _build(video_model(path=path), data, visual=dataclasses.replace(data.visual, patch_size=2))
    with pytest.raises(ValueError, match=r"data\.family must be the model's family qwen2_5_vl, got llava_onevision"):
        _build(video_model(path=path), video_data(QWEN), visual=video_data(LLAVA).visual)


def _build(module: VisionLanguageModel, data: TinyVideo, **instead: Any) -> None:
    module.build(**{"tokenizer": data.tokenizer, "visual": data.visual, "max_tokens": 64, **instead})


def test_a_path_without_such_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path must be an existing path, got .*nothing") as caught:
        video_model(path=str(tmp_path / "nothing")).build()
    assert "\n" not in str(caught.value)
    text = LanguageModel(config={"model_type": "llama", "vocab_size": 50, "hidden_size": 16, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2})  # fmt: skip
    text.build()
    text.save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="path must be a vision-language model, got") as caught:
        video_model(path=str(tmp_path / "text")).build()
    assert "\n" not in str(caught.value)


def test_foreign_checkpoints_and_answers_without_words_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the checkpoint was not written by saccade\.modules\.VisionLanguageModel"):
        video_model().on_load_checkpoint({})
    module, data = built()
    module.tokenizer = None
    with pytest.raises(ValueError, match="tokenizer must be given to write answers"):
        module.answers(data.batch([0]), [0])
