"""LoRA settings and refusals."""

from typing import Any

import pytest
import torch

from saccade.modules.language.construction import complete_config, model_from_config
from saccade.modules.lora import LoraSettings, attach_lora, merged_parameters
from tests.modules.language.tiny import CONFIG


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "lora.rank must be at least 1, got 0"),
        ({"alpha": 0.0}, "lora.alpha must be above 0, got 0.0: "),
        ({"dropout": 1.0}, "lora.dropout must be at least 0 and below 1, got 1.0: "),
        ({"target_modules": []}, "lora.target_modules must name at least one layer, got "),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoraSettings(**settings)


@pytest.mark.parametrize("names", [["nowhere"], ["q_proj", "nowhere"]])
def test_unknown_layers_are_refused(names: list[str]) -> None:
    model = model_from_config(complete_config({**CONFIG, "vocab_size": 20}, None), 0)
    with pytest.raises(ValueError, match=r"lora\.target_modules must name linear layers of .*, got 'nowhere': "):
        attach_lora(model, LoraSettings(target_modules=names))


def test_merged_weight_is_base_plus_scaled_product() -> None:
    model = model_from_config(complete_config({**CONFIG, "vocab_size": 20}, None), 0)
    attach_lora(model, LoraSettings(rank=2, alpha=6.0))
    layer = model.model.layers[0].mlp.up_proj
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(up)
    base = layer.base_layer.weight.clone()
    assert torch.allclose(merged_parameters(layer)["weight"], base + 3.0 * up @ down, atol=1e-6)
    assert torch.equal(layer.base_layer.weight, base)
    assert not hasattr(model.lm_head, "lora_A")


def test_low_precision_is_rounded_once() -> None:
    model = model_from_config(complete_config({**CONFIG, "vocab_size": 20}, None), 0).to(torch.bfloat16)
    attach_lora(model, LoraSettings(rank=2, alpha=6.0))
    layer = model.model.layers[0].mlp.up_proj
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(up, std=0.1)
    exact = layer.base_layer.weight.float() + 3.0 * up.float() @ down.float()
    assert torch.equal(merged_parameters(layer)["weight"], exact.to(torch.bfloat16))
    twice = layer.base_layer.weight + (3.0 * up.float() @ down.float()).to(torch.bfloat16)
    assert not torch.equal(twice, exact.to(torch.bfloat16)), "the comparison above can fail"


@pytest.mark.parametrize("names", [["lm_head"], None])
def test_attaching_adapters_warns_of_nothing(names: list[str] | None, recwarn: pytest.WarningsRecorder) -> None:
    """A tied head is untied in the export, and GPT-2's layers are stored the other way round."""
    gpt = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 20}
    for config in ({**CONFIG, "vocab_size": 20, "tie_word_embeddings": True}, gpt):
        attach_lora(model_from_config(complete_config(config, None), 0), LoraSettings(rank=2, target_modules=names))
    assert [str(item.message) for item in recwarn] == []


def test_what_is_merged_already_is_not_added_again() -> None:
    model = model_from_config(complete_config({**CONFIG, "vocab_size": 20}, None), 0)
    attach_lora(model, LoraSettings(rank=2))
    layer = model.model.layers[0].mlp.up_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    apart = merged_parameters(layer)["weight"]
    layer.merge()
    assert torch.allclose(merged_parameters(layer)["weight"], apart, atol=1e-6)
