"""A grown vision-language model is the small one at the size of the large one, videos in the prompt included."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from benchmarks.decoding.grow import SHAPES, Shape, grow, shape_of, weight_bytes
from saccade.inference.huggingface.models import language_part, text_config
from tests.support.video_checks import asked_of_transformers
from tests.support.video_models import FAMILIES, VOCABULARY, tiny_video_model, video_prompts

pytestmark = pytest.mark.usefixtures("one_thread")
LARGER = Shape(
    hidden_size=288,
    intermediate_size=112,
    num_hidden_layers=5,
    num_attention_heads=12,
    num_key_value_heads=3,
    head_dim=24,
    vocab_size=131,
)
"""Nine times the width and three times the head size: M-RoPE's sections 1, 1, 2 become 3, 3, 6."""


def small(family: str) -> PreTrainedModel:
    """Norms and biases that are not trivial, and an epsilon that matters."""
    model = tiny_video_model(family, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    text_config(model).rms_norm_eps = 1e-3
    with torch.no_grad():
        for name, weight in language_part(model).named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("bias"):
                weight.normal_(0, 0.3, generator=generator)
    for module in language_part(model).modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1e-3
    return model


@torch.no_grad()
def logits(model: PreTrainedModel, family: str) -> torch.Tensor:
    """Of all places of two prompts with different videos; padding is left out."""
    prompts = video_prompts(family, rows=2, seed=4, dtype=torch.float32)
    model.model.rope_deltas = None
    answers = model(**asked_of_transformers(prompts), use_cache=False).logits.double()
    return answers[prompts.attention_mask.bool()]


def difference(grown: PreTrainedModel, model: PreTrainedModel, family: str) -> float:
    """Largest difference of a logit of the old vocabulary, relative to the largest logit."""
    expected = logits(model, family)
    return ((logits(grown, family)[:, :VOCABULARY] - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"head_dim": 8, "hidden_size": 96},
        {"num_hidden_layers": 2, "vocab_size": VOCABULARY},
        {"num_attention_heads": 9, "hidden_size": 216},
    ],
    ids=["everything", "no wider heads", "no more layers and tokens", "more groups"],
)
def test_logits_agree(family: str, change: dict[str, int]) -> None:
    model, shape = small(family), replace(LARGER, **change)
    grown = grow(model, shape, dtype=torch.float32)
    assert type(grown) is type(model)
    assert shape_of(grown) == shape
    assert difference(grown, model, family) < 1e-5
    answers = logits(grown, family)
    assert answers.isfinite().all()
    assert (answers[:, VOCABULARY:] < -1e4).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_video_is_seen(family: str) -> None:
    """Otherwise the comparison of logits would prove little about the vision tower."""
    model = grow(small(family), LARGER, dtype=torch.float32)
    before = logits(model, family)
    tower = model.model.visual if family == "qwen2_5_vl" else model.model.vision_tower
    with torch.no_grad():
        for weight in tower.parameters():
            weight.mul_(0.5)
    assert ((logits(model, family) - before)[:, :VOCABULARY].abs().max() / before[:, :VOCABULARY].abs().max()) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_models_answers_are_the_same(family: str) -> None:
    model = small(family)
    prompts = asked_of_transformers(video_prompts(family, rows=1, seed=4, dtype=torch.float32))
    settings = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(**prompts, **settings)
    assert torch.equal(grow(model, LARGER, dtype=torch.float32).generate(**prompts, **settings), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tied_model_may_stay_tied_and_nothing_of_it_changes(family: str) -> None:
    model = small(family)
    model.config.tie_word_embeddings = text_config(model).tie_word_embeddings = True
    model.lm_head.weight = model.get_input_embeddings().weight
    before = copy.deepcopy(model.state_dict())
    grown = grow(model, replace(LARGER, tied=True), dtype=torch.float32)
    assert grown.lm_head.weight is grown.get_input_embeddings().weight
    assert difference(grown, model, family) < 1e-5
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def shift_sections(grown: PreTrainedModel) -> None:
    rotary = language_part(grown).rotary_emb
    rotary.mrope_section = [4, 4, 4]


def forget_a_feature(grown: PreTrainedModel) -> None:
    grown.model.visual.merger.mlp[2].weight[:32] *= 1.01


def write_elsewhere(grown: PreTrainedModel) -> None:
    grown.model.visual.merger.mlp[2].weight[40:].normal_(0, 0.02)


@pytest.mark.parametrize("mistake", [shift_sections, forget_a_feature, write_elsewhere])
def test_the_comparison_sees_mistakes(mistake) -> None:
    model = small("qwen2_5_vl")
    grown = grow(model, LARGER, dtype=torch.float32)
    with torch.no_grad():
        mistake(grown)
    assert difference(grown, model, "qwen2_5_vl") > 1e-4


def test_weight_bytes_leave_out_what_only_the_prompt_needs() -> None:
    model = small("qwen2_5_vl")
    vision = sum(weight.nbytes for weight in model.model.visual.parameters())
    whole = sum(weight.nbytes for weight in model.parameters())
    assert weight_bytes(model) == whole - vision - model.get_input_embeddings().weight.nbytes


def test_heads_that_do_not_fill_the_width_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^hidden_size must be Qwen2\.5-VL's 12 heads of 24, 288, got 312: change the shape\.$"
    ):
        grow(small("qwen2_5_vl"), replace(LARGER, hidden_size=312))


@pytest.mark.parametrize(("name", "billions"), [("3B", 3.09), ("7B", 7.62), ("32B", 32.76)])
def test_the_named_shapes_have_the_published_sizes(name: str, billions: float) -> None:
    shape = SHAPES[name]
    assert shape.hidden_size == shape.num_attention_heads * shape.head_dim  # Qwen2.5-VL's are Qwen2.5's
    kv = shape.num_key_value_heads * shape.head_dim
    layer = 2 * shape.hidden_size**2 + 2 * kv * shape.hidden_size + 3 * shape.hidden_size * shape.intermediate_size
    ends = shape.vocab_size * shape.hidden_size * (1 if shape.tied else 2)
    assert (shape.num_hidden_layers * layer + ends) / 1e9 == pytest.approx(billions, rel=2e-3)
