"""Positions of clips that are laid out alike: those of transformers, computed once."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from saccade.modules.language.video_positions import shared_positions
from tests.modules.language.tiny_video import built
from tests.support.video_checks import padded_on_the_right
from tests.support.video_models import VIDEO as TINY_VIDEO
from tests.support.video_models import tiny_video_model, video_prompts

VIDEO, START, WORD, PAD = 3, 2, 5, 0


@pytest.fixture(scope="module")
def model() -> Qwen2_5_VLForConditionalGeneration:
    """A model whose windows of two merged patches a side do not divide its frames."""
    torch.manual_seed(0)
    text = {
        "vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision = {
        "depth": 3, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4, "out_hidden_size": 16,
        "window_size": 16, "fullatt_block_indexes": [2], "tokens_per_second": 2,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, video_token_id=VIDEO, image_token_id=4, vision_start_token_id=START
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def _batch(grids: list[tuple[int, int, int]], words: list[tuple[int, int]]) -> dict[str, Tensor]:
    """Clips of these grids between words before and behind them, padded on the right."""
    rows = []
    for (frames, height, width), (before, behind) in zip(grids, words, strict=True):
        rows.append([WORD] * before + [START] + [VIDEO] * (frames * height * width // 4) + [WORD] * behind)
    longest = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    return {
        "input_ids": ids,
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
        "mm_token_type_ids": (ids == VIDEO).long() * 2,
        "video_grid_thw": torch.tensor(grids),
        "pixel_values_videos": torch.randn(sum(t * h * w for t, h, w in grids), 3 * 2 * 4 * 4),
    }


ALIKE = ([(2, 6, 10)] * 3, [(2, 5), (2, 9), (2, 1)])


def test_they_are_what_transformers_computes(model: Any) -> None:
    batch = _batch(*ALIKE)
    found = shared_positions(model, batch)
    grids, config = batch["video_grid_thw"], model.config.vision_config
    layout = {name: value for name, value in batch.items() if name != "pixel_values_videos"}
    expected = model.model.get_rope_index(**layout)[0]
    windows = get_vision_window_index(grids, config.spatial_merge_size, config.window_size, config.patch_size)
    assert len(windows[1]) > 3 * 2 + 1  # several windows in each frame, or their order would not matter
    expected_by_name = {
        "position_ids": expected,
        "video_position_ids": get_vision_position_ids(grids, config.spatial_merge_size),
        "video_window_index": windows[0],
        "video_cu_window_seqlens": windows[1],
    }
    assert found.keys() == expected_by_name.keys()
    for name, value in expected_by_name.items():
        assert torch.equal(found[name], value), name
        assert found[name].dtype == value.dtype, name


def test_a_model_that_gets_them_computes_the_same(model: Any) -> None:
    batch = _batch(*ALIKE)
    with torch.no_grad():
        assert torch.equal(model(**batch, **shared_positions(model, batch)).logits, model(**batch).logits)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_towers_without_windows(family: str) -> None:
    """With the times and marks between the frames of Qwen3-VL."""
    other = tiny_video_model(family, dtype=torch.float32)
    prompts = padded_on_the_right(video_prompts(family, seed=2, dtype=torch.float32))
    more = torch.tensor([[20, 21], [22, 0]])
    ids = torch.cat([prompts.input_ids.repeat(2, 1), more], 1)
    visual = prompts.visual
    batch = {
        "input_ids": ids, "attention_mask": (ids > 0).long(), "mm_token_type_ids": (ids == TINY_VIDEO).long() * 2,
        "pixel_values_videos": visual["pixel_values_videos"].repeat(2, 1),
        "video_grid_thw": visual["video_grid_thw"].repeat(2, 1),
    }  # fmt: skip
    found = shared_positions(other, batch)
    assert found.keys() == {"position_ids", "video_position_ids"}
    layout = {name: value for name, value in batch.items() if name != "pixel_values_videos"}
    assert torch.equal(found["position_ids"], other.model.get_rope_index(**layout)[0])
    with torch.no_grad():
        assert torch.equal(other(**batch, **found).logits, other(**batch).logits)


@pytest.mark.parametrize(
    ("grids", "words"),
    [
        ([(2, 6, 10), (2, 6, 8)], [(2, 5), (2, 5)]),
        ([(2, 6, 10), (2, 10, 6)], [(2, 5), (2, 5)]),
        ([(2, 6, 10), (2, 6, 10)], [(2, 5), (3, 5)]),
    ],
    ids=["another length", "another shape", "other words before"],
)
def test_clips_that_differ_are_left_to_transformers(model: Any, grids: Any, words: Any) -> None:
    assert shared_positions(model, _batch(grids, words)) == {}


def test_left_padding_is_left_to_transformers(model: Any) -> None:
    batch = _batch(*ALIKE)
    turned = ("input_ids", "attention_mask", "mm_token_type_ids")
    assert shared_positions(model, batch | {name: batch[name].flip(1) for name in turned}) == {}


def test_positions_that_are_given_stay(model: Any) -> None:
    batch = _batch(*ALIKE)
    given = torch.zeros(3, *batch["input_ids"].shape, dtype=torch.long)
    assert shared_positions(model, batch | {"position_ids": given}) == {}


def test_two_clips_in_one_sequence_are_left_to_transformers(model: Any) -> None:
    batch = _batch(*ALIKE)
    assert shared_positions(model, batch | {"video_grid_thw": batch["video_grid_thw"].repeat(2, 1)}) == {}


def test_llava_has_none() -> None:
    module, data = built("llava_onevision")
    assert shared_positions(module.model, data.batch([0, 5])) == {}


def test_a_training_step_numbers_one_sequence_only(monkeypatch: pytest.MonkeyPatch) -> None:
    module, data = built("qwen2_5_vl")
    batch = data.batch([0, 5, 9])
    numbered: list[int] = []
    stock = Qwen2_5_VLModel.get_rope_index

    def counted(self: Any, **named: Any) -> Any:
        numbered.append(len(named["input_ids"]))
        return stock(self, **named)

    monkeypatch.setattr(Qwen2_5_VLModel, "get_rope_index", counted)
    module.token_losses(batch)
    assert numbered == [1]
