"""Models that cannot be loaded by their path: one line says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from saccade.cli.commands.model_arguments import config_of_model
from saccade.cli.errors import UsageError
from saccade.inference import AssistedDecoding
from saccade.inference.huggingface.loading import load_model
from tests.support.errors import one_line
from tests.support.models import tiny_model

IDS = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    """The folder of a tiny mixture of experts with the vocabulary of the tiny models."""
    config = MixtralConfig(
        vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def settings_of(folder: Path, **changed: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def refused(folder: Path, *needles: str) -> None:
    one_line(lambda: AssistedDecoding(str(folder)).generate(tiny_model(), IDS), "draft_model", *needles)


def test_a_model_that_is_whole(mixture: Path) -> None:
    assert type(load_model(str(mixture), torch.float32)) is MixtralForCausalLM


def test_a_class_that_transformers_does_not_know(mixture: Path) -> None:
    settings_of(mixture, model_type="mixtral9")
    refused(mixture, "mixtral9", "unknown to transformers")


def test_code_in_the_checkpoint_is_not_run(mixture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings_of(mixture, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    (mixture / "own.py").write_text("raise SystemExit('the code was run')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks at the terminal"))
    refused(mixture, "code in the checkpoint", "not run")


def test_a_mixture_without_its_router(mixture: Path) -> None:
    path = mixture / "model.safetensors"
    weights = load_file(path)
    routers = sorted(name for name in weights if name.endswith("gate.weight"))
    assert len(routers) == 2
    save_file({name: value for name, value in weights.items() if name not in routers}, path, {"format": "pt"})
    refused(mixture, "lack the weight", "gate.weight and 1 more", "MixtralForCausalLM", "random")


def test_files_that_are_broken_or_not_there(mixture: Path) -> None:
    (mixture / "model.safetensors").write_bytes(b"nothing")
    refused(mixture, "cannot be loaded")
    (mixture / "config.json").write_text("{}")
    refused(mixture, "cannot be loaded")
    refused(mixture / "elsewhere", "elsewhere")


def test_commands_say_the_same_of_their_model(mixture: Path) -> None:
    settings_of(mixture, model_type="mixtral9")
    with pytest.raises(UsageError, match=r"^MODEL must be .*its model type mixtral9 is unknown"):
        config_of_model(str(mixture))
