"""A really trained model of a few thousand weights, for tests of the command; how Triton kernels run."""

import os
from io import BytesIO
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported: kernels run on CPU tensors, slowly

import lightning.pytorch  # noqa: F401 - its log handler keeps the stderr of the first import
import pytest
from hypothesis import settings
from matplotlib.figure import Figure

from saccade.cli.main import main
from saccade.inference import Decoder
from tests.support.trained import QUICK

settings.register_profile("saccade", deadline=None)  # Hypothesis gives every example 0.2 s otherwise
settings.load_profile("saccade")


@pytest.fixture(autouse=True)
def drafts_of_fixed_length(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds and drafts can be counted, which else depend on the clock; tests marked `draft_control` keep it."""
    if "draft_control" not in request.keywords:
        monkeypatch.setattr(Decoder, "draft_control", lambda *_, **__: None)


@pytest.fixture(autouse=True)
def figures_without_pixels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, and saved as an empty PNG: drawing one takes longer than what it shows; see `figures`."""
    if "figures" not in request.keywords:
        monkeypatch.setattr(Figure, "savefig", _save_nothing)


def _save_nothing(_: Figure, place: Path | BytesIO, **__: object) -> None:
    start = b"\x89PNG\r\n\x1a\n"
    if isinstance(place, BytesIO):
        place.write(start)
    else:
        place.write_bytes(start)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which the demo's draft model exists, trained in a second."""
    folder = tmp_path_factory.mktemp("place")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    try:
        arguments = ["fit", "--config", "lm/tiny.yaml", "--name", "demo-draft", "--trainer.max_steps=10", *QUICK]
        assert main(arguments) == 0
    finally:
        patch.undo()
    return folder


@pytest.fixture
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the test."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    return place
