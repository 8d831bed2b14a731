"""VideoCaptions: batches that models take as they are, the same clips for any batch size, clear errors."""

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import _utils
from transformers import (
    AutoTokenizer,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from saccade.datamodules import VideoCaptions
from saccade.datamodules.loaders import BatchSampler
from saccade.datamodules.text.tokenization import train_tokenizer
from saccade.datamodules.video.clips import Files
from saccade.datamodules.video.grammar import LIST_PROMPT, PROMPTS
from saccade.datamodules.video.reading import read_clip
from saccade.datamodules.video.scenes import make_scene, render
from saccade.datamodules.video.tokenization import SPECIAL_TOKENS, video_prompt, visual_format
from tests.datamodules.video.made_clips import write_manifest
from tests.support.errors import one_line
from tests.support.shared_data import shared_file

FAMILIES = ["qwen2_5_vl", "llava_onevision"]


def _data(**settings: Any) -> VideoCaptions:
    defaults: dict[str, Any] = {
        "vocab_size": 700, "frames": 4, "height": 28, "width": 28, "patch_size": 7, "max_digits": 2, "scenes": 12,
        "validation_scenes": 5, "test_scenes": 3, "batch_size": 4,
    }  # fmt: skip
    return VideoCaptions(**{**defaults, **settings})


@pytest.fixture(scope="module", params=FAMILIES)
def data(request: pytest.FixtureRequest) -> VideoCaptions:
    made = _data(family=request.param)
    made.setup()
    return made


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A manifest of ten single images with questions."""
    lines = []
    for number in range(10):
        Image.new("RGB", (40, 30), (20 * number, 0, 0)).save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"video": f"{number}.png", "prompt": "How red?", "answer": f"As red as {number}."}))
    (tmp_path / "clips.jsonl").write_text("\n".join(lines))
    return tmp_path / "clips.jsonl"


def _tiny_model(data: VideoCaptions) -> torch.nn.Module:
    visual, vocabulary = data.visual, len(data.tokenizer)
    text = {
        "vocab_size": vocabulary, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512,
    }  # fmt: skip
    torch.manual_seed(0)
    if visual.family == "qwen2_5_vl":
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
        vision = {
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": visual.patch_size,
            "spatial_merge_size": visual.merge_size, "temporal_patch_size": visual.temporal_patch_size,
            "out_hidden_size": 16, "window_size": 28, "fullatt_block_indexes": [0],
        }  # fmt: skip
        return Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(
                text_config=text, vision_config=vision, image_token_id=visual.image_token_id,
                video_token_id=visual.video_token_id, vision_start_token_id=visual.vision_start_token_id,
                vision_end_token_id=visual.vision_end_token_id,
            )
        )  # fmt: skip
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "patch_size": visual.patch_size, "image_size": visual.height,
        "vision_use_head": False,
    }  # fmt: skip
    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            text_config={"model_type": "qwen2", **text}, vision_config=vision, image_token_index=visual.image_token_id,
            video_token_index=visual.video_token_id, vision_feature_layer=-1,
        )
    )  # fmt: skip


def test_models_take_batches_and_prompts_as_they_are(data: VideoCaptions) -> None:
    model = _tiny_model(data).eval()
    batch = next(iter(data.val_dataloader()))
    inputs = {name: value for name, value in batch.items() if name not in ("item", "prompt_length")}
    with torch.no_grad():
        whole = model(**inputs)
    assert torch.isfinite(whole.loss)
    # the model's own view of one row's prompt is that of the batch
    row = 1
    prompt = data.tokenizer.decode(batch["input_ids"][row, : batch["prompt_length"][row]], skip_special_tokens=False)
    question = prompt.split("<|im_end|>")[0].split("<|vision_end|>")[-1].split("<video>\n")[-1]
    film = render(make_scene(0, "validation", int(batch["item"][row]), 2), 4, 28, 28)
    alone = video_prompt(data.tokenizer, data.visual, film, question)
    assert torch.equal(alone["input_ids"][0], batch["input_ids"][row, : batch["prompt_length"][row]])
    with torch.no_grad():
        logits = model(**alone).logits
    torch.testing.assert_close(logits[0], whole.logits[row, : logits.shape[1]], rtol=1e-4, atol=1e-5)


def test_the_layout_of_a_sequence(data: VideoCaptions) -> None:
    batch = next(iter(data.test_dataloader()))
    names = {"input_ids", "attention_mask", "labels", "prompt_length", "item", "pixel_values_videos"}
    qwen = data.family == "qwen2_5_vl"
    assert set(batch) == names | ({"video_grid_thw", "mm_token_type_ids"} if qwen else set())
    count = data.visual.tokens(4)
    assert count == (8 if qwen else 4 * 4 + 1)
    before, between = ("<|vision_start|>", "<|vision_end|>") if qwen else ("", "\n")
    for row, item in enumerate(batch["item"].tolist()):
        length, start = int(batch["attention_mask"][row].sum()), int(batch["prompt_length"][row])
        ids = batch["input_ids"][row]
        text = data.tokenizer.decode(ids[:length])
        video = data.visual.video_token * count
        assert text.startswith(f"<|im_start|>user\n{before}{video}{between}")
        assert data.tokenizer.decode(ids[:start]).endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert data.tokenizer.decode(ids[start : length - 1]) == data.answer(item, "test")
        assert ids[length - 1] == data.tokenizer.eos_token_id
        assert set(ids[length:].tolist()) <= {data.tokenizer.pad_token_id}
        assert batch["attention_mask"][row, :length].all()
        labels = batch["labels"][row]
        assert torch.equal(labels[start:length], ids[start:length])
        assert set(torch.cat([labels[:start], labels[length:]]).tolist()) == {-100}
        if qwen:
            assert batch["mm_token_type_ids"][row].tolist() == [
                2 if token == data.visual.video_token_id else 0 for token in ids.tolist()
            ]
    assert all(value.dtype in (torch.int64, torch.float32) for value in batch.values())


def _clips_of(data: VideoCaptions, loader: Any) -> dict[int, tuple[list[int], torch.Tensor]]:
    found = {}
    for batch in loader:
        pixels = batch["pixel_values_videos"].reshape(len(batch["item"]), -1)
        for row, item in enumerate(batch["item"].tolist()):
            assert item not in found
            found[item] = (batch["input_ids"][row, : batch["attention_mask"][row].sum()].tolist(), pixels[row])
    return found


def test_clips_are_the_same_for_any_batch_size_workers_and_ranks(data: VideoCaptions) -> None:
    other = _data(family=data.family, batch_size=3, num_workers=2)
    other.setup()
    one, two = _clips_of(data, data.val_dataloader()), _clips_of(other, other.val_dataloader())
    shares = [
        data._parts["validation"][batch]
        for rank in range(2)
        for batch in BatchSampler(5, 2, rank=rank, world_size=2, train=False, seed=0)
    ]
    three = _clips_of(data, shares)
    assert set(one) == set(two) == set(three) == set(range(5))
    for item, (ids, pixels) in one.items():
        assert ids == two[item][0] == three[item][0]
        assert torch.equal(pixels, two[item][1])
        assert torch.equal(pixels, three[item][1])


def test_training_is_shuffled_anew_in_every_epoch_and_evaluation_is_in_order(data: VideoCaptions) -> None:
    loader = data.train_dataloader()
    orders = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        orders.append([item for batch in loader for item in batch["item"].tolist()])
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(12))
    for evaluation in (data.test_dataloader(), data.predict_dataloader()):
        assert [item for batch in evaluation for item in batch["item"].tolist()] == [0, 1, 2]


def test_answers_score_all_facts_and_those_of_others_less(data: VideoCaptions) -> None:
    for part, count in (("train", 12), ("validation", 5), ("test", 3)):
        for item in range(count):
            score = data.score(data.answer(item, part), item, part)
            assert score is not None
            assert score.right == score.asked > 0
    assert data.score(data.answer(0, "test"), 1, "test").accuracy < 1  # type: ignore[union-attr]
    prompts = {data._parts["train"].source.texts(item)[0] for item in range(12)}
    assert len(prompts) >= 3
    assert data.score("", 1, "test").right == 0  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="part must be one of train, validation, test, got 'val'"):
        data.score("", 0, "val")
    with pytest.raises(ValueError, match="item must be from 0 to 2 in the test part, got 3"):
        data.answer(3, "test")


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_lists_of_facts_are_asked_for_in_training_alone(share: float) -> None:
    data = _data(fact_lists=share, scenes=300)
    data.setup()
    asked = [data._clips("train", item).source.texts(item)[0] for item in range(300)]
    assert abs(asked.count(LIST_PROMPT) / 300 - share) < 0.08
    for part, count in (("validation", data.validation_scenes), ("test", data.test_scenes)):
        assert all(data._clips(part, item).source.texts(item)[0] in PROMPTS for item in range(count))
    listed = next((item for item, prompt in enumerate(asked) if prompt == LIST_PROMPT), None)
    if listed is not None:
        score = data.score(data.answer(listed, "train"), listed, "train")
        assert score is not None
        assert score.right == score.asked


def test_scenes_that_are_asked_for_lists_come_first() -> None:
    data = _data(list_scenes=8, fact_lists=0.0, scenes=16, batch_size=4)
    data.setup()
    items = [batch["item"].tolist() for batch in data.train_dataloader()]
    assert sorted(items[0] + items[1]) == list(range(8))
    asked = [data._clips("train", item).source.texts(item)[0] for item in range(16)]
    assert asked[:8] == [LIST_PROMPT] * 8
    assert LIST_PROMPT not in asked[8:]


@pytest.mark.parametrize("family", FAMILIES)
def test_first_lists_have_fewer_frames_and_a_mixed_batch_the_usual_number(family) -> None:
    data = _data(family=family, list_scenes=8, list_frames=4, frames=6, scenes=16, batch_size=4)
    data.setup()
    videos = torch.tensor([data.tokenizer.convert_tokens_to_ids(data.visual.video_token)])
    tokens = [int(torch.isin(batch["input_ids"], videos).sum()) for batch in data.train_dataloader()]
    assert tokens[0] == tokens[1] < tokens[2] == tokens[3]
    clips = data._clips("train", 0)
    assert clips.source.frames_of([0, 7]) == 4
    assert clips.source.frames_of([7, 8]) == 6  # of the second epoch, whose order is mixed
    assert int(torch.isin(clips[[0, 8, 9, 10]]["input_ids"], videos).sum()) == tokens[2]
    with pytest.raises(ValueError, match=r"list_frames must be at least 4 .* got 3"):
        _data(list_scenes=8, list_frames=3)


def test_the_tokenizer_is_the_same_for_every_seed_and_size_and_loads_plainly(
    data: VideoCaptions, tmp_path: Path
) -> None:
    other = _data(family=data.family, seed=5, scenes=30, frames=8, max_digits=4, batch_size=1)
    other.setup()
    assert other.tokenizer.backend_tokenizer.to_str() == data.tokenizer.backend_tokenizer.to_str()
    assert len(data.tokenizer) <= 700
    data.tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = f"<|im_start|>user\n{data.visual.video_token}What, exactly?<|im_end|>"
    assert loaded.encode(text) == data.tokenizer.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert loaded.encode(loaded.eos_token) == loaded.encode("<|im_end|>")
    for token in SPECIAL_TOKENS[data.family]:
        assert loaded.encode(token) == [loaded.convert_tokens_to_ids(token)]
        assert loaded.decode(loaded.encode(token), skip_special_tokens=True) == ""
    again = _data(family=data.family, tokenizer=str(tmp_path))
    again.setup()
    again.load_state_dict(data.state_dict())
    assert again.visual == data.visual
    first, second = (next(iter(made.test_dataloader())) for made in (data, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_chat_template_makes_the_same_prompt(data: VideoCaptions) -> None:
    content = [{"type": "video"}, {"type": "text", "text": "What happens?"}]
    ids = data.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, return_dict=False
    )
    prompt = video_prompt(data.tokenizer, data.visual, np.zeros((2, 28, 28, 3), np.uint8), "What happens?")
    wanted = prompt["input_ids"][0].tolist()
    at = wanted.index(data.visual.video_token_id)
    count = wanted.count(data.visual.video_token_id)
    assert [*ids[:at], *ids[at : at + 1] * count, *ids[at + 1 :]] == wanted


def test_a_checkpoint_of_another_tokenizer_or_family_is_refused(data: VideoCaptions) -> None:
    other = _data(family=data.family, vocab_size=600)
    other.setup()
    with pytest.raises(ValueError, match="tokenizer must be that of the checkpoint"):
        other.load_state_dict(data.state_dict())
    with pytest.raises(ValueError, match=f"family must be that of the checkpoint, x, got {data.family}"):
        data.load_state_dict({**data.state_dict(), "family": "x"})


def test_a_manifest_is_split_by_clip_and_has_no_score(clips: Path) -> None:
    rows = clips.read_text()
    clips.write_text(f"{rows}\n{rows.replace('How red', 'How blue')}")
    data = _data(manifest=str(clips), manifest_validation_fraction=0.3, manifest_test_fraction=0.3, batch_size=2)
    data.setup()
    owners: dict[str, str] = {}
    for part, made in data._parts.items():
        for item in range(len(made)):
            assert owners.setdefault(data.answer(item, part), part) == part
    assert len(owners) == 10
    assert set(owners.values()) == {"train", "validation", "test"}
    batch = next(iter(data.val_dataloader()))
    assert batch["video_grid_thw"].tolist() == [[2, 4, 4]] * 2
    assert data.score("As red as 1.", 0, "validation") is None
    kept = _data(manifest=str(clips), manifest_validation_fraction=1.0, manifest_test_fraction=0.0,
                 max_pixels=14 * 14 * 6, tokenizer=None)  # fmt: skip
    with pytest.raises(ValueError, match="tokenizer must be given, because the split leaves no training clips"):
        kept.setup()


def test_frames_of_files_may_keep_their_shape(clips: Path, data: VideoCaptions, tmp_path: Path) -> None:
    data.tokenizer.save_pretrained(tmp_path / "tokenizer")
    settings: dict[str, Any] = {
        "manifest": str(clips), "family": data.family, "tokenizer": str(tmp_path / "tokenizer"), "batch_size": 2,
        "manifest_validation_fraction": 1.0, "manifest_test_fraction": 0.0, "max_pixels": 14 * 14 * 6,
    }  # fmt: skip
    if data.family == "llava_onevision":
        with pytest.raises(ValueError, match="max_pixels must be null for llava_onevision"):
            _data(**settings).setup()
        return
    made = _data(**settings)
    made.setup()
    batch = next(iter(made.val_dataloader()))
    # 40x30 pixels in pieces of 14x14: three by two
    assert batch["video_grid_thw"].tolist() == [[2, 4, 6]] * 2
    assert int((batch["mm_token_type_ids"][0] == 2).sum()) == 2 * 2 * 3
    for loader, message in (
        (made.test_dataloader, "manifest_test_fraction must leave clips for the test part"),
        (made.train_dataloader, "batch_size must leave one batch for every device, got 2 for the 0 clips"),
    ):
        with pytest.raises(ValueError, match=message):
            loader()


def test_special_tokens_in_texts_are_refused(clips: Path, data: VideoCaptions) -> None:
    """Before training, in any part, and also tokens that a given tokenizer has beyond those of the family."""
    data.tokenizer.save_pretrained(clips.parent / "tokenizer")
    whole = clips.read_text()
    for key, token in (("answer", data.visual.video_token), ("prompt", "<|im_end|>"), ("answer", "<|box|>")):
        row = {"video": "1.png", "prompt": "What?", "answer": "That.", key: f"A {token}."}
        clips.write_text(f"{whole}\n{json.dumps(row)}\n")
        given = AutoTokenizer.from_pretrained(clips.parent / "tokenizer")
        given.add_special_tokens({"additional_special_tokens": ["<|box|>"]})
        given.save_pretrained(clips.parent / "other")
        made = _data(manifest=str(clips), family=data.family, tokenizer=str(clips.parent / "other"))
        one_line(made.setup, f"{clips}, line 11: {key} must not contain special tokens, got {token!r}: remove it.")
    with pytest.raises(ValueError, match="prompt must not contain"):
        video_prompt(data.tokenizer, data.visual, np.zeros((2, 28, 28, 3), np.uint8), "What <|im_end|>?")


def test_clips_are_opened_before_training_and_each_stage_opens_its_own(clips: Path) -> None:
    settings: dict[str, Any] = {"manifest": str(clips), "batch_size": 1}
    whole = _data(**settings)
    whole.setup("fit")
    source = whole._parts["test"].source
    assert isinstance(source, Files)
    row = source.rows[0]
    row.video.write_bytes(b"no picture")
    for stage in ("fit", "test", "predict", None):
        one_line(lambda stage=stage: _data(**settings).setup(stage), f"{clips}, line {row.line}: video {row.video} ")  # type: ignore[misc]
    later = _data(**settings)
    later.setup("validate")
    one_line(lambda: later.setup("fit"), f"{clips}, line {row.line}: ")
    # opened before, and broken since
    one_line(lambda: next(iter(whole.test_dataloader())), f"{clips}, line {row.line}: video {row.video} cannot be read")


def test_sequences_that_are_too_long_are_found_before_training(clips: Path) -> None:
    long = {"video": "1.png", "prompt": "How red?", "answer": "As red as " + "roses, " * 60}
    clips.write_text(f"{clips.read_text()}\n{json.dumps(long)}")
    for settings in ({}, {"max_pixels": 14 * 14 * 6}):
        made = _data(manifest=str(clips), max_tokens=150, **settings)
        one_line(made.setup, "max_tokens must be at least ", f" for {clips}, line 11, got 150: raise it")
        _data(manifest=str(clips), max_tokens=1000, **settings).setup()
    Image.new("RGB", (900, 2)).save(clips.parent / "1.png")
    narrow = _data(manifest=str(clips), max_pixels=14 * 14 * 6)
    one_line(narrow.setup, f"{clips}, line 2: video must have sides of at most 200 times", "got frames of 900x2 pixels")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_clip_that_breaks_during_training_is_named_from_any_process(
    workers: int, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.2)  # torch would wait 5 seconds for processes to end
    data = _data(manifest=str(clips), manifest_validation_fraction=0, manifest_test_fraction=0, batch_size=1,
                 num_workers=workers)  # fmt: skip
    data.setup("fit")
    (clips.parent / "4.png").write_bytes(b"no picture")
    with pytest.raises(ValueError) as caught:
        list(data.train_dataloader())
    # torch puts the traceback of a loader's process before the line
    *before, line = str(caught.value).splitlines()
    assert bool(before) == bool(workers)
    broken = f"{clips}, line 5: video {clips.parent / '4.png'} cannot be read as an image"
    assert line.removeprefix("ValueError: ").startswith(broken)
    gc.collect()


def test_clips_have_the_names_that_users_gave_them(clips: Path, data: VideoCaptions) -> None:
    lines = clips.read_text().splitlines()
    lines[3] = json.dumps({**json.loads(lines[3]), "id": "my favourite"})
    clips.write_text("\n".join(lines))
    made = _data(manifest=str(clips), tokenizer=None, manifest_validation_fraction=0.1, manifest_test_fraction=0.5)
    made.setup("predict")
    names = {f"{number}.png": number for number in range(10)} | {"my favourite": 3}
    seen = []
    for batch in made.predict_dataloader():
        for name, item in zip(made.sample_ids(batch["item"]), batch["item"].tolist(), strict=True):
            assert made.answer(item, "test") == f"As red as {names[name]}."
            seen.append(name)
    assert len(seen) == len(set(seen)) >= 2
    assert data.sample_ids(torch.tensor([2, 0])) == ["test-2", "test-0"]
    one_line(lambda: data.sample_ids(torch.tensor([3])), "item must be from 0 to 2 in the test part, got 3")


def test_a_first_fit_on_few_clips_has_something_to_validate(tmp_path: Path) -> None:
    """With the default shares, four clips often leave a part empty."""
    for trial in range(4):
        folder = tmp_path / str(trial)
        folder.mkdir()
        rows = [{"video": f"{trial}-{n}.png", "prompt": "What?", "answer": "Red."} for n in range(4)]
        for row in rows:
            Image.new("RGB", (40, 30)).save(folder / row["video"])
        data = _data(manifest=write_manifest(folder / "m.jsonl", rows), batch_size=1)
        data.setup("fit")
        for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
            assert len(list(loader)) >= 1


def test_a_real_clip_becomes_a_batch(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed: pip install 'saccade[video]'")
    video = shared_file("video/car-detection.mp4")
    rows = [{"video": str(video), "prompt": "What passes?", "answer": "Cars on a road."}]
    (tmp_path / "real.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    data = VideoCaptions(
        manifest=str(tmp_path / "real.jsonl"), vocab_size=300, frames=6, height=112, width=196, max_pixels=196 * 112,
        manifest_validation_fraction=0, manifest_test_fraction=0, batch_size=1,
    )  # fmt: skip
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch["video_grid_thw"].tolist() == [[3, 6, 14]]
    assert int((batch["mm_token_type_ids"] == 2).sum()) == 3 * 3 * 7
    assert batch["pixel_values_videos"].shape == (3 * 6 * 14, 3 * 2 * 14 * 14)
    alone = video_prompt(data.tokenizer, data.visual, read_clip(video, 6), "What passes?")
    assert torch.equal(alone["pixel_values_videos"], batch["pixel_values_videos"])
    assert torch.equal(alone["input_ids"][0], batch["input_ids"][0, : batch["prompt_length"][0]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"family": "qwen3"}, "family must be qwen2_vl, qwen2_5_vl, qwen3_vl or llava_onevision, got 'qwen3'"),
        ({"frames": 3}, "frames must be at least 4 to show the motion of max_digits=2 digits, got 3"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"test_scenes": -1}, "test_scenes must be at least 0, got -1"),
        ({"max_digits": 5}, "max_digits must be from 1 to 4, got 5"),
        ({"manifest_test_fraction": 1.5}, "manifest_test_fraction must be between 0 and 1, got 1.5"),
        ({"manifest_test_fraction": 0.95}, "manifest_test_fraction must be at most 0.9 with .*=0.1, got 0.95"),
        ({"image_std": (0.5, 0.0, 0.5)}, "image_std must be above 0 for every colour"),
        ({"manifest": "nowhere.jsonl"}, r"cannot read nowhere.jsonl \(No such file or directory\): check the path"),
        ({"fact_lists": 1.5}, "fact_lists must"),
        ({"height": 30}, r"height must be a multiple of patch_size \* merge_size = 14, got 30"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ({"max_pixels": 10}, "max_pixels must be at least 196, one token, got 10"),
        ({"family": "llava_onevision", "width": 35}, "width must be the height, 28, for llava_onevision"),
        ({"family": "llava_onevision", "merge_size": 3}, "merge_size must be 2 for llava_onevision"),
        ({"vocab_size": 261}, "vocab_size must be at least 267, got 261"),
    ],
)
def test_wrong_settings_end_with_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        _data(**settings).setup()
    assert "\n" not in str(caught.value)


def test_parts_that_are_empty_or_too_long_are_told(tmp_path: Path) -> None:
    data = _data(test_scenes=0, max_tokens=60)
    data.setup()
    with pytest.raises(ValueError, match="test_scenes must leave clips for the test part"):
        data.test_dataloader()
    with pytest.raises(ValueError, match=r"max_tokens must be at least \d+ \(8 for the video\) for item 0 of the val"):
        next(iter(data.val_dataloader()))
    train_tokenizer(["a"], 260).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer must have the token '<\|im_start\|>' for family=qwen"):
        _data(tokenizer=str(tmp_path)).setup()


def test_published_shapes_are_accepted() -> None:
    """384 pixels and patches of 14: the vision tower leaves the rest out."""
    data = _data(family="llava_onevision", image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))
    data.setup()
    assert data.visual.mean == (0.5, 0.5, 0.5)
    assert visual_format(data.tokenizer, "llava_onevision", 384, 384).tokens(128) == 25_089
