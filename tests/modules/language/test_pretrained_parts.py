"""A LLaVA-OneVision from a trained language model: same logits, what is frozen, its folder, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
)

from saccade.datamodules import VideoCaptions
from saccade.datamodules.video.tokenization import END, START, load_video_tokenizer
from saccade.inference import SpecVLM
from saccade.modules import LoraSettings, VisionLanguageModel
from saccade.modules.language.export import merged_state_dict
from saccade.modules.language.vision_construction import LANGUAGE_PATH
from tests.modules.language.tiny import trainer
from tests.support.chat_models import QWEN_PADS, QWEN_SHAPE, chat_qwen
from tests.support.errors import one_line

VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
NEW = {"model_type": "llava_onevision", "vision_config": VISION}


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> str:
    return chat_qwen(tmp_path_factory.mktemp("language"))


def clips(tokenizer: str) -> VideoCaptions:
    """Two frames of one digit, with the tokenizer of a folder."""
    data = VideoCaptions(
        family="llava_onevision", tokenizer=tokenizer, frames=2, height=16, width=16, patch_size=8, max_digits=1,
        max_tokens=900, scenes=8, validation_scenes=2, test_scenes=2, batch_size=2,
    )  # fmt: skip
    data.setup()
    return data


def module(language: str | None, **settings: Any) -> VisionLanguageModel:
    """A tiny model with the language part of a folder."""
    return VisionLanguageModel(
        language_model=language, **{"config": NEW, "slot_scenes": 0, "learning_rate": 1e-2, "seed": 0} | settings
    )


def of_language(name: str) -> bool:
    return name.startswith((f"{LANGUAGE_PATH}.", "lm_head."))


@pytest.mark.parametrize("tied", [False, True])
def test_a_text_has_the_logits_of_the_language_model(tmp_path: Path, language: str, tied: bool) -> None:
    folder = chat_qwen(tmp_path / "tied", tie_word_embeddings=True) if tied else language
    data, made = clips(folder), module(folder)
    made.build_for(data)
    source = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = torch.tensor([data.tokenizer.encode("a plain backdrop, one digit")])
    assert torch.equal(made.model.eval()(input_ids=text).logits, source(input_ids=text).logits)
    assert made.model.config.tie_word_embeddings is tied
    assert made.model.config.video_token_id == data.tokenizer.convert_tokens_to_ids("<|video_pad|>")
    assert not any(value.is_meta for value in (*made.model.parameters(), *made.model.buffers()))


@pytest.mark.parametrize("settings", [{"lora": LoraSettings(rank=2)}, {"freeze_language": True}], ids=str)
def test_frozen_parts_stay_frozen_and_the_optimizer_does_not_have_them(
    tmp_path: Path, language: str, settings: dict[str, Any]
) -> None:
    data, made = clips(language), module(language, **settings)
    made.build_for(data)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    run = trainer(tmp_path, max_steps=2, limit_val_batches=0)
    run.fit(made, data)
    named = dict(made.model.named_parameters())
    optimized = {id(value) for group in run.optimizers[0].param_groups for value in group["params"]}
    for name, value in named.items():
        frozen = (of_language(name) and "lora_" not in name) or "post_layernorm" in name
        assert (id(value) in optimized) != frozen, name
        assert torch.equal(value, before[name]) == frozen, name
        assert value.dtype == (torch.bfloat16 if of_language(name) and "lora_" not in name else torch.float32), name
    assert any("lora_" in name for name in named) == ("lora" in settings)
    assert not any("lora_" in name for name in named if not of_language(name))


def test_without_either_the_language_part_is_trained(language: str) -> None:
    data, made = clips(language), module(language)
    made.build_for(data)
    assert {value.dtype for value in made.model.parameters()} == {torch.float32}
    losses, weights = made.token_losses(data._parts["train"][[0, 1]])
    (losses * weights).sum().backward()
    without = [name for name, value in made.model.named_parameters() if value.requires_grad and value.grad is None]
    assert without == []
    assert all(value.requires_grad for name, value in made.model.named_parameters() if of_language(name))


def test_the_folder_loads_and_decodes_as_generate(tmp_path: Path, language: str) -> None:
    """In float64 the decoder's tokens are those of `generate`; an adapter is in the folder's weights."""
    data, made = clips(language), module(language, lora=LoraSettings(rank=2), max_answer_tokens=6)
    trainer(tmp_path, max_steps=2, limit_val_batches=0).fit(made, data)
    batch = data._parts["validation"][[0, 1]]
    made.save_pretrained(tmp_path / "model")
    made.save_pretrained(tmp_path / "draft")
    target, draft = (
        AutoModelForImageTextToText.from_pretrained(tmp_path / name, dtype=torch.float64).eval()
        for name in ("model", "draft")
    )
    assert type(target).__name__ == "LlavaOnevisionForConditionalGeneration"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.get_vocab() == data.tokenizer.get_vocab()
    loaded = target.state_dict()
    assert all(torch.equal(loaded[name], value.double()) for name, value in merged_state_dict(made.model).items())
    prompt = {"input_ids": batch["input_ids"][:1, : int(batch["prompt_length"][0])]}
    prompt["attention_mask"] = torch.ones_like(prompt["input_ids"])
    prompt["pixel_values_videos"] = batch["pixel_values_videos"][:1].double()
    own = target.generate(**prompt, max_new_tokens=8, do_sample=False)
    out = SpecVLM(draft, prune_ratio=0.5).generate(target, **prompt, max_new_tokens=8, do_sample=False)
    assert out.tokens[0] == own[0, prompt["input_ids"].shape[1] :].tolist()


def test_a_checkpoint_loads_without_the_folder(tmp_path: Path, language: str) -> None:
    folder = chat_qwen(tmp_path / "language")
    data, made = clips(folder), module(folder, lora=LoraSettings(rank=2))
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run.fit(made, data)
    run.save_checkpoint(tmp_path / "last.ckpt")
    for file in Path(folder).iterdir():
        file.unlink()
    loaded = VisionLanguageModel.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True).eval()
    batch = data._parts["validation"][[0, 1]]
    assert torch.equal(loaded.token_losses(batch)[0], made.eval().token_losses(batch)[0])
    trained = {name for name, value in loaded.model.named_parameters() if value.requires_grad}
    assert trained == {name for name, value in made.model.named_parameters() if value.requires_grad}


def test_a_tower_is_taken_over(tmp_path: Path, language: str) -> None:
    data = clips(language)
    first = module(None, config=NEW | {"text_config": QWEN_SHAPE})
    first.build_for(data)
    first.save_pretrained(tmp_path / "first")
    made = module(language, vision_tower=str(tmp_path / "first"), config={"model_type": "llava_onevision"}, seed=9)
    made.build_for(data)
    taken: PreTrainedModel = made.model.model.vision_tower  # type: ignore[union-attr,assignment]
    given: PreTrainedModel = first.model.model.vision_tower  # type: ignore[union-attr,assignment]
    assert all(torch.equal(value, given.state_dict()[name]) for name, value in taken.state_dict().items())
    assert made.model.config.vision_config.num_hidden_layers == 1
    projectors = [each.model.model.multi_modal_projector.linear_1.weight for each in (first, made)]  # type: ignore[union-attr]
    assert not torch.equal(*projectors)


def test_tokens_are_added_where_the_tokenizer_has_none_for_pictures(tmp_path: Path) -> None:
    folder = chat_qwen(tmp_path, (START, END), spare=3)  # transformers adds one of Qwen2's own
    tokenizer = load_video_tokenizer(folder, "llava_onevision")
    assert tokenizer.convert_ids_to_tokens([len(tokenizer) - 2, len(tokenizer) - 1]) == ["<image>", "<video>"]
    assert tokenizer.decode(tokenizer.encode("<video>a"), skip_special_tokens=True) == "a"
    assert "<video>" in str(tokenizer.chat_template)
    made = module(folder)
    made.build_for(clips(folder))
    assert made.model.config.video_token_id == len(tokenizer) - 1


def test_special_tokens_that_a_conversion_left_as_words_are_special_again(tmp_path: Path) -> None:
    folder = chat_qwen(tmp_path)
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text())
    words = {item["content"]: item["id"] for item in data["added_tokens"] if item["content"] in QWEN_PADS}
    data["added_tokens"] = [item for item in data["added_tokens"] if item["content"] not in words]
    data["model"]["vocab"] |= words
    path.write_text(json.dumps(data))
    settings = tmp_path / "tokenizer_config.json"
    kept = {key: value for key, value in json.loads(settings.read_text()).items() if "special_tokens" not in key}
    settings.write_text(json.dumps({key: value for key, value in kept.items() if key != "added_tokens_decoder"}))
    assert len(AutoTokenizer.from_pretrained(folder).encode(QWEN_PADS[1])) > 1, "the case must be there"
    tokenizer = load_video_tokenizer(folder, "llava_onevision")
    assert [tokenizer.encode(word, add_special_tokens=False) for word in words] == [[place] for place in words.values()]


def test_answers_end_where_the_template_ends_them(tmp_path: Path) -> None:
    folder = chat_qwen(tmp_path)
    given = AutoTokenizer.from_pretrained(folder)
    other = given.convert_ids_to_tokens(0)
    given.eos_token = other
    given.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).eos_token == other, "the case must be there"
    data = clips(folder)
    assert data.tokenizer.eos_token == END
    made = module(folder)
    made.build_for(data)
    end = data.tokenizer.convert_tokens_to_ids(END)
    assert made.model.generation_config.eos_token_id == made.model.config.text_config.eos_token_id == end


def test_refusals_are_one_line(tmp_path: Path, language: str) -> None:
    def build(folder: Any, **settings: Any) -> None:
        module(str(folder), **settings).build_for(clips(language))

    full = chat_qwen(tmp_path / "full", (START, END), spare=1)
    one_line(lambda: module(full).build_for(clips(full)), "language_model", "unused places")
    (tmp_path / "empty").mkdir()
    one_line(lambda: build(tmp_path / "empty"), "language_model must be a causal language model")
    one_line(lambda: build(tmp_path / "nowhere"), "language_model must be an existing path")
    plain = chat_qwen(tmp_path / "plain", ())
    one_line(lambda: clips(plain), START)
    gemma = Gemma2Config(vocab_size=400, head_dim=16, **QWEN_SHAPE)
    Gemma2ForCausalLM(gemma).save_pretrained(tmp_path / "gemma")
    one_line(lambda: build(tmp_path / "gemma"), "linear head alone", "Gemma2")
    one_line(lambda: build(language, vision_tower=language), "vision_tower")
    one_line(lambda: module(language, config={"model_type": "qwen2_5_vl"}), "llava_onevision with language_model")
    one_line(lambda: module(language, config=NEW | {"text_config": QWEN_SHAPE}), "config.text_config must be left out")
    one_line(lambda: module(language, lora=LoraSettings(), freeze_language=True), "freeze_language")
