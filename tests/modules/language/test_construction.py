"""Models from a configuration or a path: filled in from the tokenizer, reproducible, and refused with one line."""

from pathlib import Path
from typing import Any

import pytest
import torch

from saccade.datamodules.text.tokenization import train_tokenizer
from saccade.modules.language.construction import (
    check_fit,
    check_tokenizer_survives,
    complete_config,
    model_from_config,
    model_from_path,
)
from tests.modules.language.tiny import CONFIG

TOKENIZER = train_tokenizer(["a few words to learn from, and a few more words"], 270)


def test_vocabulary_and_special_tokens_come_from_the_tokenizer() -> None:
    config = complete_config(CONFIG, TOKENIZER)
    assert config.vocab_size == len(TOKENIZER)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    assert complete_config({**CONFIG, "vocab_size": 512}, TOKENIZER).vocab_size == 512


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_rope_and_attention_settings_are_accepted(model_type: str) -> None:
    config = complete_config(
        {**CONFIG, "model_type": model_type, "rope_theta": 5000.0, "attn_implementation": "eager"}, TOKENIZER
    )
    assert config.rope_parameters["rope_theta"] == 5000.0
    assert config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": None}, "config.model_type must name an architecture, got None"),
        ({"model_type": "lama"}, "config.model_type must be one that transformers has, got 'lama'"),
        ({"hiden_size": 3}, "config must have settings of llama, got 'hiden_size'"),
        ({"num_hidden_layers": 0}, "config.num_hidden_layers must be at least 1, got 0"),
        ({"hidden_size": "abc"}, "config (was refused by transformers as|gives no) llama"),
        ({"num_attention_heads": 0}, "config (was refused by transformers as|gives no) llama"),
        ({"hidden_act": "foo"}, "config gives no llama that can be built .*foo"),
        ({"attn_implementation": "foo"}, "config gives no llama that can be built .*foo"),
    ],
)
def test_wrong_configurations_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        model_from_config(complete_config({**CONFIG, **change}, TOKENIZER), 0)
    assert "\n" not in str(caught.value)


def test_unknown_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match=r"config\.vocab_size must be given without a tokenizer"):
        complete_config(CONFIG, None)


def test_data_that_does_not_fit_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"vocab_size of the model must be at least \d+, the size of the data's tokenizer, got 10"
    ):
        check_fit(complete_config({**CONFIG, "vocab_size": 10}, TOKENIZER), TOKENIZER, 8)
    with pytest.raises(ValueError, match="sequence_length must be at most 64, the model's context, got 65"):
        check_fit(complete_config(CONFIG, TOKENIZER), TOKENIZER, 65)


def test_a_tokenizer_that_would_not_come_back_is_refused() -> None:
    for model_type in ("llama", "qwen3"):
        check_tokenizer_survives(complete_config({**CONFIG, "model_type": model_type}, TOKENIZER), TOKENIZER)
    with pytest.raises(ValueError, match=r"config\.model_type must be one with which AutoTokenizer keeps .* got qwen2"):
        check_tokenizer_survives(complete_config({**CONFIG, "model_type": "qwen2"}, TOKENIZER), TOKENIZER)


def test_fresh_weights_depend_on_the_seed_only() -> None:
    config = complete_config(CONFIG, TOKENIZER)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = model_from_config(config, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again, other = model_from_config(config, seed=1), model_from_config(config, seed=2)
    pairs = list(zip(first.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.get_input_embeddings().weight, other.get_input_embeddings().weight)


def test_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path must be an existing path, got .*nothing: name an existing") as caught:
        model_from_path(str(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)
