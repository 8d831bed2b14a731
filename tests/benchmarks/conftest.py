"""A run folder with small untrained video models, for the benchmarks of videos."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks.decoding import decode
from saccade.datamodules import VideoCaptions
from saccade.modules import VisionLanguageModel

DATA = {"vocab_size": 512, "frames": 4, "height": 56, "width": 56, "max_digits": 1, "max_tokens": 400}


def video_model(layers: int) -> dict:
    """A configuration of a few thousand weights."""
    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": layers, "max_position_embeddings": 512}
    return {
        "model_type": "qwen2_5_vl",
        "text_config": text | {"num_attention_heads": 1, "num_key_value_heads": 1},
        "vision_config": {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 1},
    }


@pytest.fixture(autouse=True)
def small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bandwidth is measured with a copy of 4 MiB; that of 512 takes seconds."""
    monkeypatch.setitem(decode.COPIED_MIB, "cpu", 4)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread: on a loaded machine two threads wait for each other longer than these models compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def video_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with its configuration, an untrained target in ``model`` and a draft in ``draft``."""
    run = tmp_path_factory.mktemp("video-run")
    data = VideoCaptions(**DATA, scenes=2, validation_scenes=1, test_scenes=1)
    data.setup("fit")
    for name, layers in (("model", 2), ("draft", 1)):
        module = VisionLanguageModel(config=video_model(layers), seed=layers)
        module.build_for(data)
        module.save_pretrained(run / name)
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"init_args": DATA}}))
    return run
