"""Exported folders load with plain transformers and compute the same."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from saccade.modules import LanguageModel, LoraSettings
from saccade.modules.language.export import merged_state_dict
from tests.modules.language.tiny import CONFIG, corpus, language_model, trainer

TOKENS = torch.randint(0, 200, (2, 8), generator=torch.Generator().manual_seed(0))


def _fitted(folder: Path, **settings: Any) -> LanguageModel:
    module = language_model(learning_rate=1e-2, seed=1, **settings)
    trainer(folder, max_steps=3).fit(module, corpus(folder))
    return module.eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_export_loads_with_plain_transformers(tmp_path: Path, model_type: str, tied: bool) -> None:
    module = _fitted(tmp_path, config={"model_type": model_type, "tie_word_embeddings": tied}, sublayer_dropout=0.3)
    module.save_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(loaded) is type(module.model)
    assert torch.equal(loaded(TOKENS).logits, module(TOKENS))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert module.tokenizer is not None
    assert tokenizer.get_vocab() == module.tokenizer.get_vocab()
    assert loaded.config.vocab_size == len(tokenizer)
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    text = tokenizer.decode(loaded.generate(**tokenizer("def f", return_tensors="pt"), max_new_tokens=4)[0])
    assert text.startswith("def f")


def test_lora_is_merged_in_the_export_and_not_in_training(tmp_path: Path) -> None:
    module = _fitted(tmp_path, lora=LoraSettings(rank=2, alpha=64.0))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with_adapters = module(TOKENS)
    module.save_pretrained(tmp_path / "model")
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert not [name for name, _ in loaded.named_parameters() if "lora" in name]
    assert torch.allclose(loaded(TOKENS).logits, with_adapters, atol=1e-6)
    # the adapters do something, so the comparison above can fail
    module.model.disable_adapters()
    assert not torch.allclose(module(TOKENS), with_adapters, atol=1e-4)


ADAPTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the head": ({"model_type": "llama"}, {"target_modules": ["lm_head", "q_proj"]}),
    "the embedding": ({"model_type": "llama"}, {"target_modules": ["embed_tokens"]}),
    "both": ({"model_type": "qwen3"}, {"target_modules": ["embed_tokens", "lm_head"]}),
    "a whole head": ({"model_type": "llama"}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "DoRA": ({"model_type": "llama"}, {"target_modules": ["lm_head", "q_proj"], "use_dora": True}),
    "GPT-2": ({"model_type": "gpt2"}, {"target_modules": ["lm_head", "c_attn"], "fan_in_fan_out": True}),
    "biases": ({"model_type": "qwen2"}, {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Model (with|has) `tie_word_embeddings=True`", "ignore:fan_in_fan_out")
@pytest.mark.parametrize("kind", ADAPTED)
def test_adapters_on_tied_weights_are_exported_as_trained(tmp_path: Path, kind: str) -> None:
    config, settings = ADAPTED[kind]
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2} if config["model_type"] == "gpt2" else CONFIG
    module = LanguageModel(config={**sizes, "vocab_size": 200, "tie_word_embeddings": True, **config}, seed=0)
    module.build()
    model = module.model
    head = model.get_output_embeddings().weight
    model.add_adapter(LoraConfig(r=2, task_type="CAUSAL_LM", **{"init_lora_weights": False, **settings}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    expected = module.eval()(TOKENS)
    module.save_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.allclose(loaded(TOKENS).logits, expected, atol=1e-5)
    with torch.no_grad():  # the adapters do something, so the comparison above can fail
        assert not torch.allclose(type(loaded)(loaded.config).eval()(TOKENS).logits, expected, atol=1e-3)
    embedding, output = (part.weight for part in (loaded.get_input_embeddings(), loaded.get_output_embeddings()))
    assert (embedding is output) == (kind == "biases")
    assert loaded.config.tie_word_embeddings == (kind == "biases")
    assert model.config.tie_word_embeddings, "the model that was exported is as it was"
    assert torch.equal(model.get_input_embeddings().weight if kind == "biases" else head, head)


def test_adapters_of_another_kind_are_refused(tmp_path: Path) -> None:
    module = language_model(config={"vocab_size": 200})
    module.build()
    module.model.add_adapter(IA3Config(target_modules=["q_proj"], feedforward_modules=[]))
    with pytest.raises(ValueError, match="model must have adapters of LoRA only to be exported, got Linear in model"):
        module.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_export_keeps_the_weights_type(tmp_path: Path) -> None:
    module = language_model(config={"vocab_size": 200})
    module.build()
    module.to(torch.bfloat16)
    module.save_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert loaded.dtype == torch.bfloat16


def test_state_shares_tied_weights_and_other_ranks_get_nothing() -> None:
    module = language_model(config={"vocab_size": 200, "tie_word_embeddings": True})
    module.build()
    state = merged_state_dict(module.model)
    assert state.keys() == module.model.state_dict().keys()
    assert state["lm_head.weight"] is state["model.embed_tokens.weight"]
    assert merged_state_dict(module.model, keep=False) == {}


def test_a_failed_export_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = language_model(config={"vocab_size": 200})
    module.build()
    module.save_pretrained(tmp_path / "model")
    files = sorted(os.listdir(tmp_path / "model"))

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(type(module.model), "save_pretrained", fail)
    with pytest.raises(ValueError, match="disk full"):
        module.save_pretrained(tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]
    assert sorted(os.listdir(tmp_path / "model")) == files


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    module = language_model(config={"vocab_size": 200})
    module.build()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write "):
        module.save_pretrained(tmp_path / "file" / "model")
