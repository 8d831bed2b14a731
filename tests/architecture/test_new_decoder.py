"""CONTRIBUTING's list of a new decoder's files is complete, and each of them is needed.

The example decoder of CONTRIBUTING is added in a copy of the repository, and the tests run there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.imports import AROUND, PACKAGES, import_cycles, missing_modules, upward_imports
from tests.architecture.layout import decoder_places
from tests.docs.pages import blocks
from tests.support.processes import ROOT, TIME_LIMIT, environment

SECTION = re.search(r"^## How to add a decoder\n(.*?)^## ", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)
assert SECTION
LISTED = [
    path.replace("_x.", "_repeat.").replace("/x.", "/repeat.")
    for files in re.findall(r"^- \[ \] (.*?):", SECTION[1], re.M)
    for path in re.findall(r"`([^`]+)`", files)
]

NEW = {
    "tests/inference/decoders/test_repeat.py": '''\
"""Drafts are the last token, again and again."""

import torch

from saccade.inference import Repeat
from tests.support.models import plant_constant, tiny_model


def test_a_text_that_repeats_its_last_token_is_accepted_whole() -> None:
    model = tiny_model()
    plant_constant(model, 7)
    out = Repeat(draft_length=3).generate(model, torch.tensor([[3, 5, 7]]), max_new_tokens=9)
    assert out.tokens == [[7] * 9]
    assert out.stats.acceptance_histogram == {3: 2}
''',
    "configs/decoder/repeat.yaml": """\
# Drafts the last token again.
trainer:
  callbacks+:
    - class_path: saccade.callbacks.DecodingEvaluation
      init_args:
        decoders:
          repeat:
            class_path: saccade.inference.Repeat
            init_args:
              draft_length: 3
""",
    "docs/guides/decoders/repeat.md": """\
# Repeat

Drafts the last token again. Its settings: `decoder/repeat.yaml`.

::: saccade.inference.Repeat
""",
} | {
    block.language.split('"')[1]: block.text
    for block in blocks(ROOT / "CONTRIBUTING.md")
    if block.language.startswith("python title=")
}
"""The files that are new, with their texts."""

CHANGED = {
    "inference/__init__.py": "PromptLookup",
    "tests/support/decoders.py": "PromptLookup",
    "mkdocs.yml": "guides/decoders/prompt_lookup.md",
    "README.md": "[`PromptLookup`]",
    "CHANGELOG.md": "`PromptLookup`",
}
"""The files that are changed: behind each line that says this of prompt lookup, the same is said of the new decoder."""


def changed(path: str) -> str:
    """A file of the repository with the new decoder in it."""
    lines = []
    for line in (ROOT / path).read_text(encoding="utf-8").splitlines(keepends=True):
        lines.append(line)
        if CHANGED[path] in line:
            lines.append(line.replace("PromptLookup", "Repeat").replace("prompt_lookup", "repeat"))
    if "__all__ = [\n" in lines:  # the names are in order
        names = slice(lines.index("__all__ = [\n") + 1, -1)
        lines[names] = sorted(lines[names])
    return "".join(lines)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, with the new decoder, that is imported from ``.imports``."""
    root = tmp_path_factory.mktemp("copy")
    for name in (*PACKAGES, *AROUND, "docs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, root / path.name)
    (root / ".imports" / "saccade").mkdir(parents=True)
    for name in PACKAGES:
        (root / ".imports" / "saccade" / name).symlink_to(root / name)
    for name, text in {**NEW, **{name: changed(name) for name in CHANGED}}.items():
        (root / name).write_text(text)
    return root


def faults(root: Path) -> list[str]:
    """What the structural tests find."""
    return [
        fault for check in (missing_modules, decoder_places, upward_imports, import_cycles) for fault in check(root)
    ]


def in_copy(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A Python module's command in the copy, in which ``saccade`` and ``tests`` are the copy's."""
    paths = [str(root / ".imports"), str(root)]
    settings = environment()
    settings["PYTHONPATH"] = os.pathsep.join([*paths, settings["PYTHONPATH"]])
    arguments = [sys.executable, "-m", *command]
    return subprocess.run(
        arguments, cwd=root, env=settings, capture_output=True, text=True, timeout=TIME_LIMIT, check=False
    )


def test_the_list_names_the_files_of_the_example() -> None:
    assert sorted(LISTED) == sorted({*NEW, *CHANGED})


def test_the_listed_files_are_enough(copy: Path) -> None:
    assert faults(copy) == faults(ROOT)
    linted = in_copy(copy, "ruff", "check", *(name for name in LISTED if name.endswith(".py")))
    assert linted.returncode == 0, linted.stdout
    tests = [
        "tests/docs/test_readme.py", "tests/configs/test_configs.py", "tests/architecture/test_layout.py",
        "tests/inference/decoders/test_repeat.py", "tests/inference/loop/test_lossless.py",
        "tests/inference/doors/test_doors.py", "tests/inference/verification/test_coupling.py",
    ]  # fmt: skip
    # of the tests of all decoders those of the new one, on one model; of those of pages what the new one changes
    chosen = "repeat and not qwen or yaml_builds or method_table or exported_decoder or navigation or packaged_config"
    done = in_copy(copy, "pytest", "-q", "-rp", "-n0", "-p", "no:cacheprovider", "-k", chosen, *tests)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path for path in tests if f"PASSED {path}::" not in done.stdout] == []


@pytest.mark.parametrize("path", LISTED)
def test_each_listed_file_is_needed(copy: Path, path: str) -> None:
    given = (copy / path).read_text()
    try:
        if path in NEW:
            (copy / path).unlink()
        else:
            (copy / path).write_text((ROOT / path).read_text())
        assert set(faults(copy)) > set(faults(ROOT))
    finally:
        (copy / path).write_text(given)
