"""Skipped sub-layers add nothing to the residual stream, whatever norms and factors a layer has around its parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.decoding.classes import tiny_model
from saccade.inference.huggingface.sublayer_skip import SublayerSkip, decoder_layers, skipped_sublayers, sublayers
from tests.inference.doors.test_clean import portrait, same
from tests.support.errors import one_line

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
CLASSES = ["llama", "gemma", "gemma2", "gemma3_text", "olmo2", "glm4", "phi3", "gpt2", "gpt_neox", "granite", "gpt_oss"]


@pytest.mark.parametrize("name", [*CLASSES, "granitemoe", "llama4_text", "cohere"])
def test_a_layer_without_both_parts_is_the_identity(name: str) -> None:
    model = tiny_model(name)
    layer = decoder_layers(model)[1]
    seen: list[torch.Tensor] = []
    layer.register_forward_pre_hook(
        lambda module, given, named: seen.append(given[0] if given else named["hidden_states"]), with_kwargs=True
    )
    layer.register_forward_hook(lambda module, given, made: seen.append(made[0] if isinstance(made, tuple) else made))
    before = portrait(model)
    with skipped_sublayers(model, [1], [1]):
        for _ in range(2):  # the first call of a class tells the form of its output
            model(IDS)
            assert torch.equal(*seen[-2:])
    assert same(before, portrait(model))
    model(IDS)
    assert not torch.equal(*seen[-2:])


@pytest.mark.parametrize("kind", ["attention", "mlp"])
@pytest.mark.parametrize("name", CLASSES)
def test_one_part_is_skipped(name: str, kind: str) -> None:
    """As if the weights of its last projection were zero."""
    model = tiny_model(name)
    with skipped_sublayers(model, [1] if kind == "attention" else [], [1] if kind == "mlp" else []):
        found = model(IDS).logits
    part = sublayers(decoder_layers(model)[1])[kind == "mlp"]
    last = ("o_proj", "c_proj", "dense", "down_proj")
    with torch.no_grad():
        for path, weight in part.named_parameters():
            if any(name.startswith(last) for name in path.split(".")):
                weight.zero_()
    assert torch.allclose(found, model(IDS).logits, atol=1e-6)
    assert not torch.allclose(found, tiny_model(name)(IDS).logits, atol=1e-3)


def test_layers_that_cannot_be_skipped() -> None:
    one_line(lambda: decoder_layers(tiny_model("opt")), "OPTForCausalLM", "self_attn", "mlp", "another decoder")
    shared: Any = tiny_model("gemma3n_text")
    one_line(lambda: SublayerSkip(shared, [1], []), "skip.attention", "last 2 layers", "[1]", "mlp alone")
    with SublayerSkip(shared, [], [1]).active():
        shared(IDS)
