"""Both classes are usable from YAML and the command line, and a misspelt setting is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

from saccade.datamodules import TextCorpus
from saccade.modules import LanguageModel, LoraSettings
from tests.modules.language.tiny import CONFIG, corpus


def _cli(arguments: list[str], **settings: Any) -> LightningCLI:
    return LightningCLI(
        LanguageModel, TextCorpus, args=arguments, save_config_callback=None, seed_everything_default=1, **settings
    )


def _config(tmp_path: Path, model: dict[str, Any]) -> Path:
    data = corpus(tmp_path)
    path = tmp_path / "config.yaml"
    content = {
        "model": {"config": CONFIG, **model},
        "data": {
            "paths": data.paths,
            "vocab_size": 270,
            "sequence_length": 16,
            "batch_size": 4,
            "validation_fraction": 0.1,
            "cache_dir": data.cache_dir,
        },
        "trainer": {
            "max_steps": 2,
            "accelerator": "cpu",
            "logger": False,
            "limit_val_batches": 1,
            "val_check_interval": 2,
            "enable_progress_bar": False,
            "default_root_dir": str(tmp_path),
        },
    }
    path.write_text(yaml.safe_dump(content))
    return path


def test_yaml_sets_everything_and_its_checkpoint_loads(tmp_path: Path) -> None:
    path = _config(tmp_path, {"lora": {"rank": 2}, "betas": [0.8, 0.9]})
    cli = _cli(["fit", f"--config={path}", "--model.lora.alpha=4", "--model.config.num_hidden_layers=3"])
    assert cli.model.lora == LoraSettings(rank=2, alpha=4.0)
    assert cli.model.betas == (0.8, 0.9)
    assert cli.model.model.config.num_hidden_layers == 3
    assert cli.model.seed == 1
    checkpoint = next(tmp_path.rglob("*.ckpt"))
    loaded = LanguageModel.load_from_checkpoint(checkpoint)
    assert loaded.lora == cli.model.lora
    assert loaded.model.config.num_hidden_layers == 3


@pytest.mark.parametrize("typo", ["--model.lora.rnak=3", "--model.sublayer_droput=0.5", "--data.sequence_lenght=8"])
def test_misspelt_settings_are_refused_by_name(tmp_path: Path, typo: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = _config(tmp_path, {"lora": {"rank": 2}})
    with pytest.raises(SystemExit):
        _cli(["fit", f"--config={path}", typo], run=True)
    assert typo.split(".")[-1].split("=")[0] in capsys.readouterr().err


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _cli(["fit", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for explanation in (
        "Largest rate, 0 to 1, at which the attention and MLP sub-layers are dropped",
        "Share of the files, or of every file, for validation",
    ):
        assert explanation in text
