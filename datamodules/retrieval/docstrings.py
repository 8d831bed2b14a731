"""Retrieval data from installed packages: docstrings as queries, the functions that they describe as documents."""

from __future__ import annotations

import ast
import functools
import gc
import hashlib
import importlib.machinery
import importlib.util
import itertools
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saccade.common.checks import check_count
from saccade.datamodules.retrieval.files import Document, Pair, RetrievalTask
from saccade.datamodules.text.files import standard_library_files

SOURCES = ("torch", "transformers", "sklearn", "scipy", "numpy", "matplotlib", "sympy", "python")
"""The default sources: packages that Saccade installs; `python` is the whole standard library."""

TARGET = "networkx"
"""The default target: a package of graph algorithms, which torch installs and which no source covers."""

STANDARD_LIBRARY = "python"

# folders of tests and of copies of other packages, with texts that repeat or are part of other sources
_SKIPPED = frozenset(
    {
        *("__pycache__", "site-packages", "test", "testing", "tests"),
        *("_vendor", "_vendored", "extern", "externals", "third_party", "thirdparty", "vendor", "vendored"),
        *("array_api_compat", "array_api_extra"),
    }
)
_DESCRIBED = re.compile(r':\n[ \t]+[rR]?"""')  # the beginning of a docstring
_LARGEST_FILE = 500_000  # bytes; larger files are tables and generated code
_SPARSEST = 4000  # characters for each docstring; files with fewer docstrings are read last
_LONGEST = 3000  # characters of a document; longer functions are cut at a line
_FEWEST_LINES = 3  # of code below the docstring
_FEWEST_WORDS = 4  # of a query
_MOST_WORDS = 60
_ALIKE = 0.7  # Jaccard similarity of four-word shingles from which on one of two documents is dropped
_BANDS, _ROWS = 16, 4  # of the min-hash; documents of similarity 0.7 share a band with a probability of 98.8 %


@dataclass(frozen=True)
class Described:
    """A function and the sentence that describes it.

    Args:
        name: Module path and qualified name, such as `networkx/algorithms/dag.py:topological_sort`.
        sentence: First sentence of the docstring.
        code: Source without docstring and decorators, with its own name replaced by `function`.
    """

    name: str
    sentence: str
    code: str


def docstring_pairs(package: str, max_pairs: int = 1280) -> list[Pair]:
    """Read positive pairs of docstring sentence and function from a package, without importing it.

    Args:
        package: Import name, or `python` for the whole standard library.
        max_pairs: Most pairs to read.

    Returns:
        The pairs, equal for equal versions of the package.

    Raises:
        ValueError: The package is not installed, or has no docstrings in Python source.
    """
    return [Pair(each.sentence, each.code, 1) for each in described_functions(package, max_pairs)]


def docstring_documents(package: str, max_documents: int = 2000) -> dict[str, Document]:
    """Read the functions of a package, without the sentences: a corpus without labels.

    Args:
        package: As in `docstring_pairs`.
        max_documents: Most functions to read.

    Returns:
        Documents without titles, by name.

    Raises:
        ValueError: As in `docstring_pairs`.
    """
    return {each.name: Document("", each.code) for each in described_functions(package, max_documents)}


def docstring_queries(package: str, max_documents: int = 2000) -> set[str]:
    """Read the sentences of a package, without the functions.

    Args:
        package: As in `docstring_pairs`.
        max_documents: As in `docstring_documents`.

    Returns:
        The sentences.

    Raises:
        ValueError: As in `docstring_pairs`.
    """
    return {each.sentence for each in described_functions(package, max_documents)}


def docstring_task(package: str, max_documents: int = 2000, max_queries: int = 400, seed: int = 0) -> RetrievalTask:
    """Make a judged collection from a package: sentences are queries, with one relevant document each.

    Args:
        package: As in `docstring_pairs`.
        max_documents: Most functions in the corpus.
        max_queries: Most sentences to use as queries.
        seed: Seed of the choice of queries.

    Returns:
        The collection. Query ids differ from document ids, because rankers may leave out a document with the id of the
        query.

    Raises:
        ValueError: As in `docstring_pairs`.
    """
    found = described_functions(package, max_documents)
    asked = {each.name for each in sorted(found, key=lambda each: _digest(f"{seed}/{each.name}"))[:max_queries]}
    chosen = [each for each in found if each.name in asked]
    return RetrievalTask(
        package,
        {each.name: each.code for each in found},
        {f"query:{each.name}": each.sentence for each in chosen},
        {f"query:{each.name}": {each.name: 1} for each in chosen},
    )


@functools.lru_cache(maxsize=64)
def described_functions(package: str, most: int) -> tuple[Described, ...]:
    """Find functions with a docstring in a package, without importing it. Results are cached in memory.

    Tests, vendored copies, double-underscore methods, very short functions, repeated sentences, and near-duplicate
    functions are left out. Files are read in the order of a hash of their names, so that the first `most` functions are
    a sample of the whole package. Files with few docstrings are read last, because parsing takes most of the time.

    Args:
        package: As in `docstring_pairs`.
        most: Most functions to read; at least 1.

    Returns:
        The functions, sorted by name.

    Raises:
        ValueError: As in `docstring_pairs`.
    """
    check_count("max_pairs_per_package", most)
    found: list[Described] = []
    sentences: set[str] = set()
    alike = _NearDuplicates()
    files = sorted(_source_files(package), key=lambda file: _digest(file[0]))
    with _without_collector():
        for each in itertools.chain.from_iterable(
            _functions(*file, dense) for dense in (True, False) for file in files
        ):
            key = " ".join(each.sentence.casefold().split())
            # the sentence is checked first, so that a document dropped for it is not remembered as seen
            if key in sentences or alike.seen(each.code):
                continue
            sentences.add(key)
            found.append(each)
            if len(found) == most:
                break
    if not found:
        raise ValueError(
            f"package {package!r} must have functions with docstrings in Python source, got none: take another package."
        )
    return tuple(sorted(found, key=lambda each: each.name))


def is_package(name: str) -> bool:
    """Tell whether a package is installed, without importing it.

    Args:
        name: As in `docstring_pairs`.

    Returns:
        True if it is installed.
    """
    return name == STANDARD_LIBRARY or _spec(name) is not None


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    # a dotted name would import the parent
    if not name.isidentifier():
        return None
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


def _source_files(package: str) -> list[tuple[str, Path]]:
    """Names, beginning with the name of the package, and paths of its Python files."""
    if package == STANDARD_LIBRARY:
        files = [(f"{package}/{file.name}", file.path) for file in standard_library_files()]
    else:
        spec = _spec(package)
        if spec is None:
            raise ValueError(
                f"package {package!r} must be installed, and is not found: install it, or write ./{package} for a"
                " folder or file."
            )
        files = []
        for root in map(Path, spec.submodule_search_locations or ()):
            files += [(f"{package}/{path.relative_to(root).as_posix()}", path) for path in root.rglob("*.py")]
        if not files and spec.origin and spec.origin.endswith(".py"):
            files = [(f"{package}.py", Path(spec.origin))]
    return [(name, path) for name, path in files if _is_read(name)]


@contextmanager
def _without_collector() -> Iterator[None]:
    """Disable garbage collection, which takes half of the time of parsing and finds nothing to collect."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _is_read(name: str) -> bool:
    *folders, file = name.split("/")
    tests = file.startswith("test_") or file.endswith("_test.py") or file == "conftest.py"
    return not tests and _SKIPPED.isdisjoint(folders)


def _functions(name: str, path: Path, dense: bool) -> Iterator[Described]:
    """Yield the functions of a file and the methods of its classes, but not functions inside of functions.

    Args:
        name: Name of the file, as `_source_files` returns it.
        path: Path of the file.
        dense: Read the file only if it has many docstrings for its length (true) or only if it has few (false).
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            return
        text = path.read_text(encoding="utf-8-sig")
        if (len(_DESCRIBED.findall(text)) * _SPARSEST >= len(text)) is not dense:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the code of the package
            tree = ast.parse(text)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    # not splitlines(), which also splits at form feeds, where the parser does not
    lines = re.split(r"\r\n|\r|\n", text)
    names: set[str] = set()
    todo: list[tuple[str, ast.stmt]] = [("", node) for node in reversed(tree.body)]
    while todo:
        prefix, node = todo.pop()
        if isinstance(node, ast.ClassDef):
            todo += [(f"{prefix}{node.name}.", child) for child in reversed(node.body)]
        elif isinstance(node, ast.If | ast.Try):
            todo += [(prefix, child) for child in reversed([*node.body, *node.orelse])]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            full = f"{name}:{prefix}{node.name}"
            sentence, code = _first_sentence(ast.get_docstring(node) or ""), _code(node, lines)
            if sentence and code and full not in names and not node.name.startswith("__"):
                names.add(full)
                yield Described(full, sentence, code)


def _first_sentence(docstring: str) -> str:
    """The first sentence on one line; empty if it is too short or too long for a query."""
    paragraph = " ".join(re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0].split())
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z`*(])", paragraph, maxsplit=1)[0]
    return sentence if _FEWEST_WORDS <= len(re.findall(r"[A-Za-z]{2,}", sentence)) <= _MOST_WORDS else ""


def _code(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    """The source from `def` on, without the docstring; empty if too few lines are left."""
    docstring = node.body[0]
    first, last = docstring.lineno - 1, docstring.end_lineno or docstring.lineno
    if len(node.body) < 2 or node.body[1].lineno <= last or first < node.lineno:
        return ""
    kept = lines[node.lineno - 1 : first] + lines[last : node.end_lineno]
    kept = [line.rstrip()[min(node.col_offset, len(line) - len(line.lstrip())) :] for line in kept if line.strip()]
    body = kept[first - node.lineno + 1 :]
    if sum(not line.lstrip().startswith("#") for line in body) < _FEWEST_LINES:
        return ""
    # the name resembles the docstring: with it, a model would only learn to match names
    code = re.sub(rf"\b{re.escape(node.name)}\b", "function", "\n".join(kept))
    return code if len(code) <= _LONGEST else code[: code.rfind("\n", 0, _LONGEST)]


class _NearDuplicates:
    """Detects near-duplicate texts with min-hashes of four-word shingles.

    Candidates are compared exactly, so a text that is reported as a near-duplicate is one. Some may be missed.
    """

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        self.factors = draw.integers(1, 2**63, size=(_BANDS * _ROWS, 1), dtype=np.uint64) | np.uint64(1)
        self.offsets = draw.integers(0, 2**63, size=(_BANDS * _ROWS, 1), dtype=np.uint64)
        self.buckets: dict[tuple[int, bytes], list[int]] = {}
        self.sets: list[frozenset[int]] = []

    def seen(self, text: str) -> bool:
        """Tell whether a similar text was seen before; if not, remember this one."""
        words = re.findall(r"\w+", text)
        shingles = frozenset(zlib.crc32(" ".join(words[i : i + 4]).encode()) for i in range(max(1, len(words) - 3)))
        hashes = np.fromiter(shingles, dtype=np.uint64, count=len(shingles))
        # multiplication modulo 2^64 mixes only towards the upper bits, so the upper half is compared
        smallest = ((hashes * self.factors + self.offsets) >> np.uint64(32)).min(1).astype(np.uint32)
        keys = [(band, smallest[band * _ROWS : (band + 1) * _ROWS].tobytes()) for band in range(_BANDS)]
        for other in {place for key in keys for place in self.buckets.get(key, ())}:
            common = len(shingles & self.sets[other])
            if common >= _ALIKE * (len(shingles) + len(self.sets[other]) - common):
                return True
        for key in keys:
            self.buckets.setdefault(key, []).append(len(self.sets))
        self.sets.append(shingles)
        return False


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
