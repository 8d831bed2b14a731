"""A text does not depend on how many tokens are drafted in each round, nor on the clock that decides it."""

from __future__ import annotations

import random

import pytest
import torch

from saccade.inference import AssistedDecoding, Autoregressive, PromptLookup, Sampling, SelfSpeculative
from saccade.inference.drafting import chain
from saccade.inference.drafting.chain import confidence
from saccade.inference.drafting.control import Control, DraftControl
from saccade.inference.parallel.control import RoundControl
from tests.support.decoders import LOSSLESS
from tests.support.models import tiny_model

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7] * 5, [8, 2, 8], [1, 2, 3, 1, 2, 3, 1, 2]]
DRAWN = {"greedy": None, "sampled": Sampling(temperature=0.9, seed=5)}


@pytest.mark.draft_control
@pytest.mark.parametrize("how", DRAWN)
@pytest.mark.parametrize("name", LOSSLESS)
def test_lengths_at_random(name, how, monkeypatch):
    draw = random.Random(name)
    chosen = []

    def length(control: Control, grade: int | None = None) -> int:
        chosen.append(draw.choice([0, 0, 1, control.longest, draw.randint(0, control.longest)]))
        return chosen[-1]

    for kind in (DraftControl, RoundControl):
        monkeypatch.setattr(kind, "length", length)
    model = tiny_model("llama", residual=0.3, seed=3)
    right = Autoregressive().generate(model, PROMPTS, max_new_tokens=24, sampling=DRAWN[how])
    found = LOSSLESS[name](model).generate(model, PROMPTS, max_new_tokens=24, sampling=DRAWN[how])
    assert found.tokens == right.tokens
    assert name == "autoregressive" or len(set(chosen)) > 1


@pytest.mark.draft_control
def test_the_clock_decides_and_a_user_is_told():
    model = tiny_model("llama", residual=0.3, seed=3)
    text = torch.randint(0, 40, (1, 40), generator=torch.Generator().manual_seed(0))
    decoder = PromptLookup(draft_length=8)
    control = decoder.draft_control(model, type("Asked", (), {"sampling": None, "prompts": [[1]]})())
    for _ in range(200):  # a wide step that costs far more than a token
        allowed = control.length()
        control.observe([allowed], [0], allowed, 1.0 + 3.0 * allowed)
    with pytest.warns(UserWarning, match="drafts of PromptLookup do not pay .*answers that repeat"):
        control.advise("PromptLookup", PromptLookup.advice)
    out = decoder.generate(model, text, max_new_tokens=30, eos_token_id=())
    assert out.stats.drafted < 30 * 4, "what the decoder has measured counts in its next call"
    fixed = PromptLookup(draft_length=8, control="fixed").generate(model, text, max_new_tokens=30, eos_token_id=())
    assert fixed.tokens == out.tokens


@pytest.mark.draft_control
def test_prompt_lookup_says_how_long_its_match_is(monkeypatch):
    """Of all rows the longest; a decoder with a draft model says nothing."""
    asked, noted = [], []
    observe = DraftControl.observe

    def length(control: DraftControl, grade: int | None = None) -> int:
        asked.append(grade)
        return 0

    def observed(control: DraftControl, *given: object) -> None:
        noted.append(given[4])
        observe(control, *given)

    monkeypatch.setattr(DraftControl, "length", length)
    monkeypatch.setattr(DraftControl, "observe", observed)
    model = tiny_model("llama", residual=0.3, seed=3)
    PromptLookup().generate(model, [PROMPTS[3], PROMPTS[2]], max_new_tokens=12, eos_token_id=())
    assert set(asked) <= {0, 1, 2, 3}
    assert len(set(asked)) > 1
    assert noted == asked
    asked.clear()
    AssistedDecoding(tiny_model("llama", seed=3)).generate(model, PROMPTS, max_new_tokens=6, eos_token_id=())
    assert set(asked) == {None}


@pytest.mark.draft_control
def test_where_the_text_would_depend_on_the_clock_there_is_no_control():
    model = tiny_model("llama")
    asked = type("Asked", (), {"prompts": [[1]], "sampling": None})
    assert PromptLookup().draft_control(model, asked()) is not None
    assert PromptLookup().draft_control(model, asked(), synced=True) is None
    assert PromptLookup(control="fixed").draft_control(model, asked()) is None
    asked.sampling = Sampling(coupling="rejection")
    assert PromptLookup().draft_control(model, asked()) is None
    asked.sampling = Sampling()
    assert PromptLookup().draft_control(model, asked()) is not None
    assert Autoregressive().draft_control(model, asked()) is None


def test_another_control_is_refused():
    with pytest.raises(ValueError, match="control must be"):
        PromptLookup(control="sometimes")


@pytest.mark.draft_control
@pytest.mark.parametrize("name", ["self_speculative", "assisted"])
def test_the_host_reads_no_confidences_where_the_control_chooses_the_length(name, monkeypatch):
    model = tiny_model("llama", residual=0.3, seed=3)
    made = {
        control: {
            "self_speculative": lambda control=control: SelfSpeculative(skip={"mlp": [1]}, control=control),
            "assisted": lambda control=control: AssistedDecoding(tiny_model("llama", seed=3), control=control),
        }[name]()
        for control in ("auto", "fixed")
    }
    monkeypatch.setattr(DraftControl, "length", lambda control, grade=None: 3)
    read = []
    monkeypatch.setattr(chain, "confidence", lambda logits, tokens: read.append(1) or confidence(logits, tokens))
    assert made["auto"].generate(model, PROMPTS, max_new_tokens=12, eos_token_id=()).stats.drafted
    assert not read
    assert made["fixed"].generate(model, PROMPTS, max_new_tokens=12, eos_token_id=()).stats.drafted
    assert read
