"""Windows, sinks, capped logits and mixtures: drawn texts have the model's distribution, and a seed draws one text.

The texts are longer than the window. Each of the tests finds a decoder that leaves out what is particular to the kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.decoding.classes import config_of
from saccade.inference import Autoregressive, Decoder, PromptLookup, Sampling, SelfSpeculative, sampling
from saccade.inference.noise import gumbel_noise
from tests.inference.sampling_law import PROMPT, VOCABULARY, law, measured

WINDOW, RUNS = 3, 2_500
PLAIN, REJECTING = Sampling(), Sampling(coupling="rejection")
SKIP = {"attention": [1], "mlp": [0]}


@dataclass(frozen=True)
class Kind:
    """A class of models.

    Args:
        name: As in a checkpoint's ``model_type``.
        settings: What makes its kind count in a model so small.
        without: Settings that leave out what is particular to it.
    """

    name: str
    settings: dict[str, Any]
    without: dict[str, Any]


KINDS = {
    "window": Kind("mistral", {}, {"sliding_window": 99}),
    "sinks": Kind("gpt_oss", {}, {}),
    "capped": Kind(
        "gemma2",
        {"final_logit_softcapping": 1.0, "attn_logit_softcapping": 1.0},
        {"final_logit_softcapping": None, "attn_logit_softcapping": None},
    ),
    "mixture": Kind("mixtral", {}, {"num_experts_per_tok": 1}),
}


@cache
def toy(kind: str, without: bool = False) -> PreTrainedModel:
    """A model of two layers and three tokens, in float64.

    Args:
        kind: One of `KINDS`.
        without: Leave out what is particular to it.
    """
    config = config_of(KINDS[kind].name)
    small = {
        "vocab_size": VOCABULARY,
        "hidden_size": 8,
        "intermediate_size": 12,
        "head_dim": 4,
        "sliding_window": WINDOW,
    }
    config.update(small | {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.7})
    config.update(KINDS[kind].settings | (KINDS[kind].without if without else {}))
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, experts_implementation="eager")
    for path, weight in model.named_parameters():
        if path.endswith("sinks"):
            torch.nn.init.constant_(weight, -99.0 if without else 1.0)
    return model.double().eval()


def decoders() -> dict[str, Decoder]:
    return {
        "picked": PromptLookup(draft_length=3),
        "drawn": SelfSpeculative(SKIP, draft_length=3, gamma=0.0, adaptive=False),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_law_of_shared_noise(kind: str) -> None:
    wanted = law(toy(kind), PLAIN)
    assert abs(measured(Autoregressive(), PLAIN, toy(kind), RUNS)) < 4
    assert measured(Autoregressive(), PLAIN, toy(kind, without=True), RUNS, wanted) > 4


@pytest.mark.parametrize("drafts", decoders())
@pytest.mark.parametrize("kind", KINDS)
def test_the_law_of_rejection_sampling(kind: str, drafts: str) -> None:
    decoder = decoders()[drafts]
    assert abs(measured(decoder, REJECTING, toy(kind), RUNS)) < 4
    assert measured(decoder, REJECTING, toy(kind, without=True), RUNS, law(toy(kind), PLAIN)) > 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_draws_one_text_unless_noise_belongs_to_calls(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def by_call(keys: Tensor, positions: Tensor, vocabulary: int) -> Tensor:
        calls.append(1)
        return gumbel_noise(keys, torch.full_like(positions, len(calls)), vocabulary)

    def texts(decoder: Decoder) -> list[list[int]]:
        calls.clear()
        rows = torch.tensor(PROMPT).expand(40, -1)
        out = decoder.generate(toy(kind), rows, max_new_tokens=12, sampling=Sampling(seed=5), eos_token_id=())
        assert isinstance(decoder, Autoregressive) or 0 < out.stats.accepted < out.stats.drafted
        return out.tokens

    first, *others = map(texts, (Autoregressive(), *decoders().values()))
    assert others == [first, first]
    monkeypatch.setattr(sampling, "gumbel_noise", by_call)
    first, *others = map(texts, (Autoregressive(), *decoders().values()))
    assert first not in others
