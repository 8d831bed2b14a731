"""What a model hands its attention, or a vision-language model its language part: used, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

from saccade.inference import Autoregressive, EngineConfig
from saccade.inference.engine.hf_attention import _REPLACED, session_attention
from saccade.inference.engine.recording import AttentionRecorder
from saccade.inference.huggingface.vision import _is_causal
from tests.support.errors import one_line
from tests.support.models import tiny_model
from tests.support.video_checks import asked, video_model
from tests.support.video_models import IMAGE, video_prompts

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
UNCHECKED = EngineConfig(check_model=False)  # so that no other check comes first


def attend(module: nn.Module | None = None, mask: Tensor | None = None, **others: Any) -> Tensor:
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8)
    return session_attention(module or nn.Identity(), query, key, value, mask, **others)[0]


@pytest.mark.parametrize(
    "others",
    [
        {"sinks": torch.zeros(4)},
        {"sliding_window": 4},
        {"position_bias": torch.zeros(1, 4, 3, 3)},
        {"cu_seq_lens_q": torch.tensor([0, 3])},
        {"indices": torch.zeros(3)},
        {"output_attentions": True},
        {"dropout": 0.1},
        {"is_causal": False},
        {"anything_new": "x"},
    ],
    ids=lambda others: next(iter(others)),
)
def test_unknown_arguments_are_refused_by_name(others: dict[str, Any]) -> None:
    one_line(lambda: attend(**others), "Identity", next(iter(others)), "model.generate")


@pytest.mark.parametrize(
    "others",
    [
        {"sliding_window": None, "softcap": None, "s_aux": None, "anything_new": None},
        {"is_causal": True, "output_attentions": False, "dropout": 0.0},
        {"position_ids": torch.arange(3)[None], "cache_position": torch.arange(3), "use_cache": True},
        {"output_router_logits": True, "num_items_in_batch": 3},
    ],
)
def test_arguments_without_effect_are_taken(others: dict[str, Any]) -> None:
    assert torch.equal(attend(**others), attend())


def test_a_bidirectional_module_and_a_mask_for_each_head_are_refused() -> None:
    module = nn.Identity()
    module.is_causal = False
    one_line(lambda: attend(module), "bidirectional", "is_causal")
    one_line(lambda: attend(mask=torch.ones(1, 4, 3, 3, dtype=torch.bool)), "attention_mask for each head")
    one_line(lambda: attend(mask=torch.ones(1, 2, 3, 3, dtype=torch.bool)), "attention_mask for each head")


def test_caps_and_sinks_are_followed_unless_the_model_leaves_them_out() -> None:
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8)
    scores = query @ key.repeat_interleave(2, 1).transpose(2, 3) / 8**0.5
    scores = 0.5 * (scores / 0.5).tanh() + torch.full((3, 3), -torch.inf).triu(1)
    weights = torch.cat([scores, sinks.reshape(1, 4, 1, 1).expand(1, 4, 3, 1)], -1).softmax(-1)[..., :-1]
    right = (weights @ value.repeat_interleave(2, 1)).transpose(1, 2)
    for mask in (None, torch.ones(3, 3, dtype=torch.bool).tril()[None, None]):
        assert torch.allclose(attend(mask=mask, softcap=0.5, s_aux=sinks), right, atol=1e-6)
    token = _REPLACED.set("sdpa")  # what transformers' own "sdpa" computes
    assert torch.equal(attend(softcap=0.5, s_aux=sinks), attend())
    _REPLACED.reset(token)


def test_attention_on_a_video_is_not_recorded_beside_a_window_or_sinks() -> None:
    recorder = AttentionRecorder([torch.tensor([0])], [3])
    with recorder.recording(0):
        one_line(lambda: attend(s_aux=torch.zeros(4)), "Identity", "sinks", "not recorded")
        one_line(lambda: attend(mask=torch.ones(1, 1, 3, 3, dtype=torch.bool)), "window", "not recorded")


def test_a_layer_of_the_users_own_that_hands_over_more() -> None:
    """A tested model with one changed layer."""
    model = tiny_model()
    attention = model.model.layers[1].self_attn
    plain = type(attention).forward

    class Biased(type(attention)):  # type: ignore[misc]
        def forward(self, *given: Any, **named: Any) -> Any:
            return plain(self, *given, **named, alibi=torch.ones(4))

    attention.__class__ = Biased
    one_line(lambda: Autoregressive().generate(model, IDS), "Biased hands alibi of shape (4,)")


@pytest.mark.parametrize(
    ("more", "needles"),
    [
        ({"anything_new": torch.ones(1)}, ("anything_new",)),
        ({"attention_mask": {"full_attention": torch.ones(1, 1, 1, 1, dtype=torch.bool)}}, ("attention_mask",)),
        ({"attention_mask": "flex"}, ("attention_mask", "not causal")),
    ],
)
def test_what_a_language_part_is_handed(
    more: dict[str, Any], needles: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = video_model("qwen2_5_vl")
    plain = type(model.model).forward

    def forward(self: Any, *given: Any, **named: Any) -> Any:
        part = self.language_model.forward
        self.language_model.forward = lambda *args, **kwargs: part(*args, **{**kwargs, **more})
        return plain(self, *given, **named)

    monkeypatch.setattr(type(model.model), "forward", forward)
    call = lambda: Autoregressive().generate(model, **asked(video_prompts("qwen2_5_vl", seed=1)))  # noqa: E731
    one_line(call, "Qwen2_5_VLForConditionalGeneration", *needles)


def test_which_masks_are_causal() -> None:
    padding = torch.tensor([[1, 1, 1], [1, 1, 0]])
    causal = torch.ones(3, 3, dtype=torch.bool).tril()[None, None]
    low = torch.finfo(torch.float32).min
    added = torch.zeros(1, 1, 3, 3).masked_fill(~causal, low)
    prefix = causal.clone()
    prefix[..., 0, 1] = True
    behind = causal.expand(2, 1, 3, 3).clone()
    behind[1, 0, 2] = True  # what padding sees does not matter
    for right in (padding, padding.bool(), causal, added, added.half().clamp(min=-65504), behind):
        assert _is_causal(right, padding)
    short = causal.clone()
    short[..., 2, 0] = False
    wrong = [prefix, short, added.masked_fill(causal, -0.5), torch.ones_like(padding), causal[..., :2], "flex"]
    assert not any(_is_causal(each, padding) for each in wrong)


def test_a_bidirectional_prefix_is_refused() -> None:
    torch.manual_seed(0)
    text = {
        "model_type": "gemma", "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 16, "patch_size": 4, "projection_dim": 32, "vision_use_head": False,
    }  # fmt: skip
    config = PaliGemmaConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, projection_dim=32)
    model = PaliGemmaForConditionalGeneration(config).float().eval()
    ids, pixels = torch.tensor([[IMAGE] * 16 + [20, 21]]), torch.randn(1, 3, 16, 16)
    for engine in (UNCHECKED, EngineConfig()):
        one_line(
            lambda engine=engine: Autoregressive(engine=engine).generate(model, ids, pixel_values=pixels),
            "bidirectional",
        )
