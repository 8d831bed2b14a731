"""Prompts in the chat form of a model, with images and videos, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from saccade.datamodules import Prompts
from saccade.datamodules.video.tokenization import train_video_tokenizer
from tests.support.chat_models import TEMPLATE, chat_model, vision_chat_model, write_prompts
from tests.support.errors import one_line
from tests.support.video_models import tiny_video_model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def vision(tmp_path_factory) -> str:
    return vision_chat_model(tmp_path_factory.mktemp("vision"))


def ready(source: str, folder: Path, *rows: object, **settings: object) -> Prompts:
    data = Prompts([write_prompts(folder / "p.jsonl", rows)], tokenizer=source, **settings)
    data.setup("validate")
    return data


def test_the_chat_template_of_the_tokenizer(tmp_path, model):
    rows = {"prompt": "hello", "answer": "two"}, {"turns": ["one", "fox"]}
    data = ready(model, tmp_path, *rows)
    text = data.tokenizer.decode
    assert text(data.encode(0)[0]) == "[user]hello<|end|>[assistant]"
    assert text(data.encode(1, ["quick"])[0]) == "[user]one<|end|>[assistant]quick<|end|>[user]fox<|end|>[assistant]"
    first, second = data.val_dataloader()
    # the answer stands behind the prompt, and nothing is to be predicted
    assert text(first["input_ids"][0]) == "[user]hello<|end|>[assistant]two"
    assert text(first["input_ids"][0, : int(first["prompt_length"])]) == "[user]hello<|end|>[assistant]"
    assert (first["item"].tolist(), second["item"].tolist()) == ([0], [1])
    assert "labels" not in first


def test_an_answer_that_spells_a_special_token_is_text(tmp_path, model):
    data = ready(model, tmp_path, {"prompt": "hello", "answer": "a <|end|> b"}, {"prompt": "hello", "answer": "fox"})
    spelled, plain = (batch["input_ids"][0, int(batch["prompt_length"]) :] for batch in data.val_dataloader())
    end = data.tokenizer.convert_tokens_to_ids("<|end|>")
    assert end not in spelled.tolist()
    assert data.tokenizer.decode(spelled) == "a <|end|> b"
    assert data.tokenizer.decode(plain) == "fox"
    assert end in data.encode(0)[0], "that of the template is one"


def test_templates_and_system_prompts(tmp_path, model):
    (tmp_path / "t.jinja").write_bytes(b"\xef\xbb\xbf{{ messages[-1]['content'] }}!")  # with a byte order mark
    system = {"messages": [{"role": "system", "content": "own"}, {"role": "user", "content": "fox"}]}
    for settings, first, second in (
        ({"template": str(tmp_path / "t.jinja")}, "hello!", "fox!"),
        ({"template": "none"}, "hello", "own\n\nfox"),
        ({"system": "be brief"}, "[system]be brief<|end|>[user]hello<|end|>[assistant]", None),
        ({"system": "be brief", "template": "none"}, "be brief\n\nhello", "own\n\nfox"),
    ):
        data = ready(model, tmp_path, {"prompt": "hello"}, system, **settings)
        assert data.tokenizer.decode(data.encode(0)[0]) == first
        assert second is None or data.tokenizer.decode(data.encode(1)[0]) == second


def test_a_tokenizer_without_a_template_gets_plain_text_and_says_so(tmp_path, caplog):
    source = chat_model(tmp_path / "base", template=None)
    with caplog.at_level("INFO"):
        data = ready(source, tmp_path, {"prompt": "hello"})
    assert data.tokenizer.decode(data.encode(0)[0]) == "hello"
    assert "has no chat template, so prompts are plain text" in caplog.text


def test_templates_that_cannot_be_used(tmp_path, model):
    one_line(lambda: Prompts(template="no.jinja"), "template must be auto, none or a Jinja file, got 'no.jinja'")
    (tmp_path / "empty").write_text(" ")
    one_line(lambda: Prompts(template=str(tmp_path / "empty")), "which is empty")
    for text, reason in (("{{ raise_exception('no system') }}", "no system"), ("{% if %}", "template takes them")):
        (tmp_path / "bad").write_text(text)
        call = lambda: ready(model, tmp_path, {"prompt": "x"}, template=str(tmp_path / "bad"))  # noqa: E731
        one_line(call, "p.jsonl, line 1: messages must be such that the chat template takes them", reason)
    (tmp_path / "blank").write_text("{{ '' }}")
    call = lambda: ready(model, tmp_path, {"prompt": "x"}, template=str(tmp_path / "blank"))  # noqa: E731
    one_line(call, "prompt must give at least one token")


def test_the_same_prompt_twice_is_two_prompts(tmp_path, model):
    rows = [{"prompt": "hello"}, {"prompt": "hello"}, {"prompt": "hello", "category": "other"}]
    keys = [int(batch["prompt_key"]) for batch in ready(model, tmp_path, *rows).val_dataloader()]
    assert len(set(keys)) == 3
    turned = [int(batch["prompt_key"]) for batch in ready(model, tmp_path, *rows[::-1]).val_dataloader()]
    assert sorted(keys) == sorted(turned)


def test_images_and_a_video_come_before_the_question(tmp_path, vision):
    for name, size in (("a.png", (16, 24)), ("b.png", (16, 8))):
        Image.new("RGB", size, "red").save(tmp_path / name)
    rows = (
        {"prompt": "what is it?", "images": ["a.png", "b.png"]},
        {"prompt": "what is it?", "video": "a.png", "answer": "fox"},
        {"prompt": "what is it?"},
    )
    data = ready(vision, tmp_path, *rows, frames=4, max_pixels=256)
    assert data.visual is not None
    images, video, text = data.val_dataloader()
    ids = images["input_ids"][0].tolist()
    grid = images["image_grid_thw"]
    assert grid.tolist() == [[1, 4, 2], [1, 4, 6]]
    runs = [text.count("<|image_pad|>") for text in data.tokenizer.decode(ids).split("<|vision_end|>")]
    assert runs == [2, 6, 0]
    assert len(images["pixel_values"]) == int(grid.prod(-1).sum())
    assert ids.count(data.visual.image_token_id) == int(grid.prod(-1).sum()) // 4
    decoded = data.tokenizer.decode(ids)
    assert decoded.index("<|vision_end|>") < decoded.index("what is it?")
    assert decoded.count("<|vision_start|>") == 2
    grid = video["video_grid_thw"]
    assert int(grid[0, 0]) == 2  # four frames in pairs
    assert video["input_ids"][0].tolist().count(data.visual.video_token_id) == int(grid.prod()) // 4
    assert not any(name.startswith("pixel") for name in text)


def test_a_video_of_qwen3_vl_has_its_times(tmp_path):
    """In the text of the question, whatever the template writes for a video."""
    tokenizer = train_video_tokenizer(["what is it?", "a red fox"], 300, "qwen3_vl")
    tokenizer.save_pretrained(tmp_path / "model")
    tiny_video_model("qwen3_vl").config.save_pretrained(tmp_path / "model")
    frames = [Image.new("RGB", (16, 24), (40 * number, 0, 0)) for number in range(6)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    rows = ({"prompt": "what is it?", "video": "a.gif"}, {"prompt": "what is it?", "images": ["a.gif"]})
    for count in (2, 6):
        data = ready(str(tmp_path / "model"), tmp_path, *rows, frames=count, max_pixels=24 * 16)
        video, image = data.val_dataloader()
        each = "<|vision_start|>" + "<|video_pad|>" * 6 + "<|vision_end|>"
        times = ["0.1"] if count == 2 else ["0.0", "0.1", "0.2"]
        text = "".join(f"<{time} seconds>{each}" for time in times)
        assert f"{text}what is it?" in data.tokenizer.decode(video["input_ids"][0])
        assert video["video_grid_thw"].tolist() == [[count // 2, 6, 4]]
        assert "seconds" not in data.tokenizer.decode(image["input_ids"][0])


def test_an_image_is_what_the_image_processor_of_transformers_makes(tmp_path, vision):
    processor = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    picture = np.random.default_rng(0).integers(0, 255, (24, 16, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    data = ready(vision, tmp_path, {"prompt": "x", "images": ["a.png"]}, max_pixels=24 * 16)
    own = next(iter(data.val_dataloader()))
    theirs = processor.Qwen2VLImageProcessorPil(patch_size=4, min_pixels=64, max_pixels=24 * 16)(
        images=[Image.fromarray(picture)], return_tensors="pt"
    )
    assert own["image_grid_thw"].tolist() == theirs["image_grid_thw"].tolist()
    assert torch.allclose(own["pixel_values"], theirs["pixel_values"], atol=1e-4)


def test_images_for_a_text_model_are_refused(tmp_path, model):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for key, value in (("images", ["a.png"]), ("video", "a.png")):
        call = lambda: ready(model, tmp_path, {"prompt": "x"}, {"prompt": "x", key: value})  # noqa: E731, B023
        one_line(call, f"p.jsonl, line 2: {key} must be left out for a model that reads text only, got llama")


def test_a_picture_that_cannot_be_read_is_named(tmp_path, vision):
    (tmp_path / "a.png").write_bytes(b"no picture")
    data = ready(vision, tmp_path, {"prompt": "x", "images": ["a.png"]})
    one_line(lambda: next(iter(data.val_dataloader())), "p.jsonl, line 1", "a.png cannot be read as an image")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"files": []}, "files must name files, got an empty list"),
        ({"max_prompts": 0}, "max_prompts must be at least 1, got 0"),
        ({"too_long": "error"}, "too_long must be skip or cut, got 'error'"),
        ({"frames": 0}, "frames must be at least 1"),
        ({"max_pixels": 0}, "max_pixels must be at least 1"),
        ({"files": ["none.jsonl"]}, "cannot read none.jsonl"),
    ],
)
def test_impossible_settings(settings, message):
    one_line(lambda: Prompts(**settings), message)


def test_a_tokenizer_is_needed(tmp_path):
    one_line(lambda: Prompts().setup("validate"), "tokenizer must be given where the model has no path, got None")


def test_the_template_of_the_test_is_that_of_the_tokenizer(model):
    assert AutoTokenizer.from_pretrained(model).chat_template == TEMPLATE
