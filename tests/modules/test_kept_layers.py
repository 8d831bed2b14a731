"""A model of some layers of a trained one: exactly those, exported so that it loads, and a draft of the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from saccade.inference import AssistedDecoding, Autoregressive
from saccade.modules import LanguageModel
from saccade.modules.kept_layers import keep_layers
from tests.modules.language.tiny import CONFIG, corpus, trainer
from tests.support.errors import one_line

TOKENS = torch.randint(0, 90, (2, 8), generator=torch.Generator().manual_seed(0))
SIZES = {**CONFIG, "num_hidden_layers": 4, "vocab_size": 90, "initializer_range": 0.3}
KINDS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen3": {**SIZES, "model_type": "qwen3", "head_dim": 8},
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 4, "n_head": 2, "vocab_size": 90},
}


def whole(kind: str = "llama") -> PreTrainedModel:
    settings = dict(KINDS[kind])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings)).eval()


def layers(model: Any) -> Any:
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


@pytest.mark.parametrize("kind", KINDS)
def test_all_layers_kept_is_the_same_model(kind: str) -> None:
    model, other = whole(kind), whole(kind)
    keep_layers(model, [-4, 1, 2, 3])
    assert torch.equal(model(TOKENS).logits, other(TOKENS).logits)
    assert model.config.to_dict() == other.config.to_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_and_the_last_layer_are_those_of_the_model(kind: str, tmp_path: Path) -> None:
    model, other = whole(kind), whole(kind)
    keep_layers(model, [-1, 0])  # in the order of the model
    for kept, layer in zip(layers(model), [layers(other)[0], layers(other)[3]], strict=True):
        pairs = zip(kept.state_dict().items(), layer.state_dict().items(), strict=True)
        assert all(name == same and torch.equal(value, its) for (name, value), (same, its) in pairs)
    # the folder has two layers, and computes what the model computes, with a cache too
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.config.num_hidden_layers == 2
    assert len(getattr(loaded.config, "layer_types", None) or [1, 1]) == 2
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)
    assert not torch.allclose(loaded(TOKENS).logits, other(TOKENS).logits)
    first = model(TOKENS[:, :-1], use_cache=True)
    last = model(TOKENS[:, -1:], past_key_values=first.past_key_values).logits
    assert torch.allclose(last[:, -1], model(TOKENS).logits[:, -1], atol=1e-5)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([0, 4], "keep_layers must name layers from -4 to 3 of the model's 4, got 4"),
        ([-5], "got -5"),
        ([1, -3], "keep_layers must name every layer once, got layer 1 twice"),
    ],
)
def test_wrong_numbers_are_refused(keep: list[int], message: str) -> None:
    one_line(lambda: keep_layers(whole(), keep), message)


def test_a_model_without_one_list_of_layers_is_refused() -> None:
    model = whole()
    model.config.num_hidden_layers = 5
    one_line(lambda: keep_layers(model, [0]), "keep_layers needs a model with one list of its 5 layers, got Llama")


def test_settings_that_do_not_fit_are_refused() -> None:
    one_line(lambda: LanguageModel(config=SIZES, keep_layers=[0]), "keep_layers must be left out without path")
    one_line(lambda: LanguageModel("model", keep_layers=[]), "keep_layers must name layers, got an empty list")
    one_line(lambda: LanguageModel("model", freeze_embeddings="no"), "freeze_embeddings must be true or false")  # type: ignore[arg-type]


def test_a_trained_draft_loads_with_transformers_and_drafts(tmp_path: Path) -> None:
    data = corpus(tmp_path)
    target = LanguageModel(config={**SIZES, "vocab_size": 270}, seed=0)
    trainer(tmp_path, max_steps=1).fit(target, data)
    target.save_pretrained(tmp_path / "target")

    draft = LanguageModel(str(tmp_path / "target"), keep_layers=[0, -1], freeze_embeddings=True, learning_rate=0.1)
    fit = trainer(tmp_path, max_steps=2)
    fit.fit(draft, corpus(tmp_path, tokenizer=str(tmp_path / "target")))
    old, new = target.model, draft.model
    assert torch.equal(new.get_input_embeddings().weight, old.get_input_embeddings().weight)
    assert torch.equal(new.get_output_embeddings().weight, old.get_output_embeddings().weight)
    assert not torch.equal(layers(new)[1].mlp.up_proj.weight, layers(old)[3].mlp.up_proj.weight)
    fit.save_checkpoint(tmp_path / "draft.ckpt")
    draft.save_pretrained(tmp_path / "draft")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "draft")
    again = LanguageModel.load_from_checkpoint(tmp_path / "draft.ckpt").model
    for model in (loaded, again):
        assert model.config.num_hidden_layers == 2
        assert torch.equal(model.eval()(TOKENS).logits, new.eval()(TOKENS).logits)

    decoder = AssistedDecoding(str(tmp_path / "draft"), draft_length=3)
    prompts = TOKENS.tolist()
    out = decoder.generate(old.eval(), prompts, max_new_tokens=12, do_sample=False)
    wanted = Autoregressive().generate(old, prompts, max_new_tokens=12, do_sample=False)
    assert out.tokens == wanted.tokens
    assert out.stats.drafted > 0
