"""The wheel holds what is in the repository, and what the code imports is declared and pinned."""

import importlib.metadata
import itertools
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.architecture.imports import third_party_imports
from tests.support.processes import TIME_LIMIT

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]


def sources(pattern: str) -> set[str]:
    """Files in the package folders, as they are called inside a wheel."""
    return {
        "/".join((*package.split("."), path.relative_to(ROOT / folder).as_posix()))
        for package, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob(pattern)
        if "__pycache__" not in path.parts
    }


def test_every_folder_with_code_is_a_package():
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    found = {path.rsplit("/", 1)[0].replace("/", ".") for path in sources("*.py")}
    assert found == listed


def test_every_package_is_typed():
    listed = {package.replace(".", "/") for package in FOLDERS}
    assert {path.rsplit("/", 1)[0] for path in sources("py.typed")} >= listed


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the repository, built without the network and without touching the repository."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", *FOLDERS.values()):
        os.symlink(ROOT / name, copy / name)
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(copy)]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIME_LIMIT)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = target.glob("*.whl")
    return path


def test_wheel_holds_code_settings_types_and_license(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    packed = {name for name in names if ".dist-info/" not in name}
    assert packed == set().union(*map(sources, ("*.py", "*.yaml", "*.jsonl", "py.typed")))
    assert all(name.startswith("saccade/") for name in packed), "nothing else lands in site-packages"
    assert any(name.endswith("LICENSE") for name in names - packed)
    (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "saccade = saccade.cli.main:main" in zipfile.ZipFile(wheel).read(entry_points).decode()


def test_installed_wheel_finds_its_settings(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        f"import sys; sys.path[:] = [{str(tmp_path)!r}] + [p for p in sys.path if 'site-packages' not in p];"
        "sys.meta_path[:] = [f for f in sys.meta_path if '__editable__' not in repr(f)];"
        "from saccade.cli.main import main; main(['--help'])"
    )
    run = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "lm/tiny.yaml" in run.stdout, run.stderr


def names(requirements: Iterable[str]) -> set[str]:
    """The projects of some requirements, as package indexes spell them."""
    return {re.split(r"[\[<>=!~ ;]", line, maxsplit=1)[0].lower().replace("_", "-") for line in requirements}


def test_everything_that_is_imported_is_declared():
    optional = PROJECT["project"]["optional-dependencies"]
    declared = names([*PROJECT["project"]["dependencies"], *itertools.chain(*optional.values())])
    projects = importlib.metadata.packages_distributions()
    undeclared = {
        place
        for module, place in third_party_imports(ROOT).items()
        if not names(projects.get(module, [module])) & declared
    }
    assert undeclared == set()


def test_constraints_pin_every_direct_dependency():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert pins[0] == "torch==2.13.0", "a plain version, so that machines without a GPU may take the CPU build"
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    assert len(names(pins)) == len(pins)
    extras = PROJECT["project"]["optional-dependencies"]
    needed = names(PROJECT["project"]["dependencies"])
    for extra, lines in extras.items():
        # the GPU build of faiss is tied to a CUDA version, which a common file of pins cannot know
        needed |= names(lines) - ({"faiss-gpu"} if extra == "retrieval-gpu" else set())
    assert needed <= names(pins)


def test_dependencies_have_upper_bounds_and_leave_out_the_bad_versions():
    lines = PROJECT["project"]["dependencies"]
    assert all("<" in line for line in lines)
    (lightning,) = (line for line in lines if line.startswith("lightning"))
    assert "!=2.6.2" in lightning
    assert "!=2.6.3" in lightning


def test_old_python_is_told_so(tmp_path):
    """`make` with an interpreter that is too old ends with one line, before anything is made."""
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    command = ["make", "install", f"PYTHON={fake}", f"VENV={tmp_path / 'venv'}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "not Python 3.11 or newer" in run.stderr
    assert not (tmp_path / "venv").exists()


def test_continuous_integration_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text(encoding="utf-8")
