"""Windows of the vision tower: one call gives what transformers' loop gives, and leaves nothing behind."""

import copy

import pytest
import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from saccade.inference.huggingface.vision_windows import joined_windows
from tests.support.video_models import tiny_video_model


@pytest.fixture
def tower() -> Qwen2_5_VisionTransformerPretrainedModel:
    """Three layers, the second of which attends to whole frames; a window is 4 x 4 patches."""
    torch.manual_seed(0)
    config = Qwen2_5_VLVisionConfig(
        depth=3, hidden_size=32, intermediate_size=32, num_heads=2, out_hidden_size=16, patch_size=4, window_size=16,
        fullatt_block_indexes=[1], initializer_range=0.2,
    )  # fmt: skip
    return Qwen2_5_VisionTransformerPretrainedModel._from_config(config, attn_implementation="sdpa").double()


def grids(*rows: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Random patches of clips, and their grids."""
    grid = torch.tensor(rows)
    return torch.randn(int(grid.prod(1).sum()), 3 * 2 * 4 * 4, dtype=torch.float64), grid


@pytest.mark.parametrize(
    "clips",
    [[(2, 8, 8), (1, 8, 8)], [(2, 6, 10), (1, 8, 8)], [(1, 4, 4)], [(3, 2, 14)]],
    ids=["equal windows", "narrow windows at the edges", "one window", "flat"],
)
def test_one_call_gives_outputs_and_gradients_of_the_loop(tower, clips):
    """Values and gradients, where all windows are equal and where the frame's edge cuts some."""
    patches, grid = grids(*clips)
    found = []
    for joined in (False, True):
        tower.zero_grad()
        given = patches.clone().requires_grad_()
        with joined_windows(tower) if joined else torch.enable_grad():
            out = tower(given, grid_thw=grid).pooler_output
        out.pow(2).sum().backward()
        found.append((out.detach(), given.grad, tower.blocks[0].attn.qkv.weight.grad.clone()))
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize("clips", [[(3, 4, 6), (2, 4, 6)], [(2, 2, 4), (1, 4, 4)]], ids=["equal", "two sizes"])
def test_towers_without_windows_attend_to_each_frame(family, clips, monkeypatch):
    """In one call a layer for frames of one size; DeepStack's features are the same too."""
    own = copy.deepcopy(tiny_video_model(family).model.visual)
    patches, grid = grids(*clips)
    with torch.no_grad():
        right = own(patches, grid_thw=grid)
        calls = []
        real = torch.nn.functional.scaled_dot_product_attention
        counted = lambda *given, **named: calls.append(1) or real(*given, **named)  # noqa: E731
        monkeypatch.setattr("saccade.inference.huggingface.vision_windows.scaled_dot_product_attention", counted)
        with joined_windows(own):
            found = own(patches, grid_thw=grid)
    assert len(calls) == 3 * len({height * width for _, height, width in clips})
    ours, theirs = ([out.pooler_output, *getattr(out, "deepstack_features", [])] for out in (found, right))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_windows_do_not_see_each_other(tower):
    """Of a tower without whole-frame layers, a patch moves the outputs of its own window alone."""
    tower.fullatt_block_indexes = []
    patches, grid = grids((1, 8, 8))
    with joined_windows(tower):
        before = tower(patches, grid_thw=grid).last_hidden_state
        patches[0] += 1  # patches come in order of their 2 x 2 merges; the first window holds merges 0, 1, 4, 5
        after = tower(patches, grid_thw=grid).last_hidden_state
    assert int((before != after).any(-1).sum()) == 16


def test_one_call_is_made_for_a_layer(tower, monkeypatch):
    """Where transformers' loop makes one for each window."""
    calls = []
    real = torch.nn.functional.scaled_dot_product_attention
    counted = lambda *given, **named: calls.append(1) or real(*given, **named)  # noqa: E731
    monkeypatch.setattr("saccade.inference.huggingface.vision_windows.scaled_dot_product_attention", counted)
    patches, grid = grids((2, 8, 8))
    with joined_windows(tower):
        tower(patches, grid_thw=grid)
    assert len(calls) == 3


def test_the_configuration_is_as_before(tower):
    """After the context, also after an error in it; other attention than sdpa is not touched."""
    with pytest.raises(RuntimeError, match="planted"), joined_windows(tower):
        raise RuntimeError("planted")
    assert tower.config._attn_implementation == "sdpa"
    tower.config._attn_implementation_internal = "eager"
    with joined_windows(tower):
        assert tower.config._attn_implementation == "eager"
    assert tower.config._attn_implementation == "eager"
