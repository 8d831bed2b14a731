"""Checks of a source tree's files: their sizes, the places of a decoder, the time limits of tests."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

from tests.architecture.imports import PACKAGES, python_files
from tests.support.processes import TIME_LIMIT

MOST_LINES = 500
MOST_FILES = 14
COUNTED = (".py", ".md", ".yaml")


def long_files(root: Path) -> list[str]:
    """Python files of more than 500 lines."""
    lengths = {
        path: len(path.read_text(encoding="utf-8").splitlines())
        for path in python_files(root, *PACKAGES, "benchmarks", "tests")
    }
    return [f"{path.relative_to(root)}: {length}" for path, length in lengths.items() if length > MOST_LINES]


def full_folders(root: Path) -> list[str]:
    """Folders that hold more than 14 files of code, pages or settings.

    Counted are ``.py``, ``.md`` and ``.yaml`` files directly in a folder, except ``__init__.py``, which every package
    has. Results and images are data.
    """
    tops = [root / name for name in (*PACKAGES, "benchmarks", "tests", "docs")]
    folders = [folder for top in tops for folder in (top, *top.rglob("*")) if folder.is_dir()]
    counts = {
        folder: sum(path.suffix in COUNTED and path.name != "__init__.py" for path in folder.iterdir())
        for folder in folders
        if not {"results", "images", "__pycache__"} & set(folder.relative_to(root).parts)
    }
    return [f"{folder.relative_to(root)}: {count}" for folder, count in counts.items() if count > MOST_FILES]


def exported_decoders(root: Path) -> dict[str, str]:
    """Names of the decoders that ``saccade.inference`` exports, each with its class."""
    tree = ast.parse((root / "inference" / "__init__.py").read_text(encoding="utf-8"))
    prefix = "saccade.inference.decoders."
    return {
        node.module.removeprefix(prefix): node.names[0].name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(prefix)
    }


def decoder_places(root: Path) -> list[str]:
    """What a decoder lacks of the places that every decoder has, and places that belong to no decoder."""
    exported, wrong = exported_decoders(root), []
    for folder, pattern in (
        ("inference/decoders", "*.py"),
        ("tests/inference/decoders", "test_*.py"),
        ("configs/decoder", "*.yaml"),
        ("docs/guides/decoders", "*.md"),
    ):
        found = {path.stem.removeprefix("test_") for path in (root / folder).glob(pattern)} - {"__init__"}
        wrong += [f"{folder}: no file of {name}" for name in sorted(set(exported) - found)]
        wrong += [f"{folder}: {name} is no exported decoder" for name in sorted(found - set(exported))]
    for name, kind in exported.items():
        for file, needed in (
            (f"inference/decoders/{name}.py", f"class {kind}("),
            ("inference/__init__.py", f'"{kind}",'),
            ("tests/support/decoders.py", f"DecoderCase({kind}"),
            (f"configs/decoder/{name}.yaml", f"class_path: saccade.inference.{kind}\n"),
            (f"docs/guides/decoders/{name}.md", f"::: saccade.inference.{kind}\n"),
            ("mkdocs.yml", f"guides/decoders/{name}.md"),
            ("README.md", f"[`{kind}`](docs/guides/decoders/{name}.md)"),
            ("CHANGELOG.md", f"`{kind}`"),
        ):
            text = (root / file).read_text(encoding="utf-8") + "\n" if (root / file).exists() else ""
            if text and needed not in re.sub(r"\(\s+", "(", text):
                wrong.append(f"{file}: {needed.strip()} of {name} is missing")
    return wrong


def short_time_limits(root: Path) -> list[str]:
    """Time limits in the tests that are shorter than ten minutes, or whose length cannot be read.

    A limit is a ``timeout`` argument or mark, a number given to ``join``, ``wait`` or ``result``, Hypothesis'
    ``deadline``, and pytest's own in ``pyproject.toml``.
    """
    wrong = []
    for path in python_files(root, "tests"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and not all(map(_long_enough, _limits(node))):
                wrong.append(f"{path.relative_to(root)}:{node.lineno}: {ast.unparse(node.func)}")
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    if settings.get("timeout", TIME_LIMIT) < TIME_LIMIT:
        wrong.append("pyproject.toml: timeout")
    return wrong


def _limits(node: ast.Call) -> list[ast.expr]:
    """The arguments of a call that limit its time."""
    limits = [keyword.value for keyword in node.keywords if keyword.arg in ("timeout", "deadline")]
    name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    if name in ("timeout", "join", "wait", "result"):
        limits += [argument for argument in node.args if name == "timeout" or _is_number(argument)]
    return limits


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def _long_enough(node: ast.expr) -> bool:
    match node:
        case ast.Name(id="TIME_LIMIT") | ast.Constant(value=None):
            return True
        case ast.Constant(value=int(seconds) | float(seconds)):
            return seconds >= TIME_LIMIT
        case ast.Call(func=ast.Name(id="timedelta"), keywords=[ast.keyword(arg="seconds", value=seconds)]):
            return _long_enough(seconds)
    return False
