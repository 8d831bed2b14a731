"""The table of classes: its rows are there for all of them, and a part of them is compared again."""

from __future__ import annotations

import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks.decoding import classes
from benchmarks.rows import read
from saccade.inference.model_check import TESTED

ROWS = {row["case"]: row for row in read("classes")}
SAMPLE = [
    "llama", "gpt2",  # full attention, with rotary and with learned positions
    "mistral", "phi3", "starcoder2",  # a window in all layers
    "gemma3_text", "olmo3", "cohere2", "exaone4",  # in some
    "gemma2", "gpt_oss",  # capped scores, sinks
    "mixtral", "qwen3_moe",  # mixtures
    "gemma", "olmo2", "glm4", "gpt_neox",  # other norms around the parts of a layer
    "llama4_text", "deepseek_v3",  # chunks, latent attention
    "lfm2", "qwen3_next", "mamba",  # recurrent layers: with attention, and alone
    "minimax", "falcon", "opt",  # refused: another recurrent state, its own attention, no MLP of its own
]  # fmt: skip
"""The classes that are compared at every run of the tests."""


def test_there_is_a_row_for_every_class() -> None:
    assert sorted(ROWS) == sorted(classes.TYPES)
    assert len(classes.TYPES) >= 60
    assert len(set(classes.TYPES)) == len(classes.TYPES)
    assert all(set(row["outcomes"]) == set(classes.decoders("", None)) for row in ROWS.values())  # type: ignore[arg-type]
    for name, row in ROWS.items():
        equal = [value == "equal" for value in row["outcomes"].values()]
        assert row["value"] == sum(equal)
        for value in row["outcomes"].values():
            assert value == "equal" or ("\n" not in value and len(value) > 40), name


def test_what_the_first_use_does_not_check_is_compared_here() -> None:
    made = {MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name] for name in SAMPLE}
    assert {name for name in TESTED if name.endswith(("ForCausalLM", "LMHeadModel"))} - made == {
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
    }, "these are in the tests of the loop"


@pytest.mark.parametrize("name", SAMPLE)
def test_the_table_is_true(name: str) -> None:
    if name not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} does not have it")
    assert classes.outcomes(name) == ROWS[name]["outcomes"]


def test_another_text_is_not_called_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes, "reference", lambda model: [[0] * classes.NEW] * 3)
    with pytest.raises(ArithmeticError, match=r"Autoregressive writes another text than .* with Llama"):
        classes.outcomes("llama")


def test_large_models_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes, "MOST", 1000)
    with pytest.raises(ValueError, match="a llama must have at most 1000 weights, got 18592: set its other sizes"):
        classes.tiny_model("llama")
