"""A tiny corpus and model for the tests of this folder."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from saccade.datamodules import TextCorpus
from saccade.modules import LanguageModel

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


def corpus(folder: Path, **settings: Any) -> TextCorpus:
    """Sixty files of a few lines; 300 tokens; sequences of 16; prepared below `folder`."""
    texts = folder / "texts"
    if not texts.exists():
        texts.mkdir(parents=True)
        for i in range(60):
            (texts / f"{i}.txt").write_text(f"def function_{i}(a, b):\n    return a + {i} * b\n\n" * 2)
    defaults: dict[str, Any] = {
        "paths": [str(texts / "*.txt")],
        "vocab_size": 270,
        "sequence_length": 16,
        "batch_size": 4,
        "validation_fraction": 0.1,
        "test_fraction": 0.1,
        "cache_dir": str(folder / "cache"),
    }
    return TextCorpus(**{**defaults, **settings})


def language_model(**settings: Any) -> LanguageModel:
    """A two-layer Llama with fresh weights; `config` entries are added to the tiny ones."""
    if "path" not in settings:
        settings["config"] = {**CONFIG, **settings.get("config", {})}
    return LanguageModel(**settings)


def trainer(folder: Path, **settings: Any) -> Trainer:
    """A quiet trainer on the CPU."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "limit_val_batches": 2,
        "default_root_dir": str(folder),
    }
    return Trainer(**{**defaults, **settings})
