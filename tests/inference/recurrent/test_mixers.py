"""Which recurrent layers a session follows, and that a model is changed for single forwards only."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from transformers import PreTrainedModel, Qwen3_5Config, Qwen3_5ForConditionalGeneration
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from benchmarks.decoding.classes import config_of, tiny_model
from saccade.inference import Autoregressive
from saccade.inference.engine.config import EngineConfig
from saccade.inference.engine.pool import EnginePool
from saccade.inference.engine.session import Session
from saccade.inference.huggingface.models import attention_layers, cache_argument, cache_bytes, recurrent_layers
from saccade.inference.recurrent.mixers import recurrent_mixers, why_not_followed
from tests.inference.doors.test_clean import portrait, same
from tests.support.errors import one_line

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 3, 1, 4, 1]])


@cache
def model_of(name: str) -> PreTrainedModel:
    return tiny_model(name)


@pytest.mark.parametrize(
    ("name", "scan"),
    [("lfm2", None), ("qwen3_next", "torch_chunk_gated_delta_rule"), ("mamba", "mamba_selective_scan")],
)
def test_what_is_followed(name: str, scan: str | None) -> None:
    model = model_of(name)
    found = recurrent_mixers(model)
    assert [mixer.layer for mixer in found] == recurrent_layers(model) == ([0, 1] if name == "mamba" else [0])
    assert all(mixer.known and (mixer.kernel and mixer.kernel.scan) == scan for mixer in found)
    assert attention_layers(model) == ([] if name == "mamba" else [1])
    assert cache_argument(model) == ("cache_params" if name == "mamba" else "past_key_values")
    # keys and values of the one layer that attends: 2 heads of 8 numbers
    assert cache_bytes(model, 3, 10) == (0 if name == "mamba" else 2 * 3 * 10 * 2 * 8 * 8)


def test_a_class_of_ones_own_is_known_by_what_it_calls() -> None:
    class Derived(Qwen3NextGatedDeltaNet):
        pass

    class Unknown(Qwen3NextGatedDeltaNet):
        def forward(self, hidden_states: torch.Tensor, cache_params: Any = None, **named: Any) -> torch.Tensor:
            cache_params.update_recurrent_state(hidden_states, self.layer_idx)
            return hidden_states

    config = config_of("qwen3_next")
    derived, unknown = Derived(config, 0), Unknown(config, 0)
    (mixer,) = recurrent_mixers(nn.ModuleList([derived]))
    assert mixer.known
    reason = "cannot roll back after a rejected draft"
    assert why_not_followed(nn.ModuleList([derived]), [0], True) == ""
    assert reason in why_not_followed(nn.ModuleList([derived]), [0, 1], True)
    assert reason in why_not_followed(nn.ModuleList([unknown]), [], True)


def test_models_that_cannot_be_followed_are_refused() -> None:
    one_line(
        lambda: Autoregressive().generate(tiny_model("minimax"), IDS),
        "MiniMaxForCausalLM", "linear_attention layers", "roll back", "decode it with model.generate",
    )  # fmt: skip
    replaced = tiny_model("qwen3_next")
    mixer = recurrent_mixers(replaced)[0].part
    mixer.forward = lambda *given, **named: mixer(*given, **named)  # type: ignore[method-assign]
    one_line(lambda: Autoregressive().generate(replaced, IDS), "linear_attention", "replaced", "load the model as it")
    config = Qwen3_5Config(text_config=config_of("qwen3_5_text").to_dict(), vision_config={"depth": 1})
    with torch.device("meta"):
        seeing = Qwen3_5ForConditionalGeneration(config)
    one_line(lambda: Autoregressive().generate(seeing, IDS), "images or videos", "linear_attention", "for text")


def test_hooks_of_accelerate_run_if_they_move_no_weights() -> None:
    model = tiny_model("qwen3_next")
    right = model.generate(IDS, max_new_tokens=6, do_sample=False)[0, -6:].tolist()
    calls = []

    class Counting(AlignDevicesHook):
        def pre_forward(self, module: nn.Module, *given: Any, **named: Any) -> Any:
            calls.append(module)
            return super().pre_forward(module, *given, **named)

    mixer = recurrent_mixers(model)[0].part
    add_hook_to_module(mixer, Counting(execution_device="cpu"))
    before = portrait(model)
    decoder = Autoregressive(engine=EngineConfig(check_model=False))
    assert decoder.generate(model, IDS, max_new_tokens=6).tokens == [right]
    assert calls == [mixer] * 6, "a prompt and five steps"
    assert same(before, portrait(model))
    cpu_offload(model, execution_device=torch.device("cpu"))
    one_line(lambda: Autoregressive().generate(model, IDS), "linear_attention layers and", "moved", "keep the model on")


@pytest.mark.parametrize("name", ["lfm2", "qwen3_next"])
def test_a_model_is_changed_for_single_forwards(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(name)
    before = portrait(model)
    stream = Autoregressive().stream(model, IDS, max_new_tokens=4)
    next(stream)
    with torch.inference_mode():
        right = model(IDS).logits
    next(stream)
    stream.close()
    assert same(before, portrait(model))
    with Session(model, 20) as session:
        session.prefill([IDS[0, :5].tolist()])
        assert session.states is not None
        state = session.states.bytes
        with session._attached(False):  # what a rank does that only keeps others company
            assert torch.equal(model(IDS, use_cache=False).logits, right)
        assert session.states.bytes == state
        monkeypatch.setattr(model.lm_head, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            session.forward(IDS[:, 5:7])
        monkeypatch.undo()
        found = session.forward(IDS[:, 5:])[0]
        torch.testing.assert_close(found, right[0, 5:], rtol=1e-5, atol=1e-6)
    assert same(portrait(model), portrait(model_of(name)))


def test_prompts_that_fail_half_way_are_read_again() -> None:
    model = model_of("qwen3_next")
    text = IDS[0].tolist()
    calls = []

    def failing(*given: Any) -> None:
        calls.append(given)
        if len(calls) == 2:
            raise ZeroDivisionError

    with Session(model, 30, pool=EnginePool(EngineConfig("eager", prefill_chunk=1))) as session:
        right = session.prefill([text])
        handle = model.lm_head.register_forward_hook(failing)
        with pytest.raises(ZeroDivisionError):
            session.prefill([[*text, 7, 7]])  # the first of two pieces has been read
        handle.remove()
        assert session.lengths == []
        torch.testing.assert_close(session.prefill([text]), right, rtol=1e-5, atol=1e-6)
