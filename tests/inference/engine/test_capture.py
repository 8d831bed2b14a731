"""Models without fused kernels: `auto` captures their own modules, and only where a replay is their own forward."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from saccade.inference import Autoregressive, Decoder, EngineConfig, PromptLookup, SelfSpeculative
from saccade.inference.engine.fused.parts import why_not_fused
from saccade.inference.engine.graphs import GraphEngine, Step, why_not_captured
from saccade.inference.engine.session import Session
from tests.support.models import prompts, tiny_model
from tests.support.processes import TIME_LIMIT

CUDA = torch.cuda.is_available()
LENGTHS = [4, 70, 7]
SHARED = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
CLASSES = {
    "Olmo3": {"sliding_window": 8, "layer_types": ["sliding_attention"] * 3},
    "Gemma2": {
        "sliding_window": 64,
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "Arcee": {},
    "GPTNeoX": {"rotary_pct": 1.0},
    "GPT2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256},
}


def other_model(name: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    shared = SHARED if name != "GPT2" else {key: SHARED[key] for key in ("vocab_size", "initializer_range")}
    config = getattr(transformers, f"{name}Config")(**shared | CLASSES[name])
    config.bos_token_id = config.eos_token_id = None
    kind = f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    model = getattr(transformers, kind)(config).eval()
    model = model if name == "Olmoe" else model.double()  # transformers' grouped product knows no float64
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model.cuda() if CUDA else model


def engine_of(decoder: Decoder, model: nn.Module) -> list[GraphEngine]:
    return [engine for engine in decoder.pool._idle if engine.model is model]


def capturing(decoder: Decoder) -> Decoder:
    """The decoder; on a processor its graphs' steps run one by one."""
    decoder.pool.uncaptured = not CUDA
    return decoder


def on_device(model: nn.Module, lengths: list[int]) -> dict[str, torch.Tensor]:
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in prompts(model, lengths).items()}  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CLASSES)
def test_auto_captures_what_is_not_fused(name: str) -> None:
    model = other_model(name)
    batch = on_device(model, LENGTHS)
    assert why_not_fused(model)
    right = Autoregressive(engine="eager").generate(model, **batch, max_new_tokens=24).tokens
    decoder = capturing(PromptLookup(max_ngram=2))
    # a mixture of float32 experts waits for the host on a GPU: it cannot be captured, and goes on eagerly
    waits = CUDA and name == "Olmoe"
    with warnings.catch_warnings():
        # there is nothing that a user could do about missing kernels
        warnings.simplefilter("ignore" if waits else "error")
        for _ in range(2):
            assert decoder.generate(model, **batch, max_new_tokens=24).tokens == right
    assert [(engine.proven, engine._fused) for engine in engine_of(decoder, model)] == [(True, None)] * (not waits)


@pytest.mark.parametrize("where", ["hook", "pre-hook", "forward"])
def test_code_of_the_host_runs_at_every_step(where: str) -> None:
    model = other_model("Olmo3")
    part, calls = model.model.layers[1].mlp, []
    if where == "hook":
        part.register_forward_hook(lambda *_: calls.append(1))
    elif where == "pre-hook":
        part.register_forward_pre_hook(lambda *_: calls.append(1))
    else:
        forward = part.forward
        part.forward = lambda hidden: (calls.append(1), forward(hidden))[1]
    assert "model.layers.1.mlp has a hook or a changed forward" in why_not_captured(model)
    decoder = capturing(Autoregressive(engine=EngineConfig(check_model=False)))
    decoder.generate(model, **on_device(model, [5]), max_new_tokens=12)
    assert len(calls) == 12
    assert not engine_of(decoder, model)


class Counting(nn.Module):
    """A planted bug of a model: it adds a number of the host that changes from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return hidden + 0.05 * self.calls


@pytest.mark.parametrize("decoder", [Autoregressive(), SelfSpeculative(skip={"attention": [1], "mlp": [2]})])
def test_a_replay_that_is_not_the_models_own_forward_is_found(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = other_model("Olmo3") if isinstance(decoder, Autoregressive) else tiny_model("llama", residual=0.3)
    if isinstance(decoder, SelfSpeculative):
        decoder.engine = "graph"
        model = model.cuda() if CUDA else model
        model.model.norm.register_forward_hook(lambda *_: None)  # not fused
    batch = on_device(model, LENGTHS)
    right = Autoregressive(engine="eager").generate(model, **batch, max_new_tokens=24).tokens
    run = GraphEngine.forward

    def stale(self: GraphEngine, *arguments: object) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits, states = run(self, *arguments)  # type: ignore[arg-type]
        return (logits.roll(1, -1), states) if self.replayed else (logits, states)

    monkeypatch.setattr(GraphEngine, "forward", stale)
    capturing(decoder)
    with pytest.warns(UserWarning, match="a replayed step differs from the model's own forward"):
        assert decoder.generate(model, **batch, max_new_tokens=24).tokens == right
    assert not engine_of(decoder, model)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_a_model_whose_forward_counts_is_not_replayed() -> None:
    model = other_model("Olmo3")
    model.model.layers[1].mlp = nn.Sequential(model.model.layers[1].mlp, Counting())
    batch = on_device(model, [5])
    model.model.layers[1].mlp[1].calls = 0
    plain = EngineConfig("eager", check_model=False)
    right = Autoregressive(engine=plain).generate(model, **batch, max_new_tokens=12)
    decoder = Autoregressive(engine=EngineConfig(check_model=False))
    with pytest.warns(UserWarning, match="a replayed step differs"):
        out = decoder.generate(model, **batch, max_new_tokens=12)
    assert len(out.tokens[0]) == len(right.tokens[0])  # the counts differ by the captures, so do the texts
    assert not engine_of(decoder, model)


def test_the_first_replay_is_compared_once() -> None:
    model = other_model("Arcee")
    decoder, eager = capturing(Autoregressive(engine=EngineConfig(check_model=False))), []
    make = Session._eager

    def counted(self: Session, *arguments: object) -> torch.Tensor:
        eager.append(1)
        return make(self, *arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "_eager", counted)
        for length in (5, 9):
            out = decoder.generate(model, **on_device(model, [length]), max_new_tokens=12)
            assert out.stats.target_forwards == 12  # the comparison is no forward of the text
    assert len(eager) == 1
    assert all(isinstance(step, Step) for step in engine_of(decoder, model)[0]._steps.values())


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_threads_share_decoders_and_a_model() -> None:
    model = tiny_model("llama", residual=0.3).cuda()
    decoders = (
        PromptLookup(engine="graph"),
        SelfSpeculative(skip={"attention": [1], "mlp": []}, draft_length=4, engine="graph"),
    )
    texts = [[5, 6, 7, 8] * count for count in (2, 5, 9, 3)]
    right = [Autoregressive(engine="eager").generate(model, [text], max_new_tokens=40).tokens[0] for text in texts]
    found: dict[int, list[object]] = {}

    def work(number: int) -> None:
        found[number] = []
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(6):
                out = decoders[number % 2].generate(model, [texts[number]], max_new_tokens=40)
                found[number].append(out.tokens[0])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIME_LIMIT)
    assert found == {number: [text] * 6 for number, text in enumerate(right)}
