"""Checks of a source tree's imports; they read the files of a root folder and import nothing of it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LAYERS = (("common", "configs"), ("retrieval",), ("datamodules", "inference"), ("modules",), ("callbacks",), ("cli",))
"""The package folders from the ground up; a folder may import those of the layers below its own."""
PACKAGES = tuple(name for layer in LAYERS for name in layer)
AROUND = ("benchmarks", "tests")


@dataclass(frozen=True)
class Import:
    """One imported name.

    Args:
        path: The importing file, in the root folder.
        line: Of the statement.
        target: Dotted name of the module, as ``saccade.common.files`` or ``numpy``.
        name: What is taken from it; empty for ``import module``.
        typing: Whether only type checkers run the statement.
    """

    path: str
    line: int
    target: str
    name: str
    typing: bool

    @property
    def full(self) -> str:
        """Module and name, joined."""
        return f"{self.target}.{self.name}" if self.name else self.target

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.full}"


def python_files(root: Path, *folders: str) -> list[Path]:
    """The Python files below some folders of the root."""
    return sorted(
        path for folder in folders for path in (root / folder).rglob("*.py") if "__pycache__" not in path.parts
    )


def module_name(path: str) -> str:
    """A file's dotted name: ``common/files.py`` is ``saccade.common.files``, ``tests/support/x.py`` is itself."""
    parts = [*([] if path.split("/")[0] in AROUND else ["saccade"]), *path.removesuffix(".py").split("/")]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(root: Path, *folders: str) -> list[Import]:
    """Everything that the files below some folders import, also inside functions and for type checkers only."""
    found = []
    for file in python_files(root, *folders):
        path = file.relative_to(root).as_posix()
        package = module_name(path) if file.name == "__init__.py" else module_name(path).rpartition(".")[0]
        for line, target, name, typing in _read(file.read_text(encoding="utf-8"), package):
            found.append(Import(path, line, target, name, typing))
    return found


@cache
def _read(text: str, package: str) -> list[tuple[int, str, str, bool]]:
    return list(_statements(ast.parse(text), package, False))


def _statements(node: ast.AST, package: str, typing: bool) -> Iterator[tuple[int, str, str, bool]]:
    match node:
        case ast.Import():
            yield from ((node.lineno, alias.name, "", typing) for alias in node.names)
        case ast.ImportFrom():
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            target = ".".join(part for part in (base, node.module) if part)
            yield from ((node.lineno, target, alias.name, typing) for alias in node.names)
        case ast.Call(args=[ast.Constant(value=str(target)), *_]) if _called(node) in {"import_module", "__import__"}:
            yield node.lineno, target, "", typing
    for child in ast.iter_child_nodes(node):
        guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and child in node.body
        yield from _statements(child, package, typing or guarded)


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def folder_of(module: str) -> str:
    """The folder of a module of this project, else empty."""
    parts = module.split(".")
    if parts[0] in AROUND:
        return parts[0]
    return parts[1] if parts[0] == "saccade" and len(parts) > 1 else ""


def upward_imports(root: Path) -> list[str]:
    """Imports that point to the same layer's other folder, to a higher layer, or out of the packages."""
    below: dict[str, set[str]] = {}
    for height, layer in enumerate(LAYERS):
        for folder in layer:
            below[folder] = {folder, *(name for lower in LAYERS[:height] for name in lower)}
    below["benchmarks"] = {*PACKAGES, "benchmarks"}
    below["configs"] = set()
    wrong = []
    for item in imports(root, *PACKAGES, "benchmarks"):
        folder, goal = item.path.split("/")[0], folder_of(item.full)
        if goal and goal not in below[folder]:
            wrong.append(str(item))
    return wrong


def modules(root: Path) -> dict[str, Path]:
    """Every module of the tree; folders without a file of their own are not among them."""
    return {module_name(path.relative_to(root).as_posix()): path for path in python_files(root, *PACKAGES, *AROUND)}


def missing_modules(root: Path) -> list[str]:
    """Imports of this project's modules that lead to no file and to no name that a file defines or imports."""
    known, wrong = modules(root), []
    folders = {name.rsplit(".", depth)[0] for name in known for depth in range(1, name.count(".") + 1)}
    names = {name: _defined(path.read_text(encoding="utf-8")) for name, path in known.items()}
    for item in imports(root, *PACKAGES, *AROUND):
        if not folder_of(item.full) or item.full in known or (not item.name and item.target in folders):
            continue
        if item.name not in names.get(item.target, ()):
            wrong.append(str(item))
    return wrong


@cache
def _defined(text: str) -> set[str]:
    """Names that a module binds anywhere."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.FunctionDef() | ast.ClassDef() | ast.AsyncFunctionDef():
                names.add(node.name)
            case ast.Import() | ast.ImportFrom():
                names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
            case ast.Name(ctx=ast.Store()):
                names.add(node.id)
    return names | {"*"}


def import_cycles(root: Path) -> list[str]:
    """Groups of modules that import each other at run time, also inside functions; one line for each group."""
    known = modules(root)
    arrows: dict[str, set[str]] = {name: set() for name in known}
    for item in imports(root, *PACKAGES, "benchmarks"):
        goal = item.full if item.full in known else item.target
        name = module_name(item.path)
        if not item.typing and goal in known and goal != name:
            arrows[name].add(goal)
    return [" <-> ".join(sorted(group)) for group in _groups(arrows)]


def _groups(arrows: dict[str, set[str]]) -> list[set[str]]:
    """Sets of more than one node that all lead to each other."""
    reach = {name: _reached(arrows, name) for name in arrows}
    groups: list[set[str]] = []
    for name in sorted(arrows):
        group = {name} | {other for other in reach[name] if name in reach[other]}
        if len(group) > 1 and group not in groups:
            groups.append(group)
    return groups


def _reached(arrows: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    open_ends = list(arrows[start])
    while open_ends:
        name = open_ends.pop()
        if name not in seen:
            seen.add(name)
            open_ends += arrows[name]
    return seen


def third_party_imports(root: Path) -> dict[str, str]:
    """Top-level modules of other projects that the packages import, each with one place where they do."""
    found: dict[str, str] = {}
    for item in imports(root, *PACKAGES):
        top = item.target.split(".")[0]
        if top not in sys.stdlib_module_names and top not in ("saccade", *AROUND):
            found.setdefault(top, str(item))
    return found
