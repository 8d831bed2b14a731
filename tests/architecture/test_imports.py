"""Folders import downwards only, every import leads somewhere, and no modules import each other in a circle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.architecture.imports import (
    LAYERS,
    PACKAGES,
    import_cycles,
    missing_modules,
    third_party_imports,
    upward_imports,
)
from tests.support.processes import ROOT


def planted(root: Path, files: dict[str, str]) -> Path:
    """A small tree of files."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("check", [upward_imports, missing_modules, import_cycles])
def test_the_tree_is_in_order(check: Callable[[Path], list[str]]) -> None:
    assert check(ROOT) == []


def test_every_package_has_a_layer() -> None:
    assert {path.parent.name for path in ROOT.glob("*/py.typed")} == set(PACKAGES)
    assert len(PACKAGES) == len(set(PACKAGES)) == sum(map(len, LAYERS))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("common/a.py", "from saccade.retrieval.bm25 import BM25"),
        ("retrieval/a.py", "def f():\n    import saccade.inference"),
        ("retrieval/a.py", "from importlib import import_module\nimport_module('saccade.modules.lora')"),
        (
            "datamodules/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from saccade.modules import lora",
        ),
        ("datamodules/a.py", "from saccade import inference"),
        ("inference/b/a.py", "from ...datamodules import loaders"),
        ("modules/a.py", "class A:\n    def f(self):\n        from saccade.callbacks import export"),
        ("callbacks/a.py", "from saccade.cli.main import main"),
        ("cli/a.py", "from benchmarks.rows import write"),
        ("benchmarks/a.py", "from tests.support.models import tiny_model"),
        ("configs/a.py", "from saccade.common import files"),
    ],
)
def test_an_upward_import_is_found(tmp_path: Path, file: str, text: str) -> None:
    assert len(upward_imports(planted(tmp_path, {file: text}))) == 1


def test_downward_imports_are_allowed(tmp_path: Path) -> None:
    files = {
        "retrieval/a.py": "from saccade.common.files import write\nfrom .b import c",
        "datamodules/a.py": "import saccade.retrieval.bm25\nimport torch",
        "inference/a.py": "from saccade.common import files\nfrom saccade.inference.trees import TokenTree",
        "modules/a.py": "from saccade.datamodules import loaders\nfrom saccade.inference import Decoder",
        "callbacks/a.py": "from saccade.modules import lora\nfrom ..common import files",
        "cli/a.py": "import saccade.configs\nfrom saccade.callbacks import export",
        "benchmarks/a.py": "from saccade.cli.main import main\nfrom benchmarks.rows import write",
    }
    assert upward_imports(planted(tmp_path, files)) == []


def test_an_import_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    files = {
        "common/__init__.py": "",
        "common/files.py": "from pathlib import Path\n\ndef write(): ...\n\nLIMIT: int = 3\n",
        "cli/a.py": "from saccade.common.files import LIMIT, Path, write\nfrom saccade.common import files\n",
        "tests/support/a.py": "import saccade.common.files\nfrom tests.support import a",
    }
    assert missing_modules(planted(tmp_path, files)) == []
    files = {
        "cli/b.py": "from saccade.common.file import write\nfrom saccade.common.files import read, write",
        "tests/b.py": "import tests.support.b",
    }
    assert missing_modules(planted(tmp_path, files)) == [
        "cli/b.py:1: saccade.common.file.write",
        "cli/b.py:2: saccade.common.files.read",
        "tests/b.py:1: tests.support.b",
    ]


def test_a_circle_is_found(tmp_path: Path) -> None:
    files = {
        "common/__init__.py": "from saccade.common.a import x",
        "common/a.py": "from saccade.common.b import y",
        "common/b.py": "def f():\n    from saccade.common import c",
        "common/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from saccade.common.a import x",
    }
    assert import_cycles(planted(tmp_path, files)) == []
    planted(tmp_path, {"common/c.py": "def f():\n    from .a import x"})
    assert import_cycles(tmp_path) == ["saccade.common.a <-> saccade.common.b <-> saccade.common.c"]
    planted(tmp_path, {"common/c.py": "from saccade.common import x"})
    assert len(import_cycles(tmp_path)) == 1


def test_imports_of_other_projects_are_found(tmp_path: Path) -> None:
    files = {
        "common/a.py": "import os\nimport numpy.linalg\nfrom saccade.common import b\nfrom . import c",
        "cli/a.py": "def f():\n    from PIL.Image import open",
        "tests/a.py": "import pytest",
    }
    assert third_party_imports(planted(tmp_path, files)) == {
        "numpy": "common/a.py:2: numpy.linalg",
        "PIL": "cli/a.py:2: PIL.Image.open",
    }
