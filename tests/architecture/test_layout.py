"""No file and no folder is too large, every decoder has all of its places, and no test has a short time limit."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

import saccade.inference
from saccade.inference import Decoder
from tests.architecture.layout import (
    decoder_places,
    exported_decoders,
    full_folders,
    long_files,
    short_time_limits,
)
from tests.architecture.test_imports import planted
from tests.support.decoders import METHODS
from tests.support.processes import ROOT


@pytest.mark.parametrize("check", [long_files, full_folders, decoder_places, short_time_limits])
def test_the_tree_is_in_order(check: Callable[[Path], list[str]]) -> None:
    assert check(ROOT) == []


def test_every_exported_decoder_is_under_test() -> None:
    exported = {getattr(saccade.inference, name) for name in saccade.inference.__all__}
    decoders = {item for item in exported if isinstance(item, type) and issubclass(item, Decoder)}
    leaves = {item for item in decoders if not inspect.isabstract(item)}
    assert leaves == set(METHODS), "each needs an entry in tests/support/decoders.py"
    assert {kind.__name__ for kind in leaves} == set(exported_decoders(ROOT).values())


def test_a_long_file_is_found(tmp_path: Path) -> None:
    assert long_files(planted(tmp_path, {"tests/a.py": "x = 1\n" * 500, "cli/b.md": "x\n" * 600})) == []
    assert long_files(planted(tmp_path, {"tests/a.py": "x = 1\n" * 501})) == ["tests/a.py: 501"]


def test_a_full_folder_is_found(tmp_path: Path) -> None:
    names = [*(f"{index}.py" for index in range(7)), *(f"{index}.md" for index in range(7)), "__init__.py", "py.typed"]
    for folder in ("common/deep", "docs", "benchmarks/results"):
        planted(tmp_path, {f"{folder}/{name}": "" for name in names})
    planted(tmp_path, {"benchmarks/results/more.md": ""})
    assert full_folders(tmp_path) == []
    planted(tmp_path, {"common/deep/a.yaml": "", "docs/images/a.md": ""})
    assert full_folders(tmp_path) == ["common/deep: 15"]


def test_a_missing_place_of_a_decoder_is_found(tmp_path: Path) -> None:
    files = {
        "inference/__init__.py": 'from saccade.inference.decoders.x import X\n\n__all__ = [\n    "X",\n]\n',
        "inference/decoders/__init__.py": "",
        "inference/decoders/x.py": "class X(Decoder): ...\n",
        "tests/inference/decoders/test_x.py": "",
        "tests/support/decoders.py": 'CASES = {\n    "x": DecoderCase(\n        X, {"length": 3}\n    ),\n}\n',
        "configs/decoder/x.yaml": "x:\n  class_path: saccade.inference.X\n",
        "docs/guides/decoders/x.md": "# X\n\n::: saccade.inference.X",
        "mkdocs.yml": "nav:\n  - guides/decoders/x.md\n",
        "README.md": "| [`X`](docs/guides/decoders/x.md) | no paper | yes |\n",
        "CHANGELOG.md": "- `X`.\n",
    }
    assert decoder_places(planted(tmp_path, files)) == []
    for name, text in files.items():
        if name == "inference/decoders/__init__.py":
            continue
        if name.endswith(("/x.py", "test_x.py", "x.yaml", "x.md")):
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_text("")
        assert decoder_places(tmp_path) != [], name
        (tmp_path / name).write_text(text)
    planted(tmp_path, {"configs/decoder/y.yaml": ""})
    assert decoder_places(tmp_path) == ["configs/decoder: y is no exported decoder"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("run(command, timeout=120)", True),
        ("run(command, timeout=600)", False),
        ("run(command, timeout=TIME_LIMIT)", False),
        ("run(command, timeout=LIMIT)", True),
        ("run(command, timeout=None)", False),
        ("init(timeout=timedelta(seconds=60))", True),
        ("init(timeout=timedelta(seconds=TIME_LIMIT))", False),
        ("process.join(5)", True),
        ("thread.join()", False),
        ("', '.join(names)", False),
        ("event.wait(0.5)", True),
        ("mark = pytest.mark.timeout(540)", True),
        ("settings(deadline=200)", True),
        ("settings(deadline=None)", False),
    ],
)
def test_a_short_time_limit_is_found(tmp_path: Path, text: str, found: bool) -> None:
    settings = "[tool.pytest.ini_options]\ntimeout = 1800\n"
    planted(tmp_path, {"tests/a.py": text, "pyproject.toml": settings})
    assert short_time_limits(tmp_path) == (["tests/a.py:1: " + text.split("(")[0].split(" = ")[-1]] if found else [])


def test_a_short_time_limit_of_pytest_is_found(tmp_path: Path) -> None:
    planted(tmp_path, {"pyproject.toml": "[tool.pytest.ini_options]\ntimeout = 300\n"})
    assert short_time_limits(tmp_path) == ["pyproject.toml: timeout"]
