"""Exported folders load with plain transformers and compute the same."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from saccade.modules import LanguageModel, LoraSettings
from saccade.modules.language.export import merged_state_dict
from tests.modules.language.tiny import corpus, language_model, trainer

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
    with pytest.raises(OSError, match="disk full"):
        module.save_pretrained(tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]
    assert sorted(os.listdir(tmp_path / "model")) == files


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    module = language_model(config={"vocab_size": 200})
    module.build()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="folder must be writable, got "):
        module.save_pretrained(tmp_path / "file" / "model")
