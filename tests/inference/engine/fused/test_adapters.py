"""Adapters and quantised weights in graphs: fused or captured, never with a setting of before."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from saccade.inference import Autoregressive
from saccade.inference.engine.fused.parts import why_not_fused
from saccade.inference.engine.session import Session
from tests.support.models import prompts, tiny_model

CUDA = torch.cuda.is_available()
LENGTHS = [4, 30, 7]
TARGETS = ["q_proj", "v_proj", "o_proj", "up_proj", "lm_head"]


def filled(model: nn.Module, std: float = 0.3) -> nn.Module:
    """The model in evaluation mode, whose adapters change something."""
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=std)
    model = model.double().eval()
    return model.cuda() if CUDA else model


def adapted(**settings: Any) -> Any:
    config = LoraConfig(task_type="CAUSAL_LM", r=3, **{"target_modules": TARGETS} | settings)
    return filled(get_peft_model(tiny_model("qwen2"), config))


def on_device(model: Any, lengths: list[int]) -> dict[str, torch.Tensor]:
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in prompts(model, lengths).items()}


def graphs() -> Autoregressive:
    """A decoder on graph steps; on a processor they run one by one."""
    decoder = Autoregressive()
    decoder.pool.uncaptured = not CUDA
    return decoder


def text(decoder: Autoregressive, model: Any, lengths: list[int] = LENGTHS) -> list[list[int]]:
    return decoder.generate(model, **on_device(model, lengths), max_new_tokens=12).tokens


def eager(model: Any, lengths: list[int] = LENGTHS) -> list[list[int]]:
    return text(Autoregressive(engine="eager"), model, lengths)


@pytest.mark.parametrize("lengths", [LENGTHS, [5]])
def test_lora_is_fused(lengths: list[int]) -> None:
    model, decoder = adapted(), graphs()
    assert why_not_fused(model) == ""
    assert text(decoder, model, lengths) == eager(model, lengths)
    assert [engine._fused is not None for engine in decoder.pool._idle] == [True]


@pytest.mark.parametrize("fused", [True, False])
def test_what_is_switched_between_calls_is_followed(fused: bool) -> None:
    model, decoder = adapted(use_dora=not fused), graphs()
    assert (why_not_fused(model) == "") == fused
    model.add_adapter("other", LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["k_proj", "down_proj"]))
    filled(model)
    seen = [text(decoder, model)]
    assert seen[0] == eager(model)

    def followed() -> None:
        before = decoder.pool._idle[0]
        seen.append(text(decoder, model))
        assert seen[-1] == eager(model)
        assert decoder.pool._idle[0] is not before  # on a processor nothing is captured that could be stale

    with model.disable_adapter():
        followed()
    model.set_adapter("other")
    followed()
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("other", 9.0)
    followed()
    model.set_adapter("default")
    followed()
    assert seen[-1] == seen[0]
    model.merge_adapter()
    assert text(decoder, model) == seen[0]
    assert len({str(item) for item in seen}) == 4  # each of the settings matters


def test_a_session_that_goes_on_follows_too() -> None:
    model = adapted()
    decoder = graphs()
    tokens = torch.tensor([[3]], device=next(model.parameters()).device)
    found = []
    for pool in (decoder.pool, Autoregressive(engine="eager").pool):
        with Session(model, 40, pool=pool) as session:
            session.prefill([[1, 2, 3, 4]])
            session.forward(tokens)
            session.commit([[0]])
            steps = session._engine and session._engine._steps
            with model.disable_adapter():
                session.prefill([[1, 2, 3, 4, 3, 5]])
                found.append(session.forward(tokens).clone())
            assert session._engine is None or session._engine._steps is not steps
    assert torch.allclose(*found, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: adapted(use_dora=True), "is not plain LoRA"),
        (lambda: adapted(lora_bias=True, target_modules=["q_proj"]), "is not plain LoRA"),
        (lambda: adapted(target_modules=["q_proj", "embed_tokens"]), "is a Embedding of an adapter"),
        (lambda: adapted(target_modules=["q_proj"], modules_to_save=["lm_head"]), "lm_head is a ModulesToSaveWrapper"),
    ],
)
def test_other_adapters_run_as_captured_modules(make: Any, reason: str) -> None:
    model, decoder = make(), graphs()
    assert reason in why_not_fused(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert text(decoder, model) == eager(model)
    assert [engine._fused for engine in decoder.pool._idle] == [None]


class Halves(torch.Tensor):
    """Stands for a quantised weight of torchao: a tensor without values of its own, around others."""

    low: torch.Tensor
    high: torch.Tensor

    @staticmethod
    def __new__(cls: Any, low: torch.Tensor, high: torch.Tensor) -> Any:
        shape = (low.shape[0] * 2, low.shape[1])
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=low.dtype, device=low.device)

    def __init__(self, low: torch.Tensor, high: torch.Tensor) -> None:
        self.low, self.high = low, high

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["low", "high"], None

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        def whole(item: Any) -> Any:
            return torch.cat([item.low, item.high]) if isinstance(item, Halves) else item

        if function is torch.ops.aten.detach.default:
            return Halves(given[0].low, given[0].high)
        return function(*torch.utils._pytree.tree_map(whole, given), **(named or {}))


def test_weights_inside_other_tensors_are_not_read_by_kernels() -> None:
    model, decoder = tiny_model("qwen2"), graphs()
    model = model.cuda() if CUDA else model
    right = eager(model)
    up = model.model.layers[1].mlp.up_proj
    low, high = up.weight.detach().clone().chunk(2)
    up.weight = nn.Parameter(Halves(low, high), requires_grad=False)
    assert why_not_fused(model) == "model.layers.1.mlp.up_proj.weight is a Halves, not a plain tensor"
    assert text(decoder, model) == right
    engine = decoder.pool._idle[0]
    assert engine._fused is None
    assert {low.data_ptr(), high.data_ptr()} <= set(engine._signature)
    up.weight = nn.Parameter(Halves(high.clone(), low.clone()), requires_grad=False)
    assert text(decoder, model) == eager(model) != right
    assert decoder.pool._idle[0] is not engine
